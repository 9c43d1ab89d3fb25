"""Hostile data the whole way from a path to batches: nothing crashes, hangs, is unpickled or written elsewhere.

What is left out is counted, or there is a DataError.
"""

import os
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pytest

from helpers.hostile import CASES, GOOD, encoded, is_as, member, pair, shard, through
from limner.config import ImageConfig
from limner.data import loader, reading
from limner.data.loader import Loader
from limner.data.pairs import Pair, Source
from limner.data.sources import index, shards
from limner.data.sources.read import read_pairs
from limner.data.sources.tar import members
from limner.data.tokenizer import Tokenizer
from limner.errors import DataError

HANGS = "index-that-is-a-fifo"
"""It would stop the tests: tried in a process of its own."""


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Everything in a folder, but for what limner may write."""
    return {
        path.relative_to(folder).as_posix(): (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
        if path.relative_to(folder).parts[0] not in ("data", "cache")
    }


@pytest.fixture
def outer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an empty one, data, and things that have to stay as they are."""
    for name in ("data", "cache", "precious/deep"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("precious/deep/notes.txt", "secret.txt"):
        (tmp_path / name).write_text("as it was")
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path / "precious")
    index._indexes.clear()
    return tmp_path


def cases() -> list[object]:
    return [name for name in CASES if name != HANGS]


@pytest.mark.filterwarnings("ignore:::PIL")  # as limner does; pytest makes errors of them
@pytest.mark.parametrize("name", cases())
def test_what_is_hostile_is_counted_or_told(
    name: str, outer: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(reading, "READ_AGAIN", (0.0,))
    before = tree(outer)
    expected = CASES[name](outer / "data", False)
    for _ in range(2):  # with an index to build, then with one that is there
        told = through(outer / "data" / expected.opens, tokenizer)
        assert is_as(told, expected), told
    assert tree(outer) == before


def test_an_index_that_is_a_fifo_is_not_waited_for(outer: Path):
    CASES[HANGS](outer / "data", False)
    code = f"from limner.data.sources.read import read_pairs; print(len(read_pairs({str(outer / 'data')!r})))"
    done = subprocess.run([sys.executable, "-c", code], timeout=6, capture_output=True, check=True)
    assert done.stdout == b"4\n"


# --- between indexing and reading ------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines of tenths of a second."""
    for name, seconds in (
        ("DEADLINE_SECONDS", 0.2),
        ("READ_AGAIN", (0.0,)),
        ("LOOK_SECONDS", 0.05),
        ("CLOSE_SECONDS", 0.1),
    ):
        monkeypatch.setattr(reading, name, seconds)


def loader_of(source: Source, tokenizer: Tokenizer, **changes: Any) -> Loader:
    settings: dict[str, Any] = {"batch_size": len(source), "seed": 0, "cache_mb": 1, "workers": 2} | changes
    return Loader(source, tokenizer, images=ImageConfig(resize=28, crop_min_area=0.5), image_size=24, **settings)


def shrink(path: Path) -> None:
    os.truncate(path, 600)


def grow(path: Path) -> None:
    path.write_bytes(bytes(10_000) + path.read_bytes())


def replace_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (shrink, "damaged picture"),
        (grow, "not a picture"),
        (Path.unlink, "file that cannot be read"),
        (replace_by_a_folder, "file that cannot be read"),
    ],
)
def test_a_picture_that_changes_after_it_was_seen_is_counted(
    change: Callable[[Path], object], reason: str, outer: Path, tokenizer: Tokenizer, quick: None
):
    for i in range(GOOD):
        (outer / "data" / f"{i}.jpg").write_bytes(encoded("JPEG", seed=i))
        (outer / "data" / f"{i}.txt").write_text("x")
    seen = loader_of(read_pairs(outer / "data"), tokenizer)
    change(outer / "data" / "2.jpg")
    assert [batch.dropped for batch in seen.batches(0, 2)] == [{reason: 1}] * 2
    assert list(seen.unreadable) == ["2.jpg"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (shrink, "stay as they are while a command runs"),
        (grow, "stay as they are while a command runs"),
        (Path.unlink, r"at least 2 readable pictures. Got [01]: [34] unreadable"),
        (replace_by_a_folder, r"at least 2 readable pictures. Got [01]: [34] unreadable"),
    ],
)
def test_a_shard_that_changes_after_it_was_indexed_is_an_error_that_says_so(
    change: Callable[[Path], object], told: str, outer: Path, tokenizer: Tokenizer, quick: None
):
    path = shard(outer / "data")
    seen = loader_of(read_pairs(path), tokenizer)
    change(path)
    with pytest.raises(DataError, match=told):
        list(seen.batches(0, 1))


def test_a_shard_that_grows_while_it_is_indexed_is_indexed_again(outer: Path, monkeypatch: pytest.MonkeyPatch):
    path, hashed = shard(outer / "data"), shards.sha256_of

    def growing(file: Path) -> str:
        monkeypatch.setattr(shards, "sha256_of", hashed)
        shard(outer / "data", pair("late", encoded("JPEG")))
        return hashed(file)

    monkeypatch.setattr(shards, "sha256_of", growing)
    read_pairs(path)
    assert len(read_pairs(path)) == GOOD + 1


def test_a_shard_that_cannot_be_read_is_told_and_the_others_are_used(outer: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("0.tar", "1.tar"):
        shard(outer / "data", name=name)
    real = shards.members

    def failing(file: IO[bytes], noted: Counter[str]) -> Iterator[shards.Member]:
        if Path(file.name).name == "1.tar":
            raise OSError(5, "Input/output error")
        return real(file, noted)

    monkeypatch.setattr(shards, "members", failing)
    source = read_pairs(outer / "data")
    assert len(source) == GOOD and source.noted.total() == 1


def test_a_picture_whose_name_is_not_utf8_is_split_like_others(outer: Path):
    for name in (b"\xff", b"a", b"b"):
        (outer / "data" / os.fsdecode(name + b".jpg")).write_bytes(encoded("JPEG"))
        (outer / "data" / os.fsdecode(name + b".txt")).write_text("x")
    kept, kept_back = read_pairs(outer / "data").split(0.5)
    assert len(kept) + len(kept_back) == 3


def test_pax_records_take_no_memory(outer: Path):
    path = shard(outer / "data", member("p", b"".join(b"11 %06x=\n" % i for i in range(5_900)), b"x"))
    with path.open("rb") as file:
        tracemalloc.start()
        assert len(list(members(file, Counter()))) == 2 * GOOD
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 2 * 2**20


# --- threads ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Opened at the end of the test, so that threads which stand still there go on and end."""
    event = threading.Event()
    yield event
    event.set()


def stand_still(monkeypatch: pytest.MonkeyPatch, gate: threading.Event, keys: Sequence[str]) -> Counter[str]:
    """Make the decoder wait for the gate at these keys. Returns how often it came by each."""
    real, came = loader.decode, Counter[str]()

    def waiting(content: bytes, resize: int, *, name: str, fast: bool, begun: Callable[[], None]) -> Any:
        key = name.split()[-1]
        came[key] += 1
        begun()
        if key in keys:
            gate.wait(60)
        return real(content, resize, name=name, fast=fast)

    monkeypatch.setattr(loader, "decode", waiting)
    return came


def read_never(monkeypatch: pytest.MonkeyPatch, gate: threading.Event, keys: Sequence[str]) -> None:
    """Make reading wait for the gate at these keys."""
    real = Pair.read

    def waiting(one: Pair) -> bytes:
        if one.key in keys:
            gate.wait(60)
        return real(one)

    monkeypatch.setattr(Pair, "read", waiting)


def keys_of(number: int) -> tuple[str, ...]:
    return tuple(f"slow-{i}" for i in range(number))


def source_with(outer: Path, number: int) -> Source:
    return read_pairs(shard(outer / "data", *(pair(key, encoded("JPEG")) for key in keys_of(number))))


def test_a_picture_that_takes_for_ever_is_left_out_and_the_rest_goes_on(
    outer: Path, tokenizer: Tokenizer, quick: None, monkeypatch: pytest.MonkeyPatch, gate: threading.Event
):
    seen = loader_of(source_with(outer, 2), tokenizer, patience_seconds=20.0)
    stand_still(monkeypatch, gate, keys_of(2))
    batches = list(seen.batches(0, 3))
    assert all(batch.dropped.total() == 2 and len(batch.keys) == GOOD for batch in batches)
    assert set(batches[0].dropped) == {reading.LATE}


def test_a_picture_that_took_for_ever_is_not_tried_again(
    outer: Path, tokenizer: Tokenizer, quick: None, monkeypatch: pytest.MonkeyPatch, gate: threading.Event
):
    seen = loader_of(source_with(outer, 1), tokenizer, patience_seconds=20.0)
    came = stand_still(monkeypatch, gate, keys_of(1))
    for step in range(3):
        assert next(seen.batches(step, step + 1)).dropped == {reading.LATE: 1}
    assert came["slow-0"] == 1 and list(seen.unreadable) == ["slow-0"]


def test_many_pictures_that_take_for_ever_are_left_out(
    outer: Path, tokenizer: Tokenizer, quick: None, monkeypatch: pytest.MonkeyPatch, gate: threading.Event
):
    """With one worker they take longer together than anything is waited for."""
    seen = loader_of(source_with(outer, 4), tokenizer, workers=1, patience_seconds=0.6)
    stand_still(monkeypatch, gate, keys_of(4))
    assert next(seen.batches(0, 1)).dropped == {reading.LATE: 4}


@pytest.mark.parametrize("number", [1, 2, GOOD])
def test_a_read_that_never_returns_is_named(
    number: int, outer: Path, tokenizer: Tokenizer, quick: None, monkeypatch: pytest.MonkeyPatch, gate: threading.Event
):
    """With two workers one of them stands still, or both do."""
    seen = loader_of(source_with(outer, number), tokenizer, patience_seconds=0.5)
    read_never(monkeypatch, gate, keys_of(number))
    with pytest.raises(DataError, match=r"give a batch within .* Got none \(worker \d reading") as error:
        next(seen.batches(0, 1))
    assert str(error.value).count("worker") == min(2, number)


def test_a_process_ends_although_its_reads_do_not(outer: Path):
    shard(outer / "data")
    code = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from helpers.hostile import through
from limner.data import loader, reading
from limner.data.tokenizer import Tokenizer
from limner.data.pairs import Pair
Pair.read = lambda pair: time.sleep(600)
loader.Loader.__init__.__kwdefaults__["patience_seconds"] = 0.3
reading.CLOSE_SECONDS = 0.1
told = through({str(outer / "data")!r}, Tokenizer.train(["a dog"] * 3, vocab_size=600))
print(told["error"])
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=60, capture_output=True, text=True, check=True)
    for part in ("give a batch within 0 s", "worker 1 reading", "worker 2 reading", "0.tar for"):
        assert part in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    "kind", [MemoryError, RecursionError, KeyboardInterrupt, SystemExit, TimeoutError, ZeroDivisionError]
)
def test_errors_that_nobody_expects_reach_the_caller(
    kind: type[BaseException], outer: Path, tokenizer: Tokenizer, quick: None, monkeypatch: pytest.MonkeyPatch
):
    seen, begin = loader_of(source_with(outer, 1), tokenizer, patience_seconds=20.0), time.monotonic()

    def failing(*_: object, **__: object) -> None:
        raise kind("unexpected")

    monkeypatch.setattr(loader, "random_crop", failing)
    with pytest.raises(kind, match="unexpected"):
        list(seen.batches(0, 2))
    assert time.monotonic() - begin < 10
