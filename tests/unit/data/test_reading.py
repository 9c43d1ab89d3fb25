"""One way to read: in order, with deadlines and retries, drops counted, threads ended."""

import errno
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from limner.data import reading
from limner.data.decode import centre_crop, decode
from limner.data.pairs import Pair, Source
from limner.data.reading import (
    LATE,
    SLOW,
    UNREAD,
    Task,
    Unread,
    Workers,
    caption_ids,
    centres,
    describe_unreadable,
    read_each,
)
from limner.data.sources.read import read_images, read_pairs
from limner.data.tokenizer import Tokenizer
from limner.errors import DataError

Begun = Callable[[], None]


@pytest.fixture
def source(folder_of_pairs: Path) -> Source:
    return read_pairs(folder_of_pairs)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits of hundredths of a second, but for the patience with reads."""
    for name, seconds in (
        ("DEADLINE_SECONDS", 0.25),
        ("READ_AGAIN", (0.0, 0.0)),
        ("LOOK_SECONDS", 0.02),
        ("CLOSE_SECONDS", 0.1),
    ):
        monkeypatch.setattr(reading, name, seconds)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Opened at the end of the test, so that threads which stand still there go on and end."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture(autouse=True)
def threads_end() -> Iterator[None]:
    """No thread of a test is left, and torch's number of threads is as it was; those at a gate end with it."""
    before, threads = set(threading.enumerate()), torch.get_num_threads()
    yield
    until = time.monotonic() + 5
    while (left := set(threading.enumerate()) - before) and time.monotonic() < until:
        time.sleep(0.01)
    assert not left and torch.get_num_threads() == threads


def key(pair: Pair, _content: bytes, _begun: Begun) -> str:
    return pair.key


def size(_pair: Pair, content: bytes, _begun: Begun) -> int:
    return len(content)


def keys(*numbers: int) -> list[str]:
    return [f"{number:02d}.png" for number in numbers]


# --- in order --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 5, None])
def test_results_come_in_the_order_asked_for(source: Source, workers: int | None):
    indices = [7, 3, 3, *range(40)]
    assert list(read_each(source, indices, key, workers=workers, ahead=6)) == keys(*indices)
    assert list(read_each(source, [], key)) == []


def test_what_is_done_first_waits_for_its_turn(source: Source, gate: threading.Event):
    def look(pair: Pair, _content: bytes, _begun: Begun) -> str:
        if pair.key == "00.png":
            assert gate.wait(10)  # until the last one is done
        if pair.key == "05.png":
            gate.set()
        return pair.key

    assert list(read_each(source, range(6), look, workers=2)) == keys(*range(6))


def test_no_more_are_under_way_than_asked_for(source: Source):
    seen: list[str] = []

    def look(pair: Pair, _content: bytes, _begun: Begun) -> str:
        seen.append(pair.key)
        return pair.key

    reader = read_each(source, range(40), look, workers=2, ahead=4)
    for number in range(3):
        assert next(reader) == f"{number:02d}.png"
        time.sleep(0.02)
        assert len(seen) <= number + 4
    reader.close()


# --- what cannot be used ---------------------------------------------------------------------------------------------


def test_what_cannot_be_used_has_a_reason(folder_of_pairs: Path, source: Source):
    (folder_of_pairs / "01.png").write_bytes(b"<html>")
    (folder_of_pairs / "02.png").unlink()
    found = list(read_each(source, range(4), lambda _pair, content, _begun: decode(content, 8).shape))
    assert found[0] == found[3] == (8, 10, 3)
    assert found[1] == Unread("01.png", "not a picture", "6 bytes of another format")
    assert found[2] == Unread("02.png", UNREAD, "No such file or directory")


def test_reads_that_fail_are_made_again(source: Source, quick: None, monkeypatch: pytest.MonkeyPatch):
    real, left = Pair.read, {"00.png": 2, "01.png": 3, "02.png": 1}
    errors: dict[str, type[OSError]] = {"00.png": ConnectionResetError, "01.png": OSError, "02.png": FileNotFoundError}

    def read(pair: Pair) -> bytes:
        left[pair.key] -= 1
        if left[pair.key] >= 0:
            raise errors[pair.key]("gone")
        return real(pair)

    monkeypatch.setattr(Pair, "read", read)
    assert list(read_each(source, range(3), size)) == [
        source[0].size,
        Unread("01.png", UNREAD, "gone"),
        Unread("02.png", UNREAD, "gone"),  # it is not there: not tried again
    ]
    assert left == {"00.png": -1, "01.png": 0, "02.png": 0}


def broken_table() -> OSError:
    """As a row of a table that is cut short is read."""
    try:
        raise OSError("row 3 of row group 0") from DataError("The table", must="be readable", got="not", then="")
    except OSError as error:
        return error


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (OSError(errno.EIO, "input/output error"), 3),
        (OSError(errno.ESTALE, "stale file handle"), 3),
        (BlockingIOError(errno.EAGAIN, "try again"), 3),
        (TimeoutError("no answer"), 3),
        (ConnectionResetError("gone"), 3),
        (PermissionError(errno.EACCES, "permission denied"), 1),
        (IsADirectoryError(errno.EISDIR, "is a directory"), 1),
        (NotADirectoryError(errno.ENOTDIR, "not a directory"), 1),
        (OSError(errno.ENAMETOOLONG, "file name too long"), 1),
        (OSError(errno.ELOOP, "too many levels of symbolic links"), 1),
        (broken_table(), 1),
    ],
    ids=str,
)
def test_only_what_may_pass_is_read_again(
    error: OSError, tries: int, source: Source, quick: None, monkeypatch: pytest.MonkeyPatch
):
    tried = list[str]()

    def read(pair: Pair) -> bytes:
        tried.append(pair.key)
        raise error

    monkeypatch.setattr(Pair, "read", read)
    assert list(read_each(source, [0], size)) == [Unread("00.png", UNREAD, error.strerror or str(error))]
    assert len(tried) == tries


def test_what_nobody_expects_is_raised_in_its_place(source: Source):
    def look(pair: Pair, _content: bytes, _begun: Begun) -> str:
        if pair.key == "03.png":
            raise ZeroDivisionError("a bug")
        return pair.key

    reader = read_each(source, range(40), look, workers=2)
    assert [next(reader) for _ in range(3)] == keys(0, 1, 2)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        next(reader)


def test_unreadable_pictures_in_words():
    assert describe_unreadable([]) == "none unreadable"
    several = [Unread(str(number), "damaged picture", "truncated") for number in range(3)]
    several += [Unread("x", UNREAD, "gone"), Unread("y", "damaged picture", "bad"), Unread("z", LATE, LATE)]
    assert describe_unreadable(several) == "6 unreadable (3 x truncated; 1 x gone; 1 x bad)"


# --- what stands still -----------------------------------------------------------------------------------------------


def stuck_at(gate: threading.Event, *which: str) -> Callable[[Pair, bytes, Begun], str]:
    """Decoding stands still at these keys."""

    def look(pair: Pair, _content: bytes, begun: Begun) -> str:
        begun()
        if pair.key in which:
            gate.wait(60)
        return pair.key

    return look


@pytest.mark.parametrize("workers", [1, 3])
def test_a_picture_that_stands_still_is_left_to_itself(
    workers: int, source: Source, quick: None, gate: threading.Event
):
    found = list(read_each(source, range(8), stuck_at(gate, "02.png", "03.png"), workers=workers))
    assert found == [*keys(0, 1), Unread("02.png", LATE, LATE), Unread("03.png", LATE, LATE), *keys(4, 5, 6, 7)]


def test_a_read_that_stands_still_is_left_to_itself(
    source: Source, quick: None, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
):
    real = Pair.read

    def read(pair: Pair) -> bytes:
        if pair.key == "02.png":
            gate.wait(60)
        return real(pair)

    monkeypatch.setattr(Pair, "read", read)
    monkeypatch.setattr(reading, "PATIENCE_SECONDS", 0.2)
    assert list(read_each(source, range(4), key, workers=1)) == [*keys(0, 1), Unread("02.png", SLOW, SLOW), "03.png"]


def test_while_something_comes_from_a_network_a_read_does_not_stand_still(
    source: Source, quick: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Pair, "read", lambda pair: (time.sleep(0.3), b"")[1])
    monkeypatch.setattr(reading, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(reading, "last_fetched", time.monotonic)
    assert list(read_each(source, range(2), size)) == [0, 0]


def test_waiting_for_a_turn_is_not_decoding(source: Source, quick: None):
    def look(pair: Pair, _content: bytes, begun: Begun) -> str:
        time.sleep(0.4)  # longer than the deadline: a larger picture is decoded meanwhile
        begun()
        return pair.key

    assert list(read_each(source, range(2), look, workers=2)) == keys(0, 1)


def test_where_everything_stands_still_it_is_an_error(
    source: Source, quick: None, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(reading, "MOST_LEFT", 2)
    with pytest.raises(DataError, match=r"must be read and decoded in a time that has an end\. Got 2 that were not"):
        list(read_each(source, range(40), stuck_at(gate, *keys(*range(40))), workers=1))


def test_an_iterator_that_is_closed_early_ends_its_threads(source: Source):
    before = set(threading.enumerate())
    reader = read_each(source, range(40), key, workers=3)
    assert next(reader) == "00.png" and len(set(threading.enumerate()) - before) == 3
    reader.close()
    assert set(threading.enumerate()) == before


def test_tasks_of_closed_threads_are_not_waited_for(quick: None, gate: threading.Event):
    workers = Workers(1, "worker")
    results = workers.each([lambda task: gate.wait(60)], lambda task: None)
    threading.Timer(0.05, workers.close).start()
    with pytest.raises(InterruptedError):
        next(results)


def test_tasks_that_no_thread_has_taken_end_when_the_threads_do(quick: None, gate: threading.Event):
    workers = Workers(1, "worker")
    tasks = [workers.submit(lambda task: gate.wait(60)) for _ in range(3)]
    while tasks[0].doing.stage == "waiting" and not workers.describe():
        time.sleep(0.001)
    workers.close()
    tasks.append(workers.submit(lambda task: None))
    assert [task.over.is_set() for task in tasks] == [False, True, True, True]
    assert all(isinstance(task.error, InterruptedError) for task in tasks[1:])


def test_what_comes_first_of_a_task_counts():
    task = Task(lambda task: None)
    assert task.end("late") and task.over.is_set()
    assert not task.end("done after all") and task.result == "late"


# --- central squares -------------------------------------------------------------------------------------------------


def test_centres_are_pillows_pixels_batch_by_batch(folder_of_pairs: Path, picture: Callable[..., bytes]):
    (folder_of_pairs / "03.png").write_bytes(b"not a picture")
    (folder_of_pairs / "04.png").write_bytes(picture(300, 20))
    source = read_pairs(folder_of_pairs)
    batches = list(centres(source, 24, batch_size=16))
    assert [squares.indices for squares in batches] == [
        [i for i in range(16) if i != 3],
        list(range(16, 32)),
        list(range(32, 40)),
    ]
    assert [squares.unread for squares in batches] == [
        [Unread("03.png", "not a picture", "13 bytes of another format")],
        [],
        [],
    ]
    for indices, pixels, contents, _ in batches:
        assert len(set(contents)) == len(indices)
        assert pixels.dtype == torch.uint8 and pixels.shape == (len(indices), 3, 24, 24)
        for index, square in zip(indices, pixels, strict=True):
            expected = centre_crop(decode(source[index].read(), 24), 24)
            assert np.array_equal(square.permute(1, 2, 0).numpy(), expected)


def test_the_same_pixels_are_the_same_content_whatever_their_file(tmp_path: Path, picture: Callable[..., bytes]):
    for name, content in {"a.png": picture(), "b.bmp": picture(format="BMP"), "c.png": picture(seed=1)}.items():
        (tmp_path / name).write_bytes(content)
    ((_, _, contents, _),) = centres(read_images(tmp_path), 24)
    assert contents[0] == contents[1] != contents[2]


def test_a_caption_is_known_by_what_the_text_encoder_sees(tokenizer: Tokenizer):
    same = caption_ids(tokenizer(["A dog.", "a  dog.", " a DOG. ", "a &lt; b", "A < b"]))
    assert len(set(same[:3])) == 1 and len(set(same[3:])) == 1 and same[0] != same[3]
    assert len(set(caption_ids(tokenizer(["a dog", "a dog.", "dog a"])))) == 3


def test_a_batch_without_a_readable_picture_is_empty(folder_of_pairs: Path):
    source = read_pairs(folder_of_pairs)
    for path in folder_of_pairs.glob("0[0-4].png"):
        path.write_bytes(b"x")
    indices, pixels, contents, unread = next(centres(source, 24, batch_size=5))
    assert contents == []
    assert indices == [] and pixels.shape == (0, 3, 24, 24) and pixels.dtype == torch.uint8 and len(unread) == 5


def test_a_picture_that_stands_still_is_left_out_of_what_is_embedded(
    source: Source, quick: None, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
):
    slow_one = source[9].read()

    def stuck(content: bytes, *args: int, begun: Begun, **more: str) -> np.ndarray:
        begun()
        if content == slow_one:
            gate.wait(60)
        return decode(content, *args, **more)

    monkeypatch.setattr(reading, "decode", stuck)
    batches = list(centres(source, 24, batch_size=16, workers=1))
    assert [len(squares.indices) for squares in batches] == [15, 16, 8] and 9 not in batches[0].indices
    assert [squares.unread for squares in batches] == [[Unread("09.png", LATE, LATE)], [], []]


def test_centres_that_are_closed_early_end_their_threads(source: Source):
    before = set(threading.enumerate())
    batches = centres(source, 24, batch_size=8, workers=2)
    next(batches)
    assert len(set(threading.enumerate()) - before) == 2
    batches.close()
    assert set(threading.enumerate()) == before
