"""A folder of pictures with captions in .txt files beside them.

What the walk passes by is counted: hidden files and folders, links to folders (which are not followed: one may lead
anywhere, or in a circle), folders that may not be read, files that are neither picture nor caption.
"""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from limner.data.pairs import IMAGE_ENDINGS, Pair, Source, cleaned, lines_are_captions, parted, sifted
from limner.data.sources.index import FOLDER, MAX_TEXT_BYTES
from limner.files import is_file_in, printable

HIDDEN, LINKED, CLOSED, OTHER, ALONE = (
    "hidden file or folder (passed by)",
    "link to a folder (not followed: copy it, or name the folder as a source of its own)",
    "folder that may not be read (its pictures are not counted)",
    "file that is neither picture nor caption (passed by)",
    "caption file without a picture",
)
HEIC = "HEIC picture (not read: save it as JPEG)"
UNREAD_TEXT = "caption file that cannot be read"
ABOUT = ("classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt", "README.txt", "LICENSE.txt")
"""Text files that are about the folder."""


def is_folder(path: str) -> bool:
    """Whether `path` is a folder. All other layouts in one are asked first."""
    return Path(path).is_dir()


def read_folder(path: str, *, needs_caption: bool) -> Source:
    """The pictures in a folder and in those inside it, each with the caption in its .txt file.

    The lines of that file are one caption, or, where dataset_type.txt says retrieval, a caption each.
    """
    skipped, noted = Counter[str](), Counter[str]()
    return sifted(Path(path), _pairs(Path(path), skipped, noted), skipped, noted, needs_caption=needs_caption)


def _pairs(folder: Path, skipped: Counter[str], noted: Counter[str]) -> Iterator[Pair]:
    in_lines = lines_are_captions(folder)
    for path in _images(folder, skipped, noted):
        if not is_file_in(folder, path):
            skipped["broken link, or one that leads out of the folder"] += 1
            continue
        texts = (path.with_suffix(suffix) for suffix in (".txt", ".TXT"))
        text = next((text for text in texts if is_file_in(folder, text)), None)
        captions = cleaned([_read_text(text, noted)], noted) if text else []
        captions = parted([caption for caption in captions if caption], noted, in_lines=in_lines)
        yield Pair(
            key=printable(path.relative_to(folder).as_posix()),
            path=path,
            offset=0,
            size=path.stat().st_size,
            captions=tuple(captions),
        )


def _images(folder: Path, skipped: Counter[str], noted: Counter[str]) -> Iterator[Path]:
    """The pictures in a folder and in those inside, sorted by the parts of their paths."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        noted[CLOSED] += 1
        return
    stems = {Path(entry.name).stem for entry in entries if Path(entry.name).suffix.lower() in IMAGE_ENDINGS}
    for entry in entries:
        name, ending = entry.name, Path(entry.name).suffix.lower()
        if name.startswith("."):
            noted[HIDDEN] += name not in (FOLDER, ".limn")
        elif _is_folder(entry):
            if entry.is_symlink():
                noted[LINKED] += 1
            else:
                yield from _images(folder / name, skipped, noted)
        elif ending in IMAGE_ENDINGS:
            yield folder / name
        elif ending in (".heic", ".heif"):
            skipped[HEIC] += 1
        elif ending == ".txt":
            noted[ALONE] += Path(name).stem not in stems and name not in ABOUT
        else:
            noted[OTHER] += 1


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links in a circle
        return False


def _read_text(path: Path, noted: Counter[str]) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_TEXT_BYTES + 1)
    except OSError:
        noted[UNREAD_TEXT] += 1
        return b""
    if len(content) <= MAX_TEXT_BYTES:
        return content
    noted[f"caption file over {MAX_TEXT_BYTES >> 20} MiB (not read)"] += 1
    return b""
