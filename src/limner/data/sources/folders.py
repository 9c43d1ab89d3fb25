"""A folder of pictures with captions in .txt files beside them.

What the walk passes by is counted: hidden files and folders, folders that may not be read, files that are neither
picture nor caption. Links to folders are followed, wherever they lead, after all that is really there was read, each
folder once; links to the folders around the one that is read are not. Links to files are followed inside the folder,
and into the cache of whatever fetched it (`files.places_of`).
"""

import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from limner.data.pairs import IMAGE_ENDINGS, Pair, Source, cleaned, is_hidden, lines_are_captions, parted, sifted
from limner.data.sources.beside import HEIC
from limner.data.sources.index import FOLDER, MAX_TEXT_BYTES
from limner.files import is_file_in, places_of, printable

HIDDEN, LINKED, CLOSED, OTHER, ALONE = (
    "hidden file or folder (passed by)",
    "link to a folder that is read already, or is around this one (not followed)",
    "folder that may not be read (its pictures are not counted)",
    "file that is neither picture nor caption (passed by)",
    "caption file without a picture",
)
LEADS_OUT = "broken link, or one that leads out of the folder"
UNREACHED = "picture in a folder that may not be entered"
NO_FILE = "pipe, socket or device that is named as a picture"
UNREAD_TEXT = "caption file that cannot be read"
ABOUT = (
    *("classnames.txt", "classnames.csv", "zeroshot_classification_templates.txt", "dataset_type.txt"),
    *("README.txt", "LICENSE.txt"),
)
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
    for image, text, places in _images(folder, skipped, noted):
        if not _is_there(image, places):
            skipped[LEADS_OUT if image.is_symlink() else UNREACHED if _is_closed(image) else NO_FILE] += 1
            continue
        content = _read_text(text, noted) if text is not None and _is_there(text, places) else b""
        noted[UNREAD_TEXT] += text is not None and not _is_there(text, places)
        captions = [caption for caption in cleaned([content], noted, most=MAX_TEXT_BYTES) if caption]
        yield Pair(
            key=printable(image.relative_to(folder).as_posix()),
            path=image,
            offset=0,
            size=image.stat().st_size,
            captions=tuple(parted(captions, noted, in_lines=in_lines)),
        )


def _is_there(path: Path, places: Sequence[Path]) -> bool:
    """Whether a file that the walk came to is one: itself, or, if it is a link, in one of the `places`."""
    try:
        return is_file_in(places, path) if path.is_symlink() else path.is_file()
    except OSError:  # a folder that may be listed, but not entered
        return False


def _is_closed(path: Path) -> bool:
    """Whether nothing can be said of a file, for its folder may not be entered."""
    try:
        path.lstat()
    except OSError:
        return True
    return False


def _images(
    folder: Path, skipped: Counter[str], noted: Counter[str]
) -> Iterator[tuple[Path, Path | None, Sequence[Path]]]:
    """The pictures below a folder, their caption files, and where links among both may lead to: first those that are
    really there, sorted by the parts of their paths, then those behind links to folders, link by link."""
    entered = {_identity(around) for around in folder.resolve().parents}
    folders, places = deque([folder]), list[Path]()
    while folders:
        root = folders.popleft()
        places += places_of(root)
        waiting = _entries(root, entered, noted)
        while waiting:
            entry, text = waiting.pop()
            if not _is_folder(entry):
                if Path(entry.name).suffix.lower() in IMAGE_ENDINGS:
                    yield Path(entry.path), text, places
                elif Path(entry.name).suffix.lower() in (".heic", ".heif"):
                    skipped[HEIC] += 1
                else:
                    noted[OTHER] += entry.name not in ABOUT
            elif entry.is_symlink():
                folders.append(Path(entry.path))
            else:
                waiting += _entries(Path(entry.path), entered, noted)


def _entries(
    folder: Path, entered: set[tuple[int, int]], noted: Counter[str]
) -> list[tuple[os.DirEntry[str], Path | None]]:
    """What is in a folder, but for hidden and caption files, and the caption file of each, the last name first;
    nothing if it was `entered` before. Caption files are there for all of their name: a.txt for a.png and a.jpg."""
    try:
        if _identity(folder) in entered:
            noted[LINKED] += 1
            return []
        found = sorted(os.scandir(folder), key=lambda entry: entry.name, reverse=True)
        entered.add(_identity(folder))
    except OSError:
        noted[CLOSED] += 1
        return []
    shown = [entry for entry in found if not is_hidden(entry.name)]
    noted[HIDDEN] += sum(is_hidden(entry.name) and entry.name != FOLDER for entry in found)
    texts, others = dict[str, Path](), list[os.DirEntry[str]]()
    for entry in shown:
        name = Path(entry.name)
        if name.suffix.lower() != ".txt" or _is_folder(entry):
            others.append(entry)
        elif texts.setdefault(name.stem, Path(entry.path)).name != name.name:
            noted[ALONE] += 1  # a.TXT beside a.txt
    files = (Path(entry.name) for entry in others if not _is_folder(entry))
    stems = {name.stem for name in files if name.suffix.lower() in IMAGE_ENDINGS}
    noted[ALONE] += sum(text.name not in ABOUT for stem, text in texts.items() if stem not in stems)
    return [(entry, texts.get(Path(entry.name).stem)) for entry in others]


def _identity(folder: Path) -> tuple[int, int]:
    """What a folder is known by, whatever its name: device and inode."""
    found = folder.stat()
    return found.st_dev, found.st_ino


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
