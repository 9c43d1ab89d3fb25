"""Writing files so that an interruption or a full disk never damages what was there before."""

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from limner.errors import ConfigError, StorageError

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How a file begins that stands for one in another place, until `git lfs pull` has fetched that."""


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes the name `path` only when it was written whole and is on the disk.

    If anything fails, a full disk say, the temporary file goes away and whatever was at `path` stays.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as file:  # never through a link that somebody put there
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise StorageError(
            f"The file {path}",
            must="be written whole",
            got=error.strerror or str(error),
            then="Nothing that was there before has changed; make room or choose another folder, then run it again.",
        ) from error
    finally:
        with suppress(OSError):  # there is nothing to clean up where no file could be made
            temporary.unlink()


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all."""
    with replacing(path) as file:
        file.write(content)


def write_text(path: Path, content: str) -> None:
    """Write `content` to `path` as UTF-8, whole or not at all; bytes of a file's name that are none are replaced."""
    write_bytes(path, content.encode("utf-8", "surrogateescape").decode("utf-8", "replace").encode())


def printable(name: str) -> str:
    """A file's name as text that can be written, another one for each name: a byte that is not UTF-8 becomes \\xe9."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def places_of(folder: Path) -> tuple[Path, ...]:
    """Where the links in `folder` may lead to: into itself, and into the cache of whatever fetched it.

    A snapshot of the Hugging Face hub links into the blobs beside all snapshots, DVC and git-annex into a folder of the
    repository around it.
    """
    here = folder.resolve()
    around = (here, *here.parents)
    caches = [
        *(parent.parent / "blobs" for parent in around if parent.name == "snapshots"),
        *(parent / cache for parent in around for cache in (".git/annex/objects", ".dvc/cache")),
    ]
    return (here, *(cache.resolve() for cache in caches if cache.is_dir()))


def is_file_in(places: Sequence[Path], path: Path) -> bool:
    """Whether `path`, links followed, is a file inside one of `places`, whose own links were followed before."""
    try:
        resolved = path.resolve()
        return path.is_file() and any(resolved.is_relative_to(place) for place in places)
    except (OSError, ValueError, RuntimeError):  # too long a name, a NUL in it, links in a circle
        return False


def sha256_of(path: Path) -> str:
    """The sha256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """The values of a JSON file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"The file {path}", must="exist", got="no such file", then="Check the path of the run or the model."
        ) from None
    except ValueError as error:
        raise ConfigError(f"The file {path}", must="hold JSON", got=error, then="Write it anew.") from error


def write_json(path: Path, values: Any) -> None:
    """Write `values` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
