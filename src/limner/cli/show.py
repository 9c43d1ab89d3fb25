"""What the verbs of the command line share: flags to a call, results to standard output, words to standard error.

A verb is a plain function. Its positional-only parameters are what it is about and have their names, in capitals, in
the help; the others are flags; the first line of its docstring is its line in `limner --help`.
"""

import dataclasses
import inspect
import json
import os
import sys
from collections.abc import Callable, Sequence, Set
from typing import Annotated, Any, get_origin

from limner.errors import require, whole_from_one
from limner.progress import visible


def summary(verb: Callable[..., Any]) -> str:
    """The first line of a verb's docstring."""
    return (inspect.getdoc(verb) or "").splitlines()[0]


def from_flags(verb: Callable[..., Any], args: Sequence[str], name: str, **options: Any) -> None:
    """Call `verb` with the flags in `args`; one that is not known ends with exit code 2 and names the nearest."""
    import tyro

    def shown(parameter: inspect.Parameter) -> Any:
        """The type of a parameter, with what the help says of it."""
        kind, name = parameter.annotation, parameter.name.upper()
        if parameter.kind is parameter.POSITIONAL_ONLY:
            name = f"{name} ..." if get_origin(kind) is list else name
            return Annotated[kind, tyro.conf.arg(metavar=name, help_behavior_hint="(required)")]
        if dataclasses.is_dataclass(kind):  # each of its fields is a flag
            return Annotated[kind, tyro.conf.arg(name="")]
        # a default that says nothing is not printed: the text beside the flag says what happens without it
        hint = "" if parameter.default in (None, False, ()) else None
        return Annotated[
            kind, tyro.conf.DisallowNone, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help_behavior_hint=hint)
        ]

    parameters = inspect.signature(verb).parameters.values()
    lists = {f"--{each.name.replace('_', '-')}" for each in parameters if get_origin(each.annotation) is tuple}
    annotations = {key: shown(parameter) for key, parameter in inspect.signature(verb).parameters.items()}
    tyro.cli(Described(verb, annotations), args=gathered(args, lists), prog=f"limner {name}", **options)


def gathered(args: Sequence[str], lists: Set[str]) -> list[str]:
    """`args` with the values of each option in `lists` behind its first: of --label a --label b all but b were lost."""
    stretches: list[list[str]] = [[]]
    for arg in args:
        name, sign, value = arg.partition("=")
        name = name.replace("_", "-")
        if name in lists:
            stretches.append([name, value] if sign else [name])
        elif arg.startswith("--"):
            stretches.append([arg])
        else:
            stretches[-1].append(arg)
    first: dict[str, list[str]] = {}
    for stretch in stretches[1:]:
        name = stretch[0].partition("=")[0].replace("_", "-")
        known = first.setdefault(name, stretch)
        if known is not stretch:
            require(name in lists, f"The option {name}", "be given once", "it several times", "Leave one of them out.")
            known += stretch[1:]
            stretch.clear()
    return [arg for stretch in stretches for arg in stretch]


class Described:
    """A verb with other annotations than its own; of a function around it tyro would take those of the verb."""

    def __init__(self, verb: Callable[..., Any], annotations: dict[str, Any]) -> None:
        self.verb, self.__annotations__ = verb, annotations
        self.__signature__ = inspect.signature(verb)
        self.__doc__ = inspect.getdoc(getattr(verb, "func", verb))  # of functools.partial, what it calls

    def __call__(self, *values: Any, **flags: Any) -> None:
        """Call the verb."""
        self.verb(*values, **flags)


def as_typed(text: str) -> str:
    """A text of the command line as it was typed, which is UTF-8 whatever the locale takes it for; of a path the locale
    is right."""
    return os.fsencode(text).decode("utf-8", "surrogateescape")


def shortened(text: str) -> str:
    """A text for a cell of a table: its first 200 signs."""
    return text if len(text) <= 200 else f"{text[:200]}..."


def require_top(top: int) -> None:
    """Refuse a number of answers below one."""
    whole_from_one(top, "--top")


# --- results ---------------------------------------------------------------------------------------------------------


def print_json(values: Any) -> None:
    """Results for machines."""
    has_all = (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")
    print(json.dumps(values, indent=2, ensure_ascii=not has_all))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Results for people: folded to the width of a terminal; elsewhere one line a row, whatever its length."""
    cells = [[visible(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        names = [name.replace("\n", " ").strip() for name in header]
        widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
        for row in [names, *cells]:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in header:
        table.add_column(Text(name), overflow="fold")  # a path is never shortened
    for row in cells:
        table.add_row(*map(Text, row))  # as they are: a name may look like markup
    Console(soft_wrap=True).print(table)


def print_values(values: dict[str, Any]) -> None:
    """Named values for people: several of one name below each other, what is not there left out."""
    rows = []
    for name, value in values.items():
        several = value if isinstance(value, list) else [] if value in ({}, None) or value is False else [value]
        rows += [("" if i else name.replace("_", " "), _text(one)) for i, one in enumerate(several)]
    print_table(("", ""), rows)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(number)}" for name, number in value.items())
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
