"""Pictures for tasks that have none: the frames of videos, and sentences in black on white.

```
VIDEOS/<class>/x.mp4 ─> its middle frame, or several at equal distances ─> OUT/<class>/x.png, x-2.png, ...
sentences with labels ─> lines on 448 x 448 pixels, as large as fits    ─> OUT/<label>/000000.png
```

The paper sees the middle frame of a video, and reads sentences as pictures (Rendered SST2, appendix A.1).
"""

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from limner.data.pairs import lines_of
from limner.data.sources.lists import CAPTION_COLUMNS, LABEL_COLUMNS
from limner.errors import DataError, MissingExtra
from limner.files import replacing
from limner.progress import say, track

VIDEO_ENDINGS = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg")
MAX_FRAMES, MAX_SIDE = 1_000_000, 8192
SIDE, MARGIN = 448, 24
"""Pixels of a rendered sentence, and around its words."""
SIZES = range(64, 9, -2)
"""Heights of letters, the largest that fits is taken."""


def frames(videos: Path, out: Path, *, count: int = 1) -> int:
    """Write `count` frames of each video below a folder, in folders of the same names: the middle one, or those in the
    middle of so many equal parts. Gives the number of videos that could be read; the others are said.

    Raises `MissingExtra` without PyAV, and `DataError` where there is no video.
    """
    files = sorted(one for one in videos.rglob("*") if one.suffix.lower() in VIDEO_ENDINGS and one.is_file())
    if not files:
        raise DataError(
            f"The folder {videos}",
            must=f"hold videos ({', '.join(VIDEO_ENDINGS)})",
            got="none",
            then="Give the folder that holds the folders of the classes.",
        )
    _require_new(out)
    places = {file: [_place_of(out, file.relative_to(videos), number) for number in range(count)] for file in files}
    twice = [place for place, times in Counter(one for some in places.values() for one in some).items() if times > 1]
    if twice:
        raise DataError(
            f"The videos in {videos}",
            must="have names of their own, whatever their endings",
            got=f"several for {twice[0].name}",
            then="Rename one.",
        )
    read = 0
    for file in track(files, title="Taking frames", total=len(files)):
        try:
            found = list(_frames_of(file, count))
        except (OSError, ValueError, IndexError, _av().FFmpegError) as error:
            say(f"{file} cannot be read, and is left out: {error}")
            continue
        for image, place in zip(found, places[file], strict=True):
            _save(image, place)
        read += 1
    return read


def _place_of(out: Path, video: Path, number: int) -> Path:
    place = out / video.with_suffix("")
    return place.with_name(place.name + (f"-{number + 1}" if number else "") + ".png")


def _require_new(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(
            f"The folder {out}", must="be new, or empty", got="one with files in it", then="Choose another --out."
        )


def _av() -> Any:
    try:
        import av
    except ImportError:
        raise MissingExtra("av", extra="video", needed_for="frames of videos") from None
    return av


def _frames_of(file: Path, count: int) -> Iterator[Image.Image]:
    """Frames in the middle of `count` equal parts; it is gone through twice, for what a header says may be wrong."""
    av = _av()
    with av.open(str(file)) as video:
        total = sum(1 for _ in zip(video.decode(video=0), range(MAX_FRAMES), strict=False))
    if total == 0:
        raise ValueError("no frame in it")
    wanted = [(2 * part + 1) * total // (2 * count) for part in range(count)]
    with av.open(str(file)) as video:
        for place, frame in enumerate(video.decode(video=0)):
            for _ in range(wanted.count(place)):
                if max(frame.width, frame.height) > MAX_SIDE:
                    raise ValueError(f"frames of {frame.width} x {frame.height} pixels, over {MAX_SIDE} a side")
                yield frame.to_image()
            if place >= wanted[-1]:
                return


def render(sentences: Path, out: Path) -> int:
    """Write each sentence of a csv or tsv as a picture into the folder of its label. Gives their number.

    Raises `DataError` for a list without a column of sentences and one of labels, or with a row that has none.
    """
    rows = list(_rows_of(sentences))
    _require_new(out)
    for number, (sentence, label) in enumerate(track(rows, title="Rendering sentences", total=len(rows))):
        label = label.strip()
        if not sentence.strip() or not label or Path(label).name != label or label.startswith("."):
            raise DataError(
                f"Row {number + 1} of {sentences}",
                must="have a sentence and a label that can name a folder",
                got=f"{sentence[:40]!r} and {label[:40]!r}",
                then="Correct that row.",
            )
        _save(rendered(sentence), out / label / f"{number:06d}.png")
    return len(rows)


def _rows_of(file: Path) -> Iterator[tuple[str, str]]:
    """(sentence, label) of each row. A tsv is read as it stands: its sentences may hold quotes."""
    lines = lines_of(file)
    try:
        rows = (
            [line.split("\t") for line in lines]
            if file.suffix.lower() == ".tsv"
            else list(csv.reader(lines, strict=True))
        )
    except csv.Error as error:
        raise DataError(f"The list {file}", must="be a csv", got=error, then="Correct its quotes.") from error
    header = [name.strip().lower() for name in rows[0]] if rows else []
    columns = [
        next((header.index(name) for name in names if name in header), -1) for names in (CAPTION_COLUMNS, LABEL_COLUMNS)
    ]
    if -1 in columns:
        raise DataError(
            f"The list {file}",
            must=f"have columns of sentences ({', '.join(CAPTION_COLUMNS)}) and labels ({', '.join(LABEL_COLUMNS)})",
            got=", ".join(header)[:80] or "no line",
            then="Name them in the first line.",
        )
    for number, row in enumerate(rows[1:], start=2):
        if len(row) <= max(columns):
            raise DataError(f"Line {number} of {file}", must="have all columns", got=len(row), then="Correct it.")
        yield row[columns[0]], row[columns[1]]


def rendered(sentence: str) -> Image.Image:
    """A sentence in black on white, 448 x 448 pixels, in letters as large as fit."""
    image = Image.new("RGB", (SIDE, SIDE), "white")
    drawn, width = ImageDraw.Draw(image), SIDE - 2 * MARGIN
    for size in SIZES:
        font = ImageFont.load_default(size)
        text = "\n".join(_lines(sentence, font, width))
        left, top, right, bottom = drawn.multiline_textbbox((0, 0), text, font=font)
        if right - left <= width and bottom - top <= width:
            break
    else:
        raise DataError(
            f"The sentence that begins with {sentence[:40]!r}",
            must=f"fit on {SIDE} x {SIDE} pixels",
            got=f"{len(sentence):,} characters",
            then="Shorten it.",
        )
    drawn.multiline_text((MARGIN - left, MARGIN - top), text, fill="black", font=font)
    return image


def _lines(sentence: str, font: Any, width: int) -> list[str]:
    lines = [""]
    for word in sentence.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _save(image: Image.Image, path: Path) -> None:
    with replacing(path) as file:
        image.save(file, "PNG")
