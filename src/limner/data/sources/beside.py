"""What lies in a folder beside the shards, tables or list that are read in it, so that nothing in it is passed by in
silence: pictures, tables, tars and metadata lists that might be pairs as well, and links to folders."""

import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from limner.data.pairs import IMAGE_ENDINGS, is_hidden

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
TAR = r"\.(tar|tgz|tar\.(gz|bz2|xz|zst|lz4))$"
HEIC = "HEIC picture (not read: save it as JPEG)"
IMAGE, OTHER_TAR, OTHER_TABLE, OTHER_LIST, FOLDER_LINK = (
    "picture file that nothing that is read names (beside shards, tables or a list)",
    "tar file that is not read (in another folder, compressed, or .TAR)",
    "table that is not read (of another split, in another folder, or .PARQUET)",
    "metadata list that is not read (beside another one, or in another folder)",
    "link to a folder (not followed)",
)


def passed_by(folder: Path, is_read: Callable[[Path], bool]) -> Counter[str]:
    """The files below `folder` that may hold pairs and are not read, and links to folders, by kind; hidden ones do not
    count."""
    found = Counter[str]()
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not is_hidden(name)]
        found[FOLDER_LINK] += sum(Path(place, name).is_symlink() for name in folders)
        for name in files:
            kind = None if is_hidden(name) else _kind(name)
            if kind is not None:
                found[kind] += not is_read(Path(place, name))
    return +found


def _kind(name: str) -> str | None:
    """What a file that is not read is called, by its name; None if no pair can be in it."""
    ending = Path(name).suffix.lower()
    if name.lower() in METADATA:
        return OTHER_LIST
    if ending in IMAGE_ENDINGS:
        return IMAGE
    if ending == ".parquet" or (ending == ".arrow" and not name.startswith("cache-")):  # datasets' own
        return OTHER_TABLE
    if ending in (".heic", ".heif"):
        return HEIC
    return OTHER_TAR if re.search(TAR, name, re.IGNORECASE) else None
