"""Pictures from videos and from sentences."""

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from limner.cli.command import main
from limner.data import made
from limner.data.made import frames, render, rendered
from limner.errors import DataError
from limner.evaluation.tasks import read_task


def video(file: Path, count: int, side: int = 64) -> None:
    """A video of grey frames, the brighter the later."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        for number in range(count):
            pixels = np.full((side, side, 3), 10 * number + 5, dtype=np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def brightness(path: Path) -> int:
    """The number of the frame that a picture shows."""
    return round((float(np.asarray(Image.open(path)).mean()) - 5) / 10)


def test_the_middle_frame_of_each_video(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    video(tmp_path / "videos/walk/a.mp4", 9)
    video(tmp_path / "videos/walk/b.avi", 20)
    video(tmp_path / "videos/run/c.mp4", 1)
    (tmp_path / "videos/run/d.mp4").write_bytes(b"no video")
    assert frames(tmp_path / "videos", tmp_path / "out") == 3
    assert "d.mp4 cannot be read, and is left out" in capsys.readouterr().err
    shown = {path.name: brightness(path) for path in (tmp_path / "out").rglob("*.png")}
    assert shown == {"a.png": 4, "b.png": 10, "c.png": 0}
    assert frames(tmp_path / "videos", tmp_path / "more", count=3) == 3
    assert [brightness(tmp_path / "more/walk" / name) for name in ("a.png", "a-2.png", "a-3.png")] == [1, 4, 7]
    assert read_task(tmp_path / "out").classes.ids == ("run", "walk")
    with pytest.raises(DataError, match="must hold videos"):
        frames(tmp_path / "out", tmp_path / "out")


def test_a_video_of_huge_frames_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(made, "MAX_SIDE", 32)
    video(tmp_path / "videos/a.mp4", 3)
    assert frames(tmp_path / "videos", tmp_path / "out") == 0
    assert "over 32 a side" in capsys.readouterr().err


def test_sentences_are_black_on_white_and_fit():
    for words in (1, 12, 200):
        image = rendered(" ".join(f"word{number}" for number in range(words)))
        pixels = np.asarray(image)
        assert image.size == (448, 448) and pixels.min() < 30 and pixels.max() == 255
        dark = np.argwhere(pixels.min(axis=2) < 128)
        assert dark.min() >= made.MARGIN - 2 and dark.max() < 448 - made.MARGIN + 2
    few, many = (np.asarray(rendered(text)) for text in ("good", "good and long, with far more words in it than fit"))
    assert not np.array_equal(few, many)


def test_a_list_of_sentences_becomes_folders_of_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "sst2.tsv").write_text('sentence\tlabel\na "fine film\t1\ndull\t0\n')
    with pytest.raises(SystemExit) as ended:
        main(["data", "render", str(tmp_path / "sst2.tsv"), "--out", str(tmp_path / "out")])
    assert ended.value.code == 0 and "2 pictures are in" in capsys.readouterr().err
    assert sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png")) == [
        "0/000001.png",
        "1/000000.png",
    ]


@pytest.mark.parametrize(
    "content, expected",
    [
        ("sentence,label\ngood,../up\n", "a label that can name a folder"),
        ("sentence,label\n,1\n", "must have a sentence"),
        ("words,label\ngood,1\n", "must have columns of sentences"),
        ("", "Got no line"),
        ("sentence,label\ngood\n", "Line 2 of .* must have all columns"),
        ('sentence,label\n"good,1\n', "must be a csv"),
    ],
)
def test_lists_that_cannot_be_rendered(tmp_path: Path, content: str, expected: str):
    (tmp_path / "list.csv").write_text(content)
    with pytest.raises(DataError, match=expected):
        render(tmp_path / "list.csv", tmp_path / "out")
