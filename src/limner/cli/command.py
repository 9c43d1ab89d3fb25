"""The `limner` command: finds the verb and calls it. What a verb needs is imported when it runs, so --help is instant.

Results go to standard output, as JSON with --json; progress and words go to standard error. Exit codes: 0 fine,
1 failed, 2 bad input, 130 interrupted.
"""

import inspect
import io
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

from limner.cli.data import (
    data_bench,
    data_check,
    data_demo,
    data_frames,
    data_render,
    data_shard,
    data_show,
    data_stats,
    tokenizer_train,
)
from limner.cli.eval import compare, evaluate, explain, prompts, tasks
from limner.cli.model import convert, doctor, models
from limner.cli.show import from_flags, summary
from limner.cli.train import demo, report, resume, train, train_by_recipe
from limner.cli.use import classify, search
from limner.errors import ConfigError, LimnerError, did_you_mean
from limner.progress import say

VERBS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "data demo": data_demo,
    "data check": data_check,
    "data stats": data_stats,
    "data show": data_show,
    "data bench": data_bench,
    "data shard": data_shard,
    "data frames": data_frames,
    "data render": data_render,
    "tokenizer train": tokenizer_train,
    "train": train,
    "resume": resume,
    "eval": evaluate,
    "eval tasks": tasks,
    "eval prompts": prompts,
    "eval compare": compare,
    "eval explain": explain,
    "classify": classify,
    "search": search,
    "report": report,
    "models": models,
    "convert": convert,
    "doctor": doctor,
}


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command line and exit."""
    sys.stdout, sys.stderr = sys.stdout or nowhere(), sys.stderr or nowhere()  # closed by whoever started this
    for stream in (sys.stdout, sys.stderr):  # a name that the locale cannot write is no reason to end
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except LimnerError as error:
        say(f"limner: {error}")
        sys.exit(error.exit_code)
    except BrokenPipeError:  # whoever read has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        place = "" if error.filename is None else f"{error.filename}: "
        say(f"limner: {place}{error.strerror or error}")
        sys.exit(1)
    except KeyboardInterrupt:
        say("limner: interrupted")
        sys.exit(130)
    sys.exit(0)


def nowhere() -> TextIO:
    """A file that takes everything."""
    return Path(os.devnull).open("w")


def dispatch(args: list[str]) -> None:
    """Find the verb at the front of `args` and call it with the rest."""
    if args[:1] == ["--version"]:
        import limner

        print(f"limner {limner.__version__}")
        return
    for length in (2, 1):
        name = " ".join(args[:length])
        if name in VERBS:
            call(*todays(name, args[length:]))
            return
    if not args or args[0] in ("-h", "--help", "help"):
        print(overview())
        return
    group = [name for name in VERBS if name.startswith(f"{args[0]} ")]
    if group and (len(args) == 1 or args[1] in ("-h", "--help")):
        print("\n".join(line_of(name) for name in group))
        return
    asked = " ".join(args[: 2 if group else 1])
    raise ConfigError(
        "The command",
        must=f"be one of {', '.join(VERBS)}",
        got=repr(asked),
        then=did_you_mean(asked, VERBS, "See limner --help."),
    )


def call(name: str, args: list[str]) -> None:
    """Call a verb; the settings of `train` depend on its first word, the recipe."""
    if name == "train":
        train_by_recipe(args)
    else:
        from_flags(VERBS[name], args, name)


def overview() -> str:
    """What `limner --help` prints."""
    lines = ["limner: from captioned pictures to a model that names and finds pictures.", ""]
    lines += map(line_of, VERBS)
    lines += ["", "limner VERB --help explains a verb. New here? limner demo trains a model and shows what it can do."]
    return "\n".join(lines)


def line_of(name: str) -> str:
    """The line about a verb in an overview."""
    return f"  limner {name:<16} {summary(VERBS[name])}"


# --- spellings of before ---------------------------------------------------------------------------------------------


def todays(name: str, args: list[str]) -> tuple[str, list[str]]:
    """A command line in today's spelling. One of before still works, and is answered with the new one."""
    flags = [arg.split("=")[0] for arg in args]
    if name == "train" and flags[:1] == ["--resume"]:
        now = "resume", taken_out(args, 0)
    elif name == "tokenizer train" and "--data" in flags:
        now = name, taken_out(args, flags.index("--data"))
    elif name in ("convert", "data shard") and "--out" not in flags and len(places := words(VERBS[name], args)) == 2:
        now = name, [*args[: places[1]], "--out", *args[places[1] :]]
    else:
        return name, args
    say(f"The new spelling is: limner {shlex.join([*now[0].split(), *now[1]])}")
    return now


def taken_out(args: list[str], place: int) -> list[str]:
    """`args` with the flag at `place` left out and its value, beside it or after a =, in front."""
    _, equals, value = args[place].partition("=")
    values, after = ([value], place + 1) if equals else (args[place + 1 : place + 2], place + 2)
    return [*values, *args[:place], *args[after:]]


def words(verb: Callable[..., Any], args: list[str]) -> list[int]:
    """The places in `args` of what is neither a flag nor a flag's value."""
    switches = [
        f"--{p.name.replace('_', '-')}" for p in inspect.signature(verb).parameters.values() if p.annotation is bool
    ]
    takes_value = [arg.startswith("-") and "=" not in arg and arg not in switches for arg in args]
    return [i for i, arg in enumerate(args) if not arg.startswith("-") and not (i and takes_value[i - 1])]
