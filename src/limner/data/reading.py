"""One way to read: many images by many threads, in order, and nothing is waited for without end.

```
pairs ─> threads: read, again if that fails ─> look (decode, crop, hash, ...) ─> in order: what was found, or an Unread
```

The loader, `limner data check` and everything that embeds read through here, so that an image which stops one of them
stops none. An image that cannot be used becomes an `Unread`, with a reason that can be counted; so does one that takes
too long to decode or, but for training, to read.

Threads and not processes: reading, decoding and resizing let go of the interpreter, so threads scale, and pictures stay
where they are (docs/decisions/0013). A thread can stand still, in a read that never returns or a picture made to take
for ever; it cannot be stopped, but it can be named, and left to itself while another takes its place.
"""

import errno
import hashlib
import itertools
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from limner.data.decode import Unreadable, centre_crop, decode, stack
from limner.data.pairs import Pair, Source
from limner.data.remote import last_fetched
from limner.errors import DataError

DEADLINE_SECONDS = 20.0
"""A picture that takes longer to decode is left out. The caps on pixels and scans come first, so that this is for what
nobody has thought of: it depends on the machine, they do not."""
PATIENCE_SECONDS = 60.0
"""Without a batch, a picture of it or a block from a network for so long, training ends and says where it hangs. Where
an image is not waited for, it is left out after as long."""
READ_AGAIN = (0.1, 1.0)
"""Seconds after which a read that failed is tried again."""
# fmt: off
PASSING = frozenset((
    errno.EAGAIN, errno.EBUSY, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTDOWN,
    errno.EHOSTUNREACH, errno.EINTR, errno.EIO, errno.EMFILE, errno.ENETDOWN, errno.ENETRESET, errno.ENETUNREACH,
    errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOTCONN, errno.EPIPE, errno.ESTALE, errno.ETIMEDOUT,
))
# fmt: on
"""Errors of reading that another try may not meet: of networks, and of machines that are busy."""
LOOK_SECONDS, CLOSE_SECONDS = 1.0, 5.0
"""Time between two looks at tasks that take long, and for threads to end."""
MOST_LEFT = 16
"""Threads, for each worker, that may be left to themselves."""
AHEAD = 1024
"""Images that `read_each` has under way at a time, and small results that wait for their turn."""
NAMED = 1000
"""Unreadable pictures that are named by key; the others are counted."""
LATE = f"over {DEADLINE_SECONDS:.0f} s to decode"
SLOW = f"over {PATIENCE_SECONDS:.0f} s to read"
UNREAD = "file that cannot be read"
LOOKING_UP, READING, TURN, DECODING = "looking up", "reading", "waiting for its turn to decode", "decoding"
"""Stages of a task."""
T = TypeVar("T")
Look = Callable[[Pair, bytes, Callable[[], None]], T]
"""What to do with an image's bytes. It calls the function given to it last when it begins to decode: large pictures
wait for each other, and the deadline counts from then on. Raises `Unreadable` for an image that cannot be used."""


class Unread(NamedTuple):
    """An image that cannot be used."""

    key: str
    reason: str
    """One of few, so that it can be counted by."""
    got: str
    """What was found in place of an image."""


def describe_unreadable(unreadable: Iterable[Unread]) -> str:
    """The number of pictures that could not be read and the most frequent reasons, in words."""
    counts = Counter(one.got for one in unreadable)
    if not counts:
        return "none unreadable"
    told = "; ".join(f"{count} x {got}" for got, count in counts.most_common(3))
    return f"{counts.total()} unreadable ({told})"


# --- threads ---------------------------------------------------------------------------------------------------------


class Doing(NamedTuple):
    """Where a task is."""

    stage: str
    what: Pair | str
    since: float
    """When that began, by time.monotonic()."""


class Task:
    """Something to do, how far it is, and what came of it."""

    def __init__(self, work: Callable[["Task"], Any]) -> None:
        self.work = work
        self.result: Any = None
        self.error: BaseException | None = None
        self.over = threading.Event()
        """It has a result or an error, or nobody waits for it any more."""
        self._lock = threading.Lock()
        self.at("waiting", "")

    def at(self, stage: str, what: Pair | str) -> None:
        """It is in `stage` with `what` now."""
        self.doing = Doing(stage, what, time.monotonic())

    def end(self, result: Any, error: BaseException | None = None) -> bool:
        """This came of it. False if something else had come of it before, which counts."""
        with self._lock:
            if self.over.is_set():
                return False
            self.result, self.error = result, error
            self.over.set()
        return True

    def interrupt(self) -> None:
        """It will not be done; an `InterruptedError` is what comes of it."""
        self.end(None, InterruptedError("nobody waits for this task any more"))


class Workers:
    """Threads that take tasks in the order in which they came. They never keep a process from ending."""

    def __init__(self, number: int, name: str) -> None:
        self._name, self._number, self._names = name, number, itertools.count(1)
        self._threads: list[threading.Thread] = []
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._doing: dict[str, Task] = {}
        self._torch_threads = torch.get_num_threads()
        self.closed = False
        self.last_end = time.monotonic()
        """When a task ended last."""
        for _ in range(number):
            self._start()

    def submit(self, work: Callable[[Task], Any]) -> Task:
        """Have `work` done by one thread. After `close` it ends at once, with an `InterruptedError`."""
        task = Task(work)
        if self.closed:
            task.interrupt()
        else:
            self._tasks.put(task)
        return task

    def each(
        self, works: Iterable[Callable[[Task], Any]], late: Callable[[Task], Any], *, ahead: int | None = None
    ) -> Iterator[Any]:
        """Have `works` done, `ahead` of them at a time (None: all), and give what comes of them, in their order.

        `late` is asked now and then about tasks under way: what it returns, if not None, is taken for the result, and
        the thread that does the task is left to itself. An error that a task ended with is raised in its place.
        """
        under_way, coming = deque[Task](), iter(works)
        while True:
            wanted = None if ahead is None else ahead - len(under_way)
            under_way.extend(self.submit(work) for work in itertools.islice(coming, wanted))
            if not under_way:
                return
            while not under_way[0].over.wait(LOOK_SECONDS):
                if self.closed:
                    under_way[0].interrupt()
                self._leave(under_way, late)
            task = under_way.popleft()
            if task.error is not None:
                raise task.error
            yield task.result

    def describe(self) -> str:
        """Where each thread is."""
        now, doing = time.monotonic(), [(name, task.doing) for name, task in sorted(self._doing.items())]
        places = ((name, at, place_of(at.what) if isinstance(at.what, Pair) else at.what) for name, at in doing)
        return "; ".join(f"{name} {at.stage} {place} for {now - at.since:.0f} s" for name, at, place in places)

    def close(self) -> None:
        """End the threads, once they have done what they are at; one that stands still is not waited for.

        Tasks that no thread has taken end with an `InterruptedError`.
        """
        if self.closed:
            return
        self.closed = True
        with suppress(Empty):
            while (task := self._tasks.get_nowait()) is not None:
                task.interrupt()
        for _ in self._threads:
            self._tasks.put(None)
        until = time.monotonic() + CLOSE_SECONDS
        for thread in self._threads:  # one that works on while Python ends would take the process down with it
            thread.join(max(0.0, until - time.monotonic()))

    def _leave(self, tasks: Iterable[Task], late: Callable[[Task], Any]) -> None:
        """Wait no longer for those of `tasks` that are late; another thread takes the place of each one's."""
        for task in tasks:
            instead = None if task.over.is_set() or task.doing.stage == "waiting" else late(task)
            if instead is not None and task.end(instead):
                self.last_end = time.monotonic()
                self._start()

    def _start(self) -> None:
        if len(self._threads) > MOST_LEFT * self._number:
            raise DataError(
                "The pictures",
                must="be read and decoded in a time that has an end",
                got=f"{len(self._threads) - self._number} that were not",
                then="Look at them with limner data check; they keep the processor busy.",
            )
        ready = threading.Event()
        name = f"{self._name} {next(self._names)}"
        self._threads.append(threading.Thread(target=self._run, args=(name, ready), name=name, daemon=True))
        self._threads[-1].start()
        ready.wait()
        # torch's number of threads is each thread's own, but new threads begin with the one that was set last
        restore = threading.Thread(target=torch.set_num_threads, args=(self._torch_threads,))
        restore.start()
        restore.join()

    def _run(self, name: str, ready: threading.Event) -> None:
        torch.set_num_threads(1)  # as many as there are workers are at work
        ready.set()
        while (task := self._tasks.get()) is not None:
            if self.closed:
                task.interrupt()
                continue
            self._doing[name] = task
            try:
                result, error = task.work(task), None
            except BaseException as caught:  # it is raised where the result is waited for
                result, error = None, caught
            self._doing.pop(name, None)
            if not task.end(result, error):  # another thread has taken this one's place
                return
            self.last_end = time.monotonic()


# --- images ----------------------------------------------------------------------------------------------------------


def read_each(
    source: Source, indices: Sequence[int], look: Look[T], *, workers: int | None = None, ahead: int = AHEAD
) -> Generator[T | Unread, None, None]:
    """What `look` makes of the images of a source at `indices`, in this order, or why one cannot be used.

    `workers` threads (by default one a core) read and look at `ahead` images at a time; they end with the iterator,
    also when it is closed early. An image that takes longer than `DEADLINE_SECONDS` to decode or `PATIENCE_SECONDS` to
    read is an `Unread`. Raises `DataError` where a shard changes meanwhile or cannot be fetched, and what `look`
    raises, but for `Unreadable` and `OSError`.
    """
    threads = Workers(workers or cores(), "reader")

    def late(task: Task) -> Unread | None:
        stage, what, since = task.doing
        progress = threads.last_end if stage == TURN else last_fetched()
        if stage != DECODING and time.monotonic() - max(since, progress) > PATIENCE_SECONDS:
            return Unread(what.key if isinstance(what, Pair) else str(what), SLOW, SLOW)
        return late_to_decode(task)

    def looked_up(index: int, task: Task) -> T | Unread:
        task.at(LOOKING_UP, f"pair {index:,} of {source.path}")  # a shard's index may come from a network
        return read_one(source[index], look, task)

    try:
        yield from threads.each((partial(looked_up, index) for index in indices), late, ahead=ahead)
    finally:
        threads.close()


def read_one(pair: Pair, look: Look[T], task: Task) -> T | Unread:
    """What `look` makes of an image, or why it cannot be used; `task` says meanwhile where it is."""
    try:
        content = read_again(pair, task)
        task.at(TURN, pair)
        return look(pair, content, lambda: task.at(DECODING, pair))
    except Unreadable as error:
        return Unread(pair.key, error.reason, str(error.got))
    except OSError as error:
        return Unread(pair.key, UNREAD, error.strerror or str(error))


def read_again(pair: Pair, task: Task) -> bytes:
    """The bytes of a picture; a read that fails in a way that may pass is tried again."""
    task.at(READING, pair)
    for seconds in READ_AGAIN:
        try:
            return pair.read()
        except OSError as error:
            if not may_pass(error):
                raise
            time.sleep(seconds)
    return pair.read()


def may_pass(error: OSError) -> bool:
    """Whether what failed may go well later: by the error's number or that of an error that led to it."""
    chain, first = list[BaseException](), error
    while first is not None:
        chain.append(first)
        first = first.__cause__
    if any(isinstance(one, TimeoutError | ConnectionError) for one in chain):
        return True
    numbers = [one.errno for one in chain if isinstance(one, OSError) and one.errno is not None]
    if numbers:
        return any(number in PASSING for number in numbers)
    # without a number, one that was made of another error (a table's that is broken) is for good
    return len(chain) == 1 and not isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError)


def late_to_decode(task: Task) -> Unread | None:
    """Why an image is left out that takes too long to decode; None while it does not."""
    stage, what, since = task.doing
    if stage == DECODING and isinstance(what, Pair) and time.monotonic() - since > DEADLINE_SECONDS:
        return Unread(what.key, LATE, LATE)
    return None


class Squares(NamedTuple):
    """The central squares of some of a source's images."""

    indices: list[int]
    """The numbers in the source of those that could be read."""
    pixels: UInt8[Tensor, "batch 3 height width"]
    contents: list[int]
    """Hashes of their pixels: equal ones are the same image to an encoder, whatever their files are."""
    unread: list[Unread]


def centres(
    source: Source,
    image_size: int,
    *,
    batch_size: int = 256,
    workers: int | None = None,
    resampling: Image.Resampling = Image.Resampling.BICUBIC,
) -> Generator[Squares, None, None]:
    """The central squares of a source's images, `batch_size` images at a time, for everything that embeds.

    The pixels are Pillow's exactly. `workers` threads, by default one a core, are up to two batches ahead. Raises as
    `read_each`.
    """

    def square(pair: Pair, content: bytes, begun: Callable[[], None]) -> tuple[np.ndarray, int]:
        pixels = decode(content, image_size, name=f"The picture {pair.key}", resampling=resampling, begun=begun)
        pixels = np.ascontiguousarray(centre_crop(pixels, image_size))  # a copy: a long strip does not wait whole
        return pixels, hash_of(pixels)

    with closing(read_each(source, range(len(source)), square, workers=workers, ahead=2 * batch_size)) as squares:
        for start in range(0, len(source), batch_size):
            indices = range(start, min(start + batch_size, len(source)))
            read = list(zip(indices, squares, strict=False))  # it goes on with the next batch
            kept = [(index, *square) for index, square in read if not isinstance(square, Unread)]
            pixels = [square for _, square, _ in kept]
            nothing = torch.empty(0, 3, image_size, image_size, dtype=torch.uint8)
            yield Squares(
                [index for index, _, _ in kept],
                stack(pixels) if pixels else nothing,
                [content for _, _, content in kept],
                [one for _, one in read if isinstance(one, Unread)],
            )


# --- small helpers ---------------------------------------------------------------------------------------------------


def place_of(pair: Pair) -> str:
    """Where a picture is, for people."""
    return f"{pair.key} of {pair.path}"


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hash_of(content: bytes | np.ndarray) -> int:
    """A signed 64-bit hash, the same on every machine. An array is contiguous; its bytes count, not its shape."""
    data = content.data if isinstance(content, np.ndarray) else content
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little", signed=True)


def caption_ids(tokens: np.ndarray) -> list[int]:
    """What captions are known by, of their token ids int64[captions context]: a hash of each row, as of images.

    The same caption is what the text encoder cannot tell apart: capitals, blanks and what is cut off do not count.
    """
    return [hash_of(row) for row in np.ascontiguousarray(tokens)]
