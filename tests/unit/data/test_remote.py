import hashlib
import io
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from helpers.tars import pairs, tar
from limner.data import remote
from limner.data.remote import cache_folder, content_of, expect, listing, local, size_of
from limner.data.sources import index
from limner.data.sources.read import absolute, read_pairs
from limner.errors import ConfigError, DataError, StorageError
from limner.files import sha256_of


class Odd(MemoryFileSystem):
    """A file system whose faults a test sets, and which counts what is read from it."""

    protocol = "odd"
    store: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]
    pseudo_dirs: ClassVar[list[str]] = [""]
    opened: ClassVar[Counter[str]] = Counter()
    failures: ClassVar[Iterator[Exception]] = iter(())
    lie: ClassVar[int | None] = 0
    """Added to the sizes that it states; None: it states none."""
    barrier: ClassVar[threading.Barrier | None] = None

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("odd://", "memory://"))

    def _open(self, path: str, mode: str = "rb", **settings: Any) -> Any:  # type: ignore[override]
        if mode == "rb":
            Odd.opened[path] += 1
            if Odd.barrier:
                Odd.barrier.wait(10)
            if error := next(Odd.failures, None):
                raise error
        return super()._open(path, mode, **settings)

    def info(self, path: str, **settings: Any) -> dict[str, Any]:
        told = super().info(path, **settings)
        return {**told, "size": told["size"] + Odd.lie if Odd.lie is not None else None}


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LIMNER_CACHE_GB", raising=False)
    monkeypatch.setattr(remote, "AGAIN", (0.0, 0.0))
    monkeypatch.setattr(remote, "_expected", {})
    fsspec.register_implementation("odd", Odd, clobber=True)
    yield
    Odd.store.clear()
    Odd.opened.clear()
    Odd.failures, Odd.lie, Odd.barrier = iter(()), 0, None
    MemoryFileSystem.store.clear()
    index._indexes.clear()


def put(address: str, content: bytes) -> str:
    with fsspec.open(address, "wb") as file:
        file.write(content)  # type: ignore[union-attr]
    return address


def get(address: str) -> bytes:
    with local(address) as file:
        return file.read()


def kept(tmp_path: Path) -> set[str]:
    return {file.name.partition("-")[2] for file in (tmp_path / "cache" / "fetched").glob("[!.]*")}


# --- fetching --------------------------------------------------------------------------------------------------------


def test_a_file_is_fetched_once_and_has_a_local_name(tmp_path: Path):
    address = put("odd://bucket/a b/00000.tar", b"content")
    for _ in range(3):
        with local(address) as file:
            assert file.read() == b"content"
            assert Path(file.name).read_bytes() == b"content" and Path(file.name).is_relative_to(tmp_path / "cache")
    assert Odd.opened == {"/bucket/a b/00000.tar": 1} and kept(tmp_path) == {"00000.tar"}
    assert not list((tmp_path / "cache" / "fetched").glob(".0*.partial"))


def test_files_of_the_same_name_are_told_apart():
    assert get(put("odd://a/0.tar", b"one")) == b"one" and get(put("odd://b/0.tar", b"two")) == b"two"


def test_names_cannot_lead_out_of_the_cache(tmp_path: Path):
    assert get(put("odd://a/..%2f..\\x\n", b"x")) == b"x"
    assert kept(tmp_path) == {".._2f.._x_"}
    assert get(put("odd://a/" + "x" * 300, b"x")) == b"x"


def test_threads_that_want_one_file_fetch_it_once():
    address = put("odd://bucket/0.tar", os.urandom(2**20))
    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(get, [address] * 32))) == 1
    assert Odd.opened.total() == 1


def test_threads_that_want_several_files_fetch_them_side_by_side():
    addresses = [put(f"odd://bucket/{number}.tar", bytes([number])) for number in range(3)]
    Odd.barrier = threading.Barrier(3)  # passed only when all three are being fetched
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(get, addresses)) == [b"\0", b"\1", b"\2"]


def test_processes_that_want_one_file_fetch_it_once(tmp_path: Path):
    address = put("odd://bucket/0.tar", b"content")
    get(address)
    (place,) = (tmp_path / "cache" / "fetched").glob("[!.]*")
    place.unlink()
    other = f"""
import pathlib, sys, time
from limner.data.remote import _alone
place = pathlib.Path({str(place)!r})
with _alone(place):  # in the middle of its fetch
    print("ready", flush=True)
    time.sleep(0.3)
    place.write_bytes(b"content")
"""
    with subprocess.Popen([sys.executable, "-c", other], stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"ready\n"
        assert get(address) == b"content" and Odd.opened.total() == 1


# --- room ------------------------------------------------------------------------------------------------------------


def used(tmp_path: Path, name: str, seconds: int) -> None:
    (file,) = (tmp_path / "cache" / "fetched").glob(f"*-{name}")
    os.utime(file, (seconds, seconds))


def test_files_that_were_not_used_for_longest_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LIMNER_CACHE_GB", "3e-6")
    for number, name in enumerate("abc"):
        get(put(f"odd://x/{name}", bytes(1000)))
        used(tmp_path, name, number)
    get("odd://x/a")  # and so b is the oldest
    get(put("odd://x/d", bytes(1000)))
    assert kept(tmp_path) == {"a", "c", "d"}
    assert get("odd://x/b") == bytes(1000) and Odd.opened["/x/b"] == 2
    assert kept(tmp_path) == {"a", "b", "d"}
    assert get(put("odd://x/large", bytes(9000))) == bytes(9000)  # larger than all of the cache
    assert kept(tmp_path) == {"large"}


def test_files_in_use_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LIMNER_CACHE_GB", "1e-6")
    with local(put("odd://x/a", bytes(1000))) as file:
        get(put("odd://x/b", bytes(1000)))
        assert kept(tmp_path) == {"a", "b"} and Path(file.name).exists()
    get(put("odd://x/c", bytes(1000)))
    assert kept(tmp_path) == {"c"}


def test_what_a_killed_process_left_is_deleted_and_what_is_being_written_is_not(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("LIMNER_CACHE_GB", "1e-6")
    folder = tmp_path / "cache" / "fetched"
    folder.mkdir(parents=True)
    old, new = folder / ".x-a.1.partial", folder / ".x-b.2.partial"
    for file in (old, new):
        file.write_bytes(bytes(1000))
    os.utime(old, (1, 1))
    get(put("odd://x/c", bytes(1000)))
    assert not old.exists() and new.exists()


def test_threads_in_a_cache_that_is_too_small(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LIMNER_CACHE_GB", "2e-6")
    contents = {put(f"odd://x/{number}", bytes([number]) * 1000): bytes([number]) * 1000 for number in range(6)}

    def check(address: str) -> bool:
        with local(address) as file:
            return file.read() == Path(file.name).read_bytes() == contents[address]

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(check, list(contents) * 20))
    assert Odd.opened.total() >= 6


@pytest.mark.parametrize("told", ["0", "-1", "many", "nan", "inf"])
def test_the_size_of_the_cache_is_a_number(told: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LIMNER_CACHE_GB", told)
    with pytest.raises(ConfigError, match="LIMNER_CACHE_GB must be a positive number"):
        get(put("odd://x/a", b"x"))


def test_a_cache_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(StorageError, match="Name another one with LIMNER_CACHE=FOLDER"):
        get(put("odd://x/a", b"x"))


def test_a_cache_that_may_not_be_looked_into_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refusing(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Path, "open", refusing)
    told = r"Got Permission denied. Name another one with LIMNER_CACHE=FOLDER"
    with pytest.raises(StorageError, match=told), local("memory://bucket/0.tar"):
        pass


def test_where_the_cache_folder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LIMNER_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.setenv("LIMNER_CACHE", "")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "limner"

    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", staticmethod(nobody))
    with pytest.raises(StorageError, match="Set LIMNER_CACHE to a folder"):
        cache_folder()


def test_the_cache_folder_of_the_projects_old_name_is_used_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LIMNER_CACHE")
    monkeypatch.delenv("LIMN_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert cache_folder() == tmp_path / "caches" / "limner"
    (tmp_path / "caches" / "limn").mkdir(parents=True)
    assert cache_folder() == tmp_path / "caches" / "limn"
    (tmp_path / "caches" / "limner").mkdir()
    assert cache_folder() == tmp_path / "caches" / "limner"
    monkeypatch.setenv("LIMN_CACHE", str(tmp_path / "old"))
    assert cache_folder() == tmp_path / "old"
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path / "new"))
    assert cache_folder() == tmp_path / "new"


def test_the_size_of_the_cache_may_have_the_old_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LIMN_CACHE_GB", "1e-6")
    for name in "ab":
        get(put(f"odd://x/{name}", bytes(1000)))
    assert len(kept(tmp_path)) == 1


# --- faults ----------------------------------------------------------------------------------------------------------


def test_a_fetch_that_fails_is_tried_again():
    address = put("odd://x/a", b"content")
    Odd.failures = iter([ConnectionResetError("reset by peer"), RuntimeError("503")])
    assert get(address) == b"content" and Odd.opened.total() == 3


def test_a_fetch_that_always_fails(tmp_path: Path):
    address = put("odd://x/a", b"content")
    Odd.failures = iter([TimeoutError("no answer")] * 9)
    message = r"The address odd://x/a must be one that can be fetched\. Got TimeoutError: no answer\. Check the address"
    with pytest.raises(DataError, match=message):
        get(address)
    assert Odd.opened.total() == 3 and kept(tmp_path) == set()


@pytest.mark.parametrize("error", [FileNotFoundError("x"), PermissionError("no key")])
def test_what_is_not_there_or_not_allowed_is_not_asked_for_again(error: Exception):
    address = put("odd://x/a", b"content")
    Odd.failures = iter([error] * 9)
    with pytest.raises(DataError, match=type(error).__name__):
        get(address)
    assert Odd.opened.total() == 1


def test_a_connection_that_breaks_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    address = put("odd://x/a", bytes(1000))
    monkeypatch.setattr(remote, "BLOCK_BYTES", 100)
    reads = iter([bytes(100), OSError("broken pipe")] * 9)

    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if isinstance(block := next(reads), OSError):
                raise block
            return block

    monkeypatch.setattr(Odd, "open", lambda *_: Broken())
    with pytest.raises(DataError, match="OSError: broken pipe"):  # not a StorageError: the disk is fine
        get(address)
    assert kept(tmp_path) == set()


@pytest.mark.parametrize(("lie", "got"), [(5, "7 of 12 bytes"), (-3, "more than the 4 bytes stated")])
def test_sizes_that_lie(lie: int, got: str, tmp_path: Path):
    address = put("odd://x/a", b"content")
    Odd.lie = lie
    with pytest.raises(DataError, match=got):
        get(address)
    assert kept(tmp_path) == set() and size_of(address) == 7 + lie


def test_files_without_a_stated_size(monkeypatch: pytest.MonkeyPatch):
    Odd.lie = None
    assert get(put("odd://x/a", b"content")) == b"content" and size_of("odd://x/a") is None
    monkeypatch.setattr(remote, "MAX_FILE_BYTES", 6)
    with pytest.raises(DataError, match=r"must have at most 6 bytes\. Got more"):
        get(put("odd://x/b", b"content"))


def test_files_that_are_too_large(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote, "MAX_FILE_BYTES", 6)
    with pytest.raises(DataError, match=r"must have at most 6 bytes\. Got 7"):
        get(put("odd://x/a", b"content"))


def test_the_content_that_is_expected():
    address = put("odd://x/a", b"content")
    expect(address, hashlib.sha256(b"content").hexdigest())
    assert get(address) == b"content"
    expect(put("odd://x/b", b"other"), hashlib.sha256(b"content").hexdigest())
    with pytest.raises(DataError, match="another content"):
        get("odd://x/b")


@pytest.mark.parametrize(
    "address",
    [
        "zip://a.tar",
        "tar://a.tar",
        "github://org:repo@/a.tar",
        "simplecache://x/a.tar",
        "zip://a.tar::memory://x.zip",
        "memory://a.tar::zip://x.zip",
        "reference://x/a.tar",
        "pipe:cat x://a.tar",
    ],
)
def test_protocols_that_unpack_or_run(address: str):
    with pytest.raises(DataError, match="must name files"):
        get(address)


def test_protocols_without_their_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(DataError, match=r"The address s3://x/a\.tar must .* Run: pip install s3fs"):
        read_pairs("s3://x/a.tar")
    with pytest.raises(DataError, match="Check its spelling"):
        get("s4://x/a.tar")


def test_local_files_are_not_fetched(tmp_path: Path):
    with local(Path(__file__)) as file:
        assert file.name == str(Path(__file__))
    assert not (tmp_path / "cache").exists()


# --- folders and small files -----------------------------------------------------------------------------------------


def test_listing():
    for name in ("00001.tar", "00000.tar", "00000.parquet", "inner/00002.tar", "notes"):
        put(f"odd://bucket/set/{name}", b"x")
    shards = ["odd://bucket/set/00000.tar", "odd://bucket/set/00001.tar"]
    assert listing("odd://bucket/set") == listing("odd://bucket/set/") == shards
    assert listing("odd://nowhere/x.tar") == ["odd://nowhere/x.tar"]  # without a request
    for address in ("odd://bucket/set/inner/../x", "odd://bucket/set/notes"):
        with pytest.raises(DataError):
            listing(address)


def test_small_files():
    address = put("odd://x/a", b"content")
    assert content_of(address, 7) == b"content" and content_of(address, 6) is None
    assert content_of("odd://x/gone", 7) is None
    Odd.failures = iter([RuntimeError("403")])
    assert content_of(address, 7) is None


# --- shards elsewhere ------------------------------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path: Path, picture: Callable[..., bytes]) -> Path:
    """A folder of two shards that is also at odd://bucket/set, without indexes."""
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(2):
        path = tar(folder / f"0000{number}.tar", pairs(picture, number * 5, 5))
        put(f"odd://bucket/set/{path.name}", path.read_bytes())
    return folder


@pytest.mark.parametrize("address", ["odd://bucket/set", "odd://bucket/set/{00000..00001}.tar"])
def test_shards_elsewhere_are_as_those_here(shards: Path, address: str):
    there, here = read_pairs(address), read_pairs(shards)
    assert there.fingerprint == here.fingerprint and absolute(address) == address
    assert [(p.key, p.captions, p.read()) for p in there] == [(p.key, p.captions, p.read()) for p in here]
    assert Odd.opened["/bucket/set/00000.tar"] == 1


def test_file_addresses_are_paths(shards: Path, tmp_path: Path):
    assert len(read_pairs(f"file://{shards}")) == 10
    assert not (tmp_path / "cache").exists() and (shards / ".limner" / "00000.tar.index").exists()


def publish_indexes(shards: Path) -> None:
    read_pairs(shards)
    for file in (shards / ".limner").iterdir():
        put(f"odd://bucket/set/.limner/{file.name}", file.read_bytes())


def test_an_index_beside_a_shard_is_fetched_instead_of_it(shards: Path):
    publish_indexes(shards)
    source = read_pairs("odd://bucket/set")
    assert source.fingerprint == read_pairs(shards).fingerprint
    assert set(Odd.opened) == {f"/bucket/set/.limner/0000{number}.tar.index" for number in range(2)}
    assert source[3].read() == read_pairs(shards)[3].read()
    assert Odd.opened["/bucket/set/00000.tar"] == 1 and Odd.opened["/bucket/set/00001.tar"] == 0
    read_pairs("odd://bucket/set")  # by the index in the cache
    assert Odd.opened["/bucket/set/.limner/00000.tar.index"] == 1


def test_a_shard_must_be_the_one_that_its_index_is_of(shards: Path):
    publish_indexes(shards)
    content = bytearray((shards / "00000.tar").read_bytes())
    content[600] ^= 1
    put("odd://bucket/set/00000.tar", bytes(content))
    with pytest.raises(DataError, match="another content"):
        read_pairs("odd://bucket/set")[0].read()


def damaged(file: Path, damage: str) -> bytes:
    found = index._load(file)
    arrays = dict(found.arrays)
    if damage == "of another size":
        found = index.Index(found.sha256, found.size + 1, {}, {}, arrays)
    elif damage == "offsets outside":
        arrays["picture_offsets"] = arrays["picture_offsets"] + 10**9
    elif damage == "negative offsets":
        arrays["picture_offsets"] = arrays["picture_offsets"] - 10**9
    elif damage == "ends outside":
        arrays["caption_ends"] = arrays["caption_ends"] + 10**9
    elif damage == "no UTF-8":
        arrays["captions"] = arrays["captions"] | 0x80
    elif damage == "an array missing":
        del arrays["labels"]
    elif damage == "arrays of several lengths":
        arrays["picture_sizes"] = arrays["picture_sizes"][:-1]
    elif damage == "floats":
        arrays["first_captions"] = arrays["first_captions"].astype(float)
    else:
        return file.read_bytes()[:-7]
    copy = file.with_name("copy.index")
    index.write_bytes(
        copy,
        index.save(
            arrays,
            metadata={
                "format": index.FORMAT,
                "told": index.json.dumps(
                    {"sha256": found.sha256, "size": found.size, "skipped": found.skipped, "noted": found.noted}
                ),
            },
        ),
    )
    return copy.read_bytes()


@pytest.mark.parametrize(
    "damage",
    [
        "of another size",
        "offsets outside",
        "negative offsets",
        "ends outside",
        "no UTF-8",
        "an array missing",
        "arrays of several lengths",
        "floats",
        "cut short",
    ],
)
def test_an_index_elsewhere_that_does_not_fit_is_not_used(shards: Path, damage: str):
    publish_indexes(shards)
    put("odd://bucket/set/.limner/00001.tar.index", damaged(shards / ".limner" / "00001.tar.index", damage))
    source = read_pairs("odd://bucket/set")
    assert source.fingerprint == read_pairs(shards).fingerprint
    assert Odd.opened["/bucket/set/00001.tar"] == 1 and Odd.opened["/bucket/set/00000.tar"] == 0


def test_memory_addresses(shards: Path, picture: Callable[..., bytes]):
    put("memory://set/00000.tar", (shards / "00000.tar").read_bytes())
    source = read_pairs("memory://set")
    assert len(source) == 5 and source[2].read() == picture(seed=2)
    assert source.parts[0].digest() == sha256_of(shards / "00000.tar")


def test_lines_are_captions_where_dataset_type_elsewhere_says_retrieval(tmp_path: Path, picture: Callable[..., bytes]):
    content = tar(tmp_path / "0.tar", {"a.png": picture(), "a.txt": b"a dog\na hound\n"}).read_bytes()
    put("memory://flickr/test/0.tar", content)
    put("memory://flickr/dataset_type.txt", b"retrieval\n")
    put("memory://plain/test/0.tar", content)
    assert read_pairs("memory://flickr/test")[0].captions == ("a dog", "a hound")
    assert read_pairs("memory://plain/test")[0].captions == ("a dog\na hound",)
