import re
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from limn.data.tokenizer import Tokenizer
from limn.errors import ConfigError, ModelError


def test_special_tokens_have_the_highest_ids(tokenizer: Tokenizer):
    assert (tokenizer.sos, tokenizer.eos) == (tokenizer.vocab_size - 2, tokenizer.vocab_size - 1)


@given(text=st.text(max_size=300))
def test_any_text_has_its_eos_at_the_arg_max(tokenizer: Tokenizer, text: str):
    (ids,) = tokenizer([text])
    end = int(ids.argmax())
    assert ids.shape == (77,) and ids[0] == tokenizer.sos and ids[end] == tokenizer.eos
    assert (ids[1:end] < tokenizer.sos).all() and (ids[end + 1 :] == 0).all()


@given(
    words=st.lists(st.text(st.characters(codec="utf-8", categories=["Ll", "Lo"]), min_size=1, max_size=6), max_size=5)
)
def test_lower_case_words_come_back(tokenizer: Tokenizer, words: list[str]):
    text = " ".join(words)
    (ids,) = Tokenizer(tokenizer.rules, context_length=400)([text])
    normal = tokenizer.rules.normalizer.normalize_str(text)
    assert tokenizer.decode(ids[ids > 0].tolist()).replace(" ", "") == normal.replace(" ", "")


def test_case_and_space_do_not_matter(tokenizer: Tokenizer):
    assert np.array_equal(tokenizer(["A  Dog\ton a\nTABLE"]), tokenizer(["a dog on a table"]))


def test_a_long_text_is_cut_counted_and_keeps_its_eos():
    tokenizer = Tokenizer.train(["a b"], vocab_size=600, context_length=5)
    ids = tokenizer(["a a a a a a a", "a a a"])
    assert tokenizer.cut == 1
    assert (ids[:, -1] == tokenizer.eos).all()


def test_saved_and_read_again_it_is_the_same(tokenizer: Tokenizer, tmp_path: Path):
    tokenizer.save(tmp_path / "tokenizer.json")
    texts = ["A dog's picture 12", "日本 ☕ naïve", ""]
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert np.array_equal(again(texts), tokenizer(texts))
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("a dog").ids
    assert theirs == [i for i in tokenizer(["a dog"])[0].tolist() if i]


def test_training_is_deterministic():
    captions = ["a dog on a table", "a cat under a chair"]
    assert Tokenizer.train(captions, vocab_size=600).to_json() == Tokenizer.train(captions, vocab_size=600).to_json()


def test_bad_input(tmp_path: Path):
    with pytest.raises(ConfigError, match="at least 514"):
        Tokenizer.train(["a"], vocab_size=100)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ModelError, match=re.escape("limn tokenizer train")):
        Tokenizer.load(tmp_path / "bad.json")
    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(tmp_path / "other.json"))
    with pytest.raises(ModelError, match="SOS"):
        Tokenizer.load(tmp_path / "other.json")
