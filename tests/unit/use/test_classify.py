import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limner.data.sources.read import read_images, read_pairs
from limner.data.tokenizer import Tokenizer
from limner.data.write import repack
from limner.embed import embed_images
from limner.errors import ConfigError, DataError
from limner.evaluation.zero_shot import ZeroShotClassifier
from limner.model.clip import CLIP, create
from limner.use.classify import classify_images, name_all
from limner.use.search import find, find_among


@pytest.fixture
def model(tokenizer: Tokenizer) -> CLIP:
    return create("RN-nano", tokenizer=tokenizer)


def test_what_cannot_be_read_is_left_out_with_a_word(
    model: CLIP, folder_of_pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (folder_of_pairs / "03.png").write_bytes(b"not a picture")
    missing = tmp_path / "missing.png"
    answers = classify_images(model, [folder_of_pairs, missing], ["dog", "table"], ["{}"])
    assert len(answers) == 39
    error = capsys.readouterr().err
    assert "03.png" in error and "missing.png" in error
    with pytest.raises(DataError, match="none that can be read"):
        classify_images(model, [missing], ["dog", "table"], ["{}"])
    with pytest.raises(DataError, match="must be readable"):
        classify_images(model, [folder_of_pairs / "03.png"], ["dog", "table"], ["{}"])


def test_files_folders_and_shards_in_their_order(
    model: CLIP, folder_of_pairs: Path, tmp_path: Path, picture: Callable[..., bytes]
):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(picture(seed=3))
    repack(read_pairs(folder_of_pairs), tmp_path / "shards")
    places = [tmp_path / "b.png", tmp_path / "a.png", folder_of_pairs, str(tmp_path / "shards" / "00000.tar")]
    answers = classify_images(model, places, ["dog", "table"], ["{}"], keep=tmp_path / "kept")
    named = [answer.image for answer in answers]
    assert named[:3] == [str(tmp_path / "b.png"), str(tmp_path / "a.png"), str(folder_of_pairs / "00.png")]
    assert (len(named) == 82 and named[42].endswith("00000.tar: 0000000000")) or "00000.tar: " in named[42]
    assert answers[0].names == pytest.approx(answers[1].names, abs=1e-5)
    again = classify_images(model, places, ["dog", "table"], ["{}"], keep=tmp_path / "kept")
    assert [answer.image for answer in again] == named
    assert all(a.names == pytest.approx(b.names, abs=1e-6) for a, b in zip(answers, again, strict=True))
    assert len(list((tmp_path / "kept").iterdir())) == 3, "each place by its own fingerprint"


def test_a_pipe_is_not_waited_for(model: CLIP, tmp_path: Path):
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(DataError, match="a folder, a pipe or a device"):
        ZeroShotClassifier(model, ["dog", "table"]).predict(tmp_path / "x.png")


def test_a_name_given_twice_counts_once(model: CLIP, folder_of_pairs: Path, capsys: pytest.CaptureFixture[str]):
    first, second = (classify_images(model, folder_of_pairs / "00.png", names, ["{}"])[0] for names in NAMED)
    assert first == second and sum(first.names.values()) == pytest.approx(1)
    assert "Named more than once, and counted once: Dog." in capsys.readouterr().err


NAMED = (["dog", "table"], ["dog", "Dog", "table"])


def test_names_and_templates_come_in_any_form(model: CLIP, folder_of_pairs: Path):
    file = folder_of_pairs / "00.png"
    assert list(classify_images(model, file, "cat", "{}")[0].names) == ["cat"]  # not c, a, t
    wanted = classify_images(model, file, ["dog", "cat"], ["a {}"])
    for names in (
        ("dog", "cat"),
        (name for name in ("dog", "cat")),
        np.array(["dog", "cat"]),
        {"dog": 1, "cat": 2}.keys(),
    ):
        assert classify_images(model, file, names, "a {}") == wanted
    for wrong in ([1, 2], 3, [b"cat"], {"dog"}, None):
        with pytest.raises(ConfigError, match="The class names"):
            classify_images(model, file, wrong, "{}")


@pytest.mark.parametrize("top", [0, -1, True, 2.0, "2", None])
def test_answers_are_a_whole_number_from_one(model: CLIP, folder_of_pairs: Path, top: Any):
    classifier = ZeroShotClassifier(model, ["dog", "cat"])
    embedded = embed_images(model, read_images(folder_of_pairs))
    for ask in (
        lambda top: classify_images(model, folder_of_pairs / "00.png", ["dog", "cat"], "{}", top=top),
        lambda top: name_all(classifier, embedded, top=top),
        lambda top: classifier.predict(folder_of_pairs / "00.png", top=top),
        lambda top: find(model, folder_of_pairs, "a dog", top=top),
        lambda top: find_among(model, embedded, "a dog", top=top),
    ):
        assert ask(np.int64(1))
        with pytest.raises(ConfigError, match="top must be a whole number from 1 on"):
            ask(top)
