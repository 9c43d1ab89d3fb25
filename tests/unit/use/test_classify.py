import os
from collections.abc import Callable
from pathlib import Path

import pytest

from limner.data.sources.read import read_pairs
from limner.data.tokenizer import Tokenizer
from limner.data.write import repack
from limner.errors import DataError
from limner.evaluation.zero_shot import ZeroShotClassifier
from limner.model.clip import CLIP, create
from limner.use.classify import classify_images


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
