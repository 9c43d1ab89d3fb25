"""A folder of pictures with captions in .txt files beside them."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from limner.data.pairs import IMAGE_ENDINGS, Pair, Source, cleaned, sifted
from limner.data.sources.index import MAX_TEXT_BYTES
from limner.files import is_file_in, printable


def is_folder(path: str) -> bool:
    """Whether `path` is a folder. All other layouts in one are asked first."""
    return Path(path).is_dir()


def read_folder(path: str, *, needs_caption: bool) -> Source:
    """The pictures in a folder and in those inside it, each with the caption in its .txt file."""
    skipped, noted = Counter[str](), Counter[str]()
    return sifted(Path(path), _pairs(Path(path), skipped, noted), skipped, noted, needs_caption=needs_caption)


def _pairs(folder: Path, skipped: Counter[str], noted: Counter[str]) -> Iterator[Pair]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in IMAGE_ENDINGS or path.name.startswith("."):
            continue
        if not is_file_in(folder, path):
            skipped["broken link, or one that leads out of the folder"] += 1
            continue
        texts = (path.with_suffix(suffix) for suffix in (".txt", ".TXT"))
        text = next((text for text in texts if is_file_in(folder, text)), None)
        captions = cleaned([_read_text(text, noted)], noted) if text else []
        yield Pair(
            key=printable(path.relative_to(folder).as_posix()),
            path=path,
            offset=0,
            size=path.stat().st_size,
            captions=tuple(caption for caption in captions if caption),
        )


def _read_text(path: Path, noted: Counter[str]) -> bytes:
    with path.open("rb") as file:
        content = file.read(MAX_TEXT_BYTES + 1)
    if len(content) <= MAX_TEXT_BYTES:
        return content
    noted[f"caption file over {MAX_TEXT_BYTES >> 20} MiB (not read)"] += 1
    return b""
