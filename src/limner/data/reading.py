"""Threads that do small tasks, and where each of them is.

Threads and not processes: reading, decoding and resizing let go of the interpreter, so threads scale, and pictures stay
where they are (docs/decisions/0013). A thread can stand still, in a read that never returns or a picture made to take
for ever; it cannot be stopped, but it can be named, and left to itself while another takes its place.
"""

import hashlib
import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from limner.data.decode import centre_crop, decode, stack
from limner.data.pairs import Pair, Source
from limner.errors import DataError

MOST_LEFT = 16
"""Threads, for each worker, that may be left to themselves."""
LOOK_SECONDS, CLOSE_SECONDS = 1.0, 5.0
"""Time between two looks at tasks that take long, and for threads to end."""


class Task:
    """Something to do, how far it is, and what came of it."""

    def __init__(self, work: Callable[["Task"], Any], done: Callable[[], None]) -> None:
        self.work, self._done = work, done
        self.result: Any = None
        self.error: BaseException | None = None
        self.is_over = False
        """It has a result or an error, or nobody waits for it any more."""
        self._lock = threading.Lock()
        self.at("waiting", "")

    def at(self, stage: str, what: object) -> None:
        """It is in `stage` with `what` now."""
        self.stage, self.what, self.since = stage, what, time.monotonic()

    def end(self, result: Any, error: BaseException | None = None) -> bool:
        """This came of it. False if something else had come of it before, which counts."""
        with self._lock:
            if self.is_over:
                return False
            self.result, self.error, self.is_over = result, error, True
        self._done()
        return True


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

    def submit(self, work: Callable[[Task], Any], done: Callable[[], None]) -> Task:
        """Have `work` done by one thread, which calls `done` when it is."""
        task = Task(work, done)
        self._tasks.put(task)
        return task

    def all(self, works: Sequence[Callable[[Task], Any]], late: Callable[[Task], Any]) -> list[Any]:
        """Have all of `works` done and return what came of them, in their order.

        `late` is asked now and then about tasks under way: what it returns, if not None, is taken for the result, and
        the thread that does the task is left to itself. The first error that a task ended with is raised.
        """
        if not works:
            return []
        left, finished = len(works), threading.Event()
        lock = threading.Lock()

        def done() -> None:
            nonlocal left
            with lock:
                left -= 1
                if left == 0:
                    finished.set()

        tasks = [self.submit(work, done) for work in works]
        while not finished.wait(LOOK_SECONDS):
            if self.closed:
                raise InterruptedError("nobody waits for these tasks any more")
            for task in tasks:
                instead = None if task.is_over or task.stage == "waiting" else late(task)
                if instead is not None and task.end(instead):
                    self.last_end = time.monotonic()
                    self._start()
        for task in tasks:
            if task.error is not None:
                raise task.error
        return [task.result for task in tasks]

    def describe(self) -> str:
        """Where each thread is."""
        now, doing = time.monotonic(), sorted(self._doing.items())
        return "; ".join(f"{name} {task.stage} {task.what} for {now - task.since:.0f} s" for name, task in doing)

    def close(self) -> None:
        """End the threads, once they have done what they are at; one that stands still is not waited for."""
        if self.closed:
            return
        self.closed = True
        for _ in self._threads:
            self._tasks.put(None)
        until = time.monotonic() + CLOSE_SECONDS
        for thread in self._threads:  # one that works on while Python ends would take the process down with it
            thread.join(max(0.0, until - time.monotonic()))

    def _start(self) -> None:
        if len(self._threads) > MOST_LEFT * self._number:
            raise DataError(
                "The pictures",
                must="be decoded in an end of time",
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
        while (task := self._tasks.get()) is not None and not self.closed:
            self._doing[name] = task
            try:
                result, error = task.work(task), None
            except BaseException as caught:  # it is raised where the result is waited for
                result, error = None, caught
            self._doing.pop(name, None)
            if task.is_over:  # another thread has taken this one's place
                return
            task.end(result, error)
            self.last_end = time.monotonic()


DEADLINE_SECONDS = 20.0
"""A picture that takes longer to decode is left out. The caps on pixels and scans come first, so that this is for what
nobody has thought of: it depends on the machine, they do not."""


PATIENCE_SECONDS = 60.0
"""Without a batch, a picture of it or a block from a network for so long, training ends and says where it hangs."""


READ_AGAIN = (0.1, 1.0)
"""Seconds after which a read that failed is tried again."""


NAMED = 1000
"""Unreadable pictures that are told by key; the others are counted."""


LATE, UNREAD = f"over {DEADLINE_SECONDS:.0f} s to decode", "file that cannot be read"


def place_of(pair: Pair) -> str:
    """Where a picture is, for people."""
    return f"{pair.key} of {pair.path}"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_again(pair: Pair, task: Task) -> bytes:
    """The bytes of a picture; a read that fails is tried again, for networks."""
    task.at("reading", place_of(pair))
    for seconds in READ_AGAIN:
        try:
            return pair.read()
        except FileNotFoundError:
            raise
        except OSError:
            time.sleep(seconds)
    return pair.read()


def hash_of(content: bytes) -> int:
    """A signed 64-bit hash, the same on every machine."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "little", signed=True)


def read_centre(
    source: Source, image_size: int, *, batch_size: int = 256
) -> Iterator[tuple[list[int], UInt8[Tensor, "batch 3 height width"], dict[str, str]]]:
    """The central squares of a source's pictures, batch by batch, for evaluation and search.

    Yields (indices of the readable pictures, their pixels, reasons for the unreadable ones by key).
    """
    starts = range(0, len(source), batch_size)
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
        for start in starts:
            indices = range(start, min(start + batch_size, len(source)))
            unreadable: dict[str, str] = {}
            decoded = threads.map(lambda i, bad=unreadable: _decode(source[i], image_size, bad), indices)
            kept = [(i, centre_crop(p, image_size)) for i, p in zip(indices, decoded, strict=True) if p is not None]
            pixels = stack([p for _, p in kept]) if kept else torch.empty(0, 3, image_size, image_size).byte()
            yield [i for i, _ in kept], pixels, unreadable


def describe_unreadable(unreadable: dict[str, str]) -> str:
    """How many pictures could not be read and why, in words."""
    if not unreadable:
        return "none unreadable"
    reasons = Counter(unreadable.values()).most_common(3)
    return f"{len(unreadable)} unreadable ({'; '.join(f'{count} x {reason}' for reason, count in reasons)})"


def _decode(pair: Pair, resize: int, unreadable: dict[str, str]) -> np.ndarray | None:
    try:
        return decode(pair.read(), resize, name=f"The picture {pair.key}")
    except DataError as error:
        unreadable[pair.key] = str(error.got)
    except OSError as error:
        unreadable[pair.key] = error.strerror or str(error)
    return None
