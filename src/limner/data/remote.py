"""Files elsewhere: any fsspec address (`s3://`, `hf://`, `memory://`, ...) as a local file in a bounded cache.

```
address ─> fetched whole, hashed on the way, size checked ─> $LIMNER_CACHE/fetched/HASH-NAME ─> opened
```

The cache holds at most $LIMNER_CACHE_GB gigabytes (20 if it is not set), or what is in use at once if that is more; at
each fetch, the files that were not used for longest go first. Locks of the operating system (flock) say what is in
use, to threads and processes alike: an address is fetched once although several want it, a file that is open or being
written is not deleted, and what a killed process leaves behind is. An address names one content for as long as it is
in the cache.
"""

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

from limner.errors import ConfigError, DataError, LimnerError, StorageError
from limner.files import printable, replacing

MAX_FILE_BYTES = 16 * 2**30
BLOCK_BYTES = 8 * 2**20
"""Read at a time."""
AGAIN = (0.5, 2.0, 8.0)
"""Seconds after which a fetch that failed is tried again."""
PARTIAL_SECONDS = 60
"""A file that is being written, and not locked, is left alone for so long."""
# fmt: off
REFUSED = frozenset((
    "arrow_hdfs", "async_wrapper", "asyncwrapper", "blockcache", "cached", "dask", "data", "dir", "dvc", "filecache",
    "generic", "gist", "git", "github", "jlab", "jupyter", "libarchive", "pyscript", "reference", "simplecache",
    "tar", "zip",
))
# fmt: on
"""Protocols that unpack files, run programs or lead on to further addresses."""
PACKAGES = {
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), "adlfs"),
    **dict.fromkeys(("http", "https"), "aiohttp"),
    **dict.fromkeys(("ssh", "sftp"), "paramiko"),
    **dict.fromkeys(("oci", "ocilake"), "ocifs"),
    "oss": "ossfs",
    "smb": "smbprotocol",
    "webdav": "webdav4",
}
"""What fsspec needs for a protocol, as pip names it."""
T = TypeVar("T")
_expected: dict[str, str] = {}
_last_fetched = [0.0]


def cache_folder() -> Path:
    """Where limner keeps what can be made or fetched again: $LIMNER_CACHE, else limner in the user's cache folder.

    It need not be there, nor be one that can be written. Raises `StorageError` where there is no home folder.
    """
    try:
        if own := os.environ.get("LIMNER_CACHE") or os.environ.get("LIMN_CACHE"):
            return Path(own).expanduser()
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:  # nobody knows the user's
        raise StorageError(
            "The home folder", must="be known, for the cache", got=error, then="Set LIMNER_CACHE to a folder."
        ) from error
    before = caches / "limn"  # as the project was called; one that is there is used on
    # os.path's functions say no where a folder on the way may not be looked into
    return before if os.path.isdir(before) and not os.path.exists(caches / "limner") else caches / "limner"  # noqa: PTH110, PTH112


def name_of(path: Path | str) -> str:
    """The last part of a path or address."""
    return printable(path.name) if isinstance(path, Path) else path.rstrip("/").rpartition("/")[2]


def is_address(path: str) -> bool:
    """Whether `path` is an address of fsspec's, `protocol://...`, and no local path."""
    return "://" in path


@contextmanager
def local(path: Path | str) -> Iterator[IO[bytes]]:
    """The file at `path`, opened; one that is elsewhere is fetched first, whole, and stays while it is open.

    Raises `DataError` for an address that cannot be fetched.
    """
    with path.open("rb") if isinstance(path, Path) else _open(path) as file:
        yield file


def expect(address: str, sha256: str) -> None:
    """From now on, a fetch of `address` fails unless its content has this sha256."""
    _expected[address] = sha256


def listing(address: str) -> list[str]:
    """The shards at an address: itself, if it ends in .tar, else the .tar files in that folder, sorted.

    Raises `DataError` if there is none.
    """
    if address.endswith(".tar"):  # thousands of them may be named by one pattern: not a request for each
        return [address]
    names = _tried(address, lambda: _names_in(address))
    shards = sorted({name for name in map(name_of, names) if name.endswith(".tar")})
    if not shards:
        raise DataError(
            f"The folder {address}",
            must="hold .tar shards",
            got="none",
            then="Lists and tables are read from a disk: fetch them there first.",
        )
    # a page that lists files may link to others: the names alone are taken from it, and its own address
    return [f"{address.rstrip('/')}/{name}" for name in shards]


def content_of(address: str, most: int) -> bytes | None:
    """A small file's content; None where it cannot be had, or has more than `most` bytes. Tried once."""
    try:
        system, path = _file_system(address)
        with system.open(path, "rb") as file:
            content = file.read(most + 1)
    except Exception:  # each file system has errors of its own for what is not there
        return None
    return content if len(content) <= most else None


def last_fetched() -> float:
    """When something came from elsewhere last, by time.monotonic()."""
    return _last_fetched[0]


def size_of(address: str) -> int | None:
    """The bytes of the file at an address, as stated there; None if that does not say."""
    return _tried(address, lambda: _stated_size(*_file_system(address)))


# --- the cache -------------------------------------------------------------------------------------------------------


def _open(address: str) -> IO[bytes]:
    """The file in the cache, locked against being deleted; fetched if it is not there."""
    number = hashlib.sha256(address.encode()).hexdigest()[:32]
    place = cache_folder() / "fetched" / f"{number}-{re.sub(r'[^A-Za-z0-9._-]', '_', name_of(address))[-100:]}"
    file = _kept(place)
    if file is None:
        with _alone(place):
            file = _kept(place) or _tried(address, lambda: _fetch(address, place))
    return file


def _kept(place: Path) -> IO[bytes] | None:
    try:
        file = place.open("rb")
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    fcntl.flock(file, fcntl.LOCK_SH)
    if os.fstat(file.fileno()).st_nlink == 0:  # deleted between these two lines
        file.close()
        return None
    with suppress(OSError):  # a cache that is read only has no order of use
        os.utime(file.fileno())
    return file


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """One thread of one process at a time, for each place; 4,096 locks serve all places."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = (place.parent / f".lock-{place.name[:3]}").open("ab")
    except OSError as error:
        raise StorageError(
            f"The cache folder {place.parent}",
            must="be one that can be written",
            got=error.strerror or error,
            then="Name another one with LIMNER_CACHE=FOLDER.",
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make_room(folder: Path) -> None:
    """Delete what was not used for longest, until the files of the cache are no more than they may be."""
    files = []
    for file in folder.iterdir():
        with suppress(OSError):  # gone by now
            if not file.name.startswith(".lock-"):
                status = file.stat()
                files.append((status.st_mtime, status.st_size, file))
    too_many = sum(size for _, size, _ in files) - _limit()
    for used, size, file in sorted(files):
        if too_many <= 0:
            break
        is_fresh = file.name.endswith(".partial") and time.time() - used < PARTIAL_SECONDS
        if not is_fresh and _is_deleted(file):
            too_many -= size


def _is_deleted(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails if it is in use
            if os.fstat(opened.fileno()).st_nlink:
                file.unlink()
    except OSError:
        return False
    return True


def _limit() -> float:
    """Bytes that the cache may hold."""
    told = os.environ.get("LIMNER_CACHE_GB") or os.environ.get("LIMN_CACHE_GB") or "20"
    with suppress(ValueError):
        if 0 < (gigabytes := float(told)) < float("inf"):
            return gigabytes * 1e9
    raise ConfigError(
        "The environment variable LIMNER_CACHE_GB", must="be a positive number", got=told, then="Give gigabytes: 20."
    )


# --- file systems ----------------------------------------------------------------------------------------------------


class Unfetched(Exception):
    """A fetch that did not go well; another may."""


def _fetch(address: str, place: Path) -> IO[bytes]:
    """Write the file at an address to its place in the cache; returns it, opened and locked."""
    system, path = _file_system(address)
    stated = _stated_size(system, path)
    if stated is not None and stated > MAX_FILE_BYTES:
        raise _too_large(address, f"{stated:,}")
    digest, count, kept = hashlib.sha256(), 0, None
    try:
        with system.open(path, "rb") as source, replacing(place) as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            file.truncate(stated or 0)  # so that others who make room know what is to come
            _make_room(place.parent)
            for block in _blocks(source):
                count += len(block)
                if stated is not None and count > stated:
                    raise Unfetched(f"more than the {stated:,} bytes stated")
                if count > MAX_FILE_BYTES:
                    raise _too_large(address, "more")
                digest.update(block)
                file.write(block)
            if stated is not None and count < stated:
                raise Unfetched(f"{count:,} of {stated:,} bytes")
            if _expected.get(address, digest.hexdigest()) != digest.hexdigest():
                raise Unfetched(
                    f"another content (sha256 {digest.hexdigest()[:12]}...) than its index is of; if it was "
                    f"replaced, delete {cache_folder()}"
                )
            temporary = file.name  # opened by the name that it has now, and known by the one that it will have
            kept = open(place, "rb", opener=lambda _, flags: os.open(temporary, flags))  # noqa: SIM115
            fcntl.flock(kept, fcntl.LOCK_SH)
    except BaseException:
        if kept is not None:
            kept.close()
        raise
    return kept


def _blocks(source: Any) -> Iterator[bytes]:
    while True:
        try:
            block = source.read(BLOCK_BYTES)
        except Exception as error:  # not to be taken for one of writing
            raise Unfetched(_described(error)) from error
        if not block:
            return
        _last_fetched[0] = time.monotonic()
        yield block


def _too_large(address: str, got: str) -> DataError:
    return DataError(
        f"The file {address}",
        must=f"have at most {MAX_FILE_BYTES:,} bytes",
        got=got,
        then="Write its pairs as several shards.",
    )


def _file_system(address: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path in it."""
    import fsspec

    protocol = address.partition("://")[0]
    if protocol in REFUSED or not re.fullmatch(r"[A-Za-z0-9+._-]+", protocol) or "::" in address:
        raise DataError(
            f"The address {address}",
            must="name files",
            got=f"{protocol}://, which unpacks, runs or leads on to something",
            then="Give an address such as s3://bucket/{00000..00099}.tar.",
        )
    try:
        fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:
        package = PACKAGES.get(protocol)
        raise DataError(
            f"The address {address}",
            must="have a protocol that fsspec and the packages installed know",
            got=str(error).rstrip("."),
            then=f"Run: pip install {package}" if package else "Check its spelling.",
        ) from error
    return fsspec.core.url_to_fs(address)


def _stated_size(system: Any, path: str) -> int | None:
    size = system.info(path).get("size")
    return size if isinstance(size, int) and size >= 0 else None


def _names_in(address: str) -> list[str]:
    system, path = _file_system(address)
    return [str(name) for name in system.ls(path, detail=False)]


def _tried(address: str, attempt: Callable[[], T]) -> T:
    """What `attempt` gives. One that fails is made again a few times, unless there is nothing to be fetched."""
    for seconds in (*AGAIN, None):
        try:
            return attempt()
        except LimnerError:
            raise
        except Exception as error:  # each file system has errors of its own
            is_final = isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError)
            if is_final or seconds is None:
                raise DataError(
                    f"The address {address}",
                    must="be one that can be fetched",
                    got=_described(error),
                    then="Check the address, the network and what you log in with there.",
                ) from error
            time.sleep(seconds)
    raise AssertionError("the last attempt returns or raises")


def _described(error: Exception) -> str:
    if isinstance(error, Unfetched):
        return str(error)
    return f"{type(error).__name__}: {error}"[:300]
