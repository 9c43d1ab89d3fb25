"""Progress for people, on standard error: a bar in a terminal, a line now and then in a log file."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar
from unicodedata import category

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 15.0


_is_quiet = False


@contextmanager
def quiet(unless: bool = False) -> Iterator[None]:
    """While it lasts nothing is said and no bar is shown, `unless` that is true: of ranks, the first one speaks."""
    global _is_quiet
    before, _is_quiet = _is_quiet, _is_quiet or not unless
    try:
        yield
    finally:
        _is_quiet = before


def say(text: str) -> None:
    """One line for people, or a few. Words that nobody can take end no work: a closed pipe, a full disk."""
    if _is_quiet:
        return
    with suppress(OSError, ValueError, AttributeError):  # closed, or none at all
        print("\n".join(map(visible, text.split("\n"))), file=sys.stderr, flush=True)


def visible(text: str) -> str:
    """`text` with what is no visible sign (ends of lines, signs that steer a terminal) as an escape: one line."""
    if text.isprintable():
        return text
    return "".join(c if _is_visible(c) else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def _is_visible(sign: str) -> bool:
    """Blanks of all kinds are, and what joins letters or parts them in Persian or Hindi, or faces in emoji."""
    return sign.isprintable() or category(sign) == "Zs" or sign in "\u200c\u200d"


Advance = Callable[..., None]
"""`advance(done, facts="")`: so many are done in all; the facts are shown beside the bar."""


@contextmanager
def silent() -> Iterator[Advance]:
    """A bar that nobody sees: of processes that work beside the one whose bar is shown."""
    yield lambda *_: None


@contextmanager
def progress(title: str, total: int, *, start: int = 0) -> Iterator[Advance]:
    """A bar of `total` steps, `start` of them done before."""
    if _is_quiet or not sys.stderr.isatty():
        yield _lines(title, total)
        return
    # imported here so that the command line's --help does not wait for it
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (  # 80 characters with the facts of training
        TextColumn("{task.description}"),
        BarColumn(bar_width=8),
        MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}"),
        TextColumn("ETA"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, completed=start, facts="")
        yield lambda done, facts="": bar.update(task, completed=done, facts=facts)


def _lines(title: str, total: int) -> Advance:
    last = time.monotonic()

    def advance(done: int, facts: str = "") -> None:
        nonlocal last
        if time.monotonic() - last > SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            say(f"{title}: {done}/{total} {facts}")

    return advance


def track(items: Iterable[T], *, title: str, total: int) -> Iterator[T]:
    """`items` with a bar that moves as they are taken."""
    with progress(title, total) as advance:
        for done, item in enumerate(items, start=1):
            yield item
            advance(done)
