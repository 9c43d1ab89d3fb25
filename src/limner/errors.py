"""The exceptions that limner raises on purpose.

```
LimnerError
├── ConfigError     a setting, flag or argument that cannot be used
├── DataError       images, captions or shards that cannot be used
├── ModelError      a model directory, weights or a tokenizer that do not fit
├── TrainingError   a run that cannot go on (exit code 1)
├── StorageError    a file that cannot be written: a full disk, say (exit code 1)
├── ReproductionError  a machine that gives other numbers than the one before (exit code 1)
└── MissingExtra    an optional dependency that is not installed
```

Every message is one sentence shape, so that people learn to read it: what is wrong, what was expected, what came
instead, and what to do next.
"""

import difflib
import os
from collections.abc import Iterable
from operator import index
from typing import Any


class LimnerError(Exception):
    """`<what> must be <must>. Got <got>. <then>`; a command that ends with one exits with `exit_code`."""

    exit_code = 2

    def __init__(self, what: str, *, must: str, got: Any, then: str) -> None:
        self.what, self.must, self.got, self.then = what, must, got, then
        super().__init__(f"{what} must {must}. Got {got}. {then}")

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle and copy: made again from its attributes, because some classes have a constructor of their own."""
        return _again, (type(self), vars(self))


def _again(kind: type[LimnerError], attributes: dict[str, Any]) -> LimnerError:
    """An error of this class with these attributes, whatever its own constructor takes."""
    error = kind.__new__(kind)
    sentence = {name: attributes[name] for name in ("what", "must", "got", "then")}
    LimnerError.__init__(error, **sentence)
    vars(error).update(attributes)
    return error


class ConfigError(LimnerError, ValueError):
    """A setting, flag or argument that cannot be used."""


class DataError(LimnerError, ValueError):
    """Pictures, captions or shards that cannot be used."""


class ModelError(LimnerError, ValueError):
    """A model directory, weights or a tokenizer that do not fit."""


class TrainingError(LimnerError, RuntimeError):
    """A run that cannot go on."""

    exit_code = 1


class StorageError(LimnerError, OSError):
    """A file that cannot be written."""

    exit_code = 1


class ReproductionError(LimnerError, RuntimeError):
    """A machine that gives other numbers than the one before."""

    exit_code = 1


class MissingExtra(LimnerError, ImportError):
    """An optional dependency that is not installed."""

    def __init__(self, package: str, *, extra: str, needed_for: str) -> None:
        super().__init__(
            f"The package {package} for {needed_for}",
            must="be installed",
            got="no such package",
            then=f"Run: pip install 'limner[{extra}]'",
        )


def named(value: Any) -> str:
    """A value that is something else than was expected, in an error: what it is, and how it begins."""
    if value is None:
        return "None"
    if isinstance(value, str | bytes):
        shown = repr(value[:60])
    elif isinstance(value, int) and abs(value) > 10**60:
        shown = f"of {value.bit_length():,} bits"
    else:
        shown = repr(value) if isinstance(value, int | float | os.PathLike) else ""
    return f"{type(value).__name__}{' ' * bool(shown)}{shown[:60]}"


def did_you_mean(word: str, known: Iterable[str], otherwise: str) -> str:
    """The last sentence of an error about an unknown word: the nearest known one, or `otherwise`."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.4)
    return f"Did you mean {near[0]}?" if near else otherwise


def whole_from_one(value: Any, what: str) -> int:
    """`value` as an int. Raises `ConfigError` for what is no whole number of 1 or more: True, 2.0, 0, None."""
    try:
        number = 0 if isinstance(value, bool) else index(value)
    except TypeError:
        number = 0
    require(number >= 1, what, "be a whole number from 1 on", named(value), "Ask for one or more.")
    return number


def require(fine: bool, what: str, must: str, got: object, then: str) -> None:
    """Raise the `ConfigError` that says so unless `fine`."""
    if not fine:
        raise ConfigError(what, must=must, got=got, then=then)
