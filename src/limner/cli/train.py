"""The verbs about runs: `limner train`, `limner resume`, `limner demo`, `limner report`."""

import inspect
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from limner.architecture import Architecture
from limner.cli.show import from_flags, print_json, summary
from limner.config import RunConfig
from limner.errors import ConfigError, did_you_mean, require
from limner.progress import say
from limner.recipes import RECIPES


def train(config: RunConfig, *, json: bool = False) -> None:
    """Train a CLIP by a recipe: limner train RECIPE [--data DATA].

    Args:
        json: print JSON.
    """
    from limner.training.loop import train as train_run

    finish(train_run(config), json=json)


def resume(run: Path, /, *, other_data: bool = False, max_dropped: float | None = None, json: bool = False) -> None:
    """Continue a run that was stopped, to the bit.

    Args:
        run: the run directory.
        other_data: go on although the training data is not what it was; without this such a run is refused.
        max_dropped: from now on, the share of pairs that may be unusable.
        json: print JSON.
    """
    from limner.run import RunDirectory
    from limner.training.loop import train as train_run

    config = replace(RunDirectory(run).read_config(), out=run)
    if max_dropped is not None:
        config = replace(config, max_dropped=max_dropped)
    finish(train_run(config, resume=True, other_data=other_data), json=json)


def demo(*, source: Literal["emoji", "digits"] = "emoji", out: Path | None = None, json: bool = False) -> None:
    """Everything at once: get pictures, train, measure, name, search, report.

    The pictures that the model is measured on are none that it saw.

    Args:
        source: emoji (three drawing styles from npm packages, 5 to 20 minutes of training) or digits (no network).
        out: the run directory; runs/demo or runs/digits by default.
        json: print JSON.
    """
    from limner.demo.tour import run_demo
    from limner.files import read_json

    with redirect_stdout(sys.stderr) if json else nullcontext():
        page = run_demo(source, out)
    if json:
        print_json({**facts_of(page.parent), "report": str(page), **read_json(page.parent / "summary.json")})


def report(run: Path, /, *, json: bool = False) -> None:
    """Write RUN/report.html from what the run and limner eval left there.

    It is one self-contained page: the curves, the numbers, pictures with their names, a search grid.

    Args:
        run: a run directory that was evaluated.
        json: print JSON.
    """
    from limner.report.run import write_report

    page = write_report(run)
    say(f"Wrote {page}.")
    if json:
        print_json({**facts_of(run), "written": str(page)})


# --- recipes ---------------------------------------------------------------------------------------------------------


def train_by_recipe(args: Sequence[str]) -> None:
    """Train by the recipe at the front of `args` with the settings in the rest."""
    if not args or args[0] in ("-h", "--help"):
        print("limner train RECIPE [--data DATA] [--train.epochs 20] ...   starts a run in runs/RECIPE")
        print("limner resume RUN                                           continues one to the bit\n")
        print("\n".join(f"  {name:<12} {summary(recipe)}" for name, recipe in RECIPES.items()))
        print("\nlimner train RECIPE --help lists every setting with the recipe's value.")
        return
    name, *settings = args
    if name not in RECIPES:
        raise ConfigError(
            "The recipe",
            must=f"be one of {', '.join(RECIPES)}",
            got=repr(name),
            then=did_you_mean(name, RECIPES, "See limner train --help."),
        )
    given = {setting.partition("=")[0].replace("_", "-") for setting in settings}
    has_none = "--tokenizer=None" in settings or ("--tokenizer", "None") in pairwise(settings)
    require(
        not {"--init", "--vocab-size"} <= given,
        "The settings --init and --vocab-size",
        "not be given together",
        "both",
        "Leave --vocab-size out: the model to start from has its tokenizer, and its text encoder knows no other.",
    )
    require(
        not {"--tokenizer", "--vocab-size"} <= given or has_none,
        "The settings --tokenizer and --vocab-size",
        "not be given together",
        "both",
        "Leave --vocab-size out: a tokenizer that is there has the size that it has.",
    )
    recipe = RECIPES[name]
    verb = partial(train, config=replace(recipe(), out=Path("runs") / name))
    from_flags(verb, settings, f"train {name}", description=inspect.getdoc(recipe), registry=architectures_by_name())


def architectures_by_name() -> Any:
    """tyro's rule for a config's model: on the command line it is a name; one's own is given from Python."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

    registry = ConstructorRegistry()

    @registry.primitive_rule
    def _(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[str | Architecture] | None:
        if info.type != str | Architecture:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="STR",
            instance_from_str=lambda args: args[0],
            is_instance=lambda value: isinstance(value, str | Architecture),
            str_from_instance=lambda value: [str(value)],
        )

    return registry


# --- results ---------------------------------------------------------------------------------------------------------


def finish(run: Path, *, json: bool) -> None:
    """Say where the trained model is, once: on rank 0."""
    from limner.training.world import rank

    if rank() == 0:
        say(f"The model is in {run / 'model'}. Next: limner eval {run}")
        if json:
            print_json(facts_of(run))


def facts_of(run: Path) -> dict[str, Any]:
    """What a finished run has written, for machines."""
    from limner.files import read_json
    from limner.run import RunDirectory
    from limner.store.foreign import own_facts, read_config

    directory = RunDirectory(run)
    last = directory.read_metrics()[-1]
    return {
        "written": str(run),
        "model": str(directory.model),
        "fingerprint": (own_facts(read_config(directory.model)) or {}).get("fingerprint"),
        "data": read_json(directory.data)["fingerprint"],
        "steps": last["step"],
        "pairs_seen": last["pairs"],
        "seconds": last["seconds"],
    }
