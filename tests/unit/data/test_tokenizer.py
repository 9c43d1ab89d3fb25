import copy
import gzip
import html
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import ftfy
import numpy as np
import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Generator, from_numpy
from torch.utils.data import DataLoader

from limner.data import tokenizer as module
from limner.data.tokenizer import EOS, SOS, Tokenizer, clean
from limner.errors import ConfigError, ModelError, StorageError

GOLDEN = json.loads(Path(__file__).with_name("openai_tokens.json").read_text())
BYTES = Tokenizer([*module.EVERY_BYTE, SOS, EOS], [], context_length=400)
"""Without merges: a token a byte."""
CAPTIONS = ["a photo of a dog.", "It's 12 o'clock, they'll see!", "A  Dog\ton (a) TABLE"]


@pytest.fixture(scope="module")
def openai() -> Tokenizer:
    return Tokenizer.openai(context_length=2000)


def body(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text without the special tokens."""
    (ids,) = tokenizer([text])
    return ids[1 : ids.argmax()].tolist()


@pytest.mark.parametrize("number", range(len(GOLDEN["texts"])))
def test_ids_are_those_of_openai(openai: Tokenizer, number: int):
    assert body(openai, GOLDEN["texts"][number]) == GOLDEN["ids"][number]


def test_the_vocabulary_of_the_paper(openai: Tokenizer):
    assert (openai.vocab_size, openai.sos, openai.eos) == (49_408, 49_406, 49_407)
    assert Tokenizer.openai()(["a dog"])[0, :5].tolist() == [49_406, 320, 1929, 49_407, 0]


ASCII = st.one_of(st.characters(max_codepoint=127), st.sampled_from(["&amp;", "&#38;lt;", "\x1b[0m", "\r\n", "<"]))


@given(text=st.lists(ASCII, max_size=40).map("".join))
@example(text="".join(map(chr, range(128))))
def test_ascii_is_cleaned_as_everything_else_is(text: str):
    slow = html.unescape(html.unescape(ftfy.fix_text(text)))
    assert clean(text) == " ".join(slow.split()).lower()


def test_surrogates_are_characters_or_replaced(openai: Tokenizer):
    assert body(openai, "a \ud83d\udc36") == body(openai, "a \U0001f436")
    assert body(openai, "a \udc36") == body(openai, "a \ufffd")


@pytest.mark.parametrize("word", [SOS, EOS])
def test_special_words_in_a_caption_are_text(openai: Tokenizer, tokenizer: Tokenizer, word: str):
    for each in (openai, tokenizer):
        assert max(body(each, f"a {word} dog")) < each.sos
        assert each.decode(body(each, f"a {word} dog")).replace(" ", "") == f"a{word}dog"


def test_the_same_vocabulary_gives_the_same_bytes_whichever_file_it_came_from(openai: Tokenizer, tmp_path: Path):
    ours, whole, plain, other = (tmp_path / name for name in ("a.json", "merges.txt.gz", "merges.txt", "b.json"))
    openai.save(ours)
    merges = gzip.decompress(module.OPENAI_MERGES.read_bytes())
    plain.write_bytes(b'"version: 0.2\n' + merges + b"un used\n")
    whole.write_bytes(gzip.compress(plain.read_bytes()))
    # As Hugging Face writes it: pairs, other rules around the model, its special tokens in the vocabulary alone.
    values = json.loads(ours.read_text())
    values |= {"normalizer": {"type": "Lowercase"}, "post_processor": None, "decoder": None, "added_tokens": []}
    values["model"] |= {"unk_token": EOS, "merges": [pair.split(" ") for pair in values["model"]["merges"]]}
    other.write_text(json.dumps(values))
    for path in (ours, whole, plain, other):
        assert Tokenizer.load(path).to_json() == ours.read_text()


@pytest.mark.parametrize("vocabulary", ["openai", "tokenizer"])
def test_the_library_reads_the_file(vocabulary: str, request: pytest.FixtureRequest):
    tokenizer: Tokenizer = request.getfixturevalue(vocabulary)
    theirs = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    assert theirs.get_vocab_size() == tokenizer.vocab_size
    for caption in CAPTIONS:
        ids = theirs.encode(caption).ids
        assert ids == [tokenizer.sos, *body(tokenizer, caption), tokenizer.eos]
        assert theirs.decode(ids).strip() == tokenizer.decode(ids)


@pytest.mark.parametrize("vocabulary", ["openai", "tokenizer"])
def test_transformers_reads_the_file(vocabulary: str, request: pytest.FixtureRequest, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    tokenizer: Tokenizer = request.getfixturevalue(vocabulary)
    tokenizer.save(tmp_path / "tokenizer.json")
    config = {"tokenizer_class": "CLIPTokenizer", "bos_token": SOS, "eos_token": EOS}
    config |= {"unk_token": EOS, "pad_token": EOS, "model_max_length": 77}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ids = [[tokenizer.sos, *body(tokenizer, caption), tokenizer.eos] for caption in CAPTIONS]
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert fast(CAPTIONS)["input_ids"] == ids
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    assert theirs(CAPTIONS)["input_ids"] == ids
    theirs.save_pretrained(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again" / "tokenizer.json").to_json() == tokenizer.to_json()


def test_special_tokens_have_the_highest_ids(tokenizer: Tokenizer):
    assert (tokenizer.sos, tokenizer.eos) == (tokenizer.vocab_size - 2, tokenizer.vocab_size - 1)


@given(text=st.text(st.characters(), max_size=300))
def test_any_text_has_its_eos_at_the_arg_max(tokenizer: Tokenizer, text: str):
    (ids,) = tokenizer([text])
    end = int(ids.argmax())
    assert ids.shape == (77,) and ids[0] == tokenizer.sos and ids[end] == tokenizer.eos
    assert (ids[1:end] < tokenizer.sos).all() and (ids[end + 1 :] == 0).all()


@given(
    words=st.lists(st.text(st.characters(codec="utf-8", categories=["Ll", "Lo"]), min_size=1, max_size=6), max_size=5)
)
def test_lower_case_words_come_back(words: list[str]):
    text = " ".join(words)
    (ids,) = BYTES([text])
    assert BYTES.decode(ids[ids > 0].tolist()).replace(" ", "") == clean(text).replace(" ", "")


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
    assert again.to_json() == tokenizer.to_json()


def test_training_is_deterministic_and_cleans():
    captions = ["a dog on a table", "a cat under a chair"]
    trained = Tokenizer.train(captions, vocab_size=600).to_json()
    assert Tokenizer.train(["A &#100;og \x1b[1mon a  table", captions[1]], vocab_size=600).to_json() == trained


def test_a_vocabulary_is_as_large_as_asked_for():
    captions = [" ".join(f"{i}word{j}" for j in "abcdefgh") for i in "ijklmnop"]
    tokenizer = Tokenizer.train(captions, vocab_size=520)
    assert tokenizer.vocab_size == 520 and len(tokenizer.merges) == 6


def test_a_vocabulary_too_small_for_the_bytes():
    with pytest.raises(ConfigError, match="at least 514"):
        Tokenizer.train(["a"], vocab_size=100)


def test_files_that_are_no_tokenizer(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "tokenizer.json"
    good = json.loads(tokenizer.to_json())

    def refused(values: object, match: str) -> None:
        path.write_text(values if isinstance(values, str) else json.dumps(values))
        with pytest.raises(ModelError, match=match):
            Tokenizer.load(path)

    refused("{", re.escape("limner tokenizer train"))
    refused("[" * 100_000, "RecursionError")
    refused([], "readable")
    refused({}, "KeyError")
    refused(good | {"model": {"type": "WordPiece", "vocab": {}}}, "byte-level BPE whose words end in </w>")
    refused(good | {"model": good["model"] | {"end_of_word_suffix": None}}, "byte-level BPE whose words end in </w>")
    refused(good | {"model": good["model"] | {"continuing_subword_prefix": "##"}}, "##")
    refused(good | {"model": good["model"] | {"merges": ["a zz"]}}, "readable")
    refused(good | {"model": good["model"] | {"merges": ["a b c"]}}, "readable")
    refused(good | {"normalizer": None}, "lower-case its text")
    refused(good | {"added_tokens": [{"content": "extra", "id": tokenizer.vocab_size}]}, "the highest id")
    refused(good | {"added_tokens": [{"content": "extra", "id": tokenizer.vocab_size + 5}]}, "without gaps")
    vocab = {token: i for i, token in enumerate(tokenizer.vocab[:-2])}
    refused(good | {"model": good["model"] | {"vocab": vocab}, "added_tokens": []}, re.escape(EOS))
    with pytest.raises(ModelError, match="FileNotFoundError"):
        Tokenizer.load(tmp_path / "none.json")

    merges = tmp_path / "merges.txt"
    merges.write_text("#version\na b\nab c</w>\n")
    with pytest.raises(ModelError, match="OpenAI's file of merges"):
        Tokenizer.load(merges)
    packed = tmp_path / "merges.txt.gz"
    packed.write_bytes(gzip.compress(merges.read_bytes())[:-9])
    with pytest.raises(ModelError, match="EOFError"):
        Tokenizer.load(packed)
    monkeypatch.setattr(module, "LARGEST_FILE", 1000)
    packed.write_bytes(gzip.compress(b"a" * 1001))
    with pytest.raises(ModelError, match="at most 1000 bytes"):
        Tokenizer.load(packed)


# --- copies, and what is passed --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_copy_is_the_tokenizer(copied: Callable[[Tokenizer], Tokenizer], tokenizer: Tokenizer):
    original = Tokenizer(tokenizer.vocab, tokenizer.merges, context_length=9)
    texts = [f"a {EOS} cat {SOS}", "a " * 20, "☕"]
    ids = original(texts)
    again = copied(original)
    assert again.cut == original.cut > 0 and again.to_json() == original.to_json()
    assert np.array_equal(again(texts), ids) and again.decode(ids[0]) == original.decode(ids[0])
    assert original.cut < again.cut  # each counts its own


def test_a_spawned_worker_has_the_tokenizer(tokenizer: Tokenizer):
    texts = [f"a {EOS} cat", "a dog"]
    loader = DataLoader(
        texts,  # type: ignore[arg-type]
        batch_size=2,
        collate_fn=tokenizer,
        num_workers=1,
        multiprocessing_context="spawn",
        generator=Generator(),
    )
    (ids,) = loader
    assert np.array_equal(ids, tokenizer(texts))


def test_one_sentence_is_one_row_and_several_may_be_in_anything_that_has_an_order(tokenizer: Tokenizer):
    row = tokenizer(["a dog"])
    for one in ("a dog", np.str_("a dog"), np.array("a dog"), ("a dog",), iter(["a dog"]), np.array(["a dog"])):
        assert np.array_equal(tokenizer(one), row)
    for none in ([], (), np.array([], dtype=str)):
        assert tokenizer(none).shape == (0, 77) and tokenizer(none).dtype == np.int64
    pandas = pytest.importorskip("pandas")
    assert np.array_equal(tokenizer(pandas.Series(["a dog"], index=[7])), row)
    with pytest.raises(ConfigError, match="Got DataFrame of another shape"):
        tokenizer(pandas.DataFrame({"caption": ["a dog"]}))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (None, "or several in an order. Got None"),
        (3, "Got int 3"),
        ({"a"}, "Got set"),
        ({"a": 1}, "Got dict"),
        (b"a", r"content\.decode\(\)"),
        (Path("a"), "must be text"),
        (["a", None], "The sentences, at place 1, must be text"),
        (["a", "b", float("nan")], "at place 2, .* Got float nan"),
        ([["a"]], "at place 0, .* Got list"),
        ([b"a"], r"content\.decode\(\)"),
        (np.array([1, 2]), "at place 0"),
    ],
)
def test_what_is_no_sentence_is_refused_in_one(tokenizer: Tokenizer, wrong: object, message: str):
    with pytest.raises(ConfigError, match=message):
        tokenizer(wrong)
    with pytest.raises(ConfigError, match=message.replace("sentences", "captions")):
        Tokenizer.train(wrong, vocab_size=600)


def test_a_caption_alone_trains_as_one(tokenizer: Tokenizer):
    whole = Tokenizer.train(["a dog"], vocab_size=600).to_json()
    assert Tokenizer.train("a dog", vocab_size=600).to_json() == whole
    assert Tokenizer.train([], vocab_size=600).vocab_size == 514


@given(text=st.text(st.characters(codec="utf-8", categories=["Ll"]), min_size=1, max_size=9))
def test_what_fills_a_row_behind_its_end_is_not_decoded(tokenizer: Tokenizer, text: str):
    (row,) = tokenizer([text])
    whole = tokenizer.decode(row[: int(row.argmax()) + 1])
    for ids in (row, row.tolist(), tuple(row), from_numpy(row), row.astype(np.int32), list(from_numpy(row))):
        assert tokenizer.decode(ids) == whole
    assert tokenizer.decode([]) == ""


@pytest.mark.parametrize("wrong", [[-1], [10**6], [0.5], [[1, 2]], [[1], [1, 2]], "a dog", ["a"], 5, None, {1}])
def test_what_are_no_ids_is_not_decoded(tokenizer: Tokenizer, wrong: object):
    with pytest.raises(ConfigError, match=r"The token ids of a sentence must be one row"):
        tokenizer.decode(wrong)


def test_paths_are_strings_too_and_nothing_else(tokenizer: Tokenizer, tmp_path: Path):
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(str(tmp_path / "tokenizer.json")).to_json() == tokenizer.to_json()
    for wrong in (None, 3, b"tokenizer.json", "a\0b", [tmp_path]):
        with pytest.raises(ConfigError, match="must be a path"):
            tokenizer.save(wrong)
        with pytest.raises(ConfigError, match="must be a path"):
            Tokenizer.load(wrong)
    with pytest.raises(StorageError, match="must be written whole"):
        tokenizer.save(tmp_path)


@pytest.mark.parametrize("wrong", [2, -1, 7.5, "77", None])
def test_lengths_are_whole_numbers(tokenizer: Tokenizer, wrong: object):
    with pytest.raises(ConfigError, match="whole number of at least 3"):
        Tokenizer.openai(context_length=wrong)
    with pytest.raises(ConfigError, match="whole number of at least 514"):
        Tokenizer.train(["a"], vocab_size=wrong)
