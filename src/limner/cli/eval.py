"""The verbs that measure: `limner eval` and what belongs to it."""

import os
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from limner.cli.show import print_json, print_table
from limner.errors import require
from limner.progress import quiet, say

Precision = Literal["fp32", "bf16"]
RANKS_SECONDS = 600
"""How long one rank may stand still where others went on."""


def evaluate(
    model: str,
    /,
    *,
    data: tuple[str, ...] = (),
    suite: str | None = None,
    only: tuple[str, ...] = (),
    root: Path | None = None,
    do: tuple[Literal["zero-shot", "linear-probe", "retrieval"], ...] = (),
    prompts: Path | None = None,
    probe_features: Literal["before", "after"] = "before",
    out: Path | None = None,
    device: str = "auto",
    precision: Precision = "fp32",
    features: Path | None = None,
    json: bool = False,
) -> None:
    """Measure a run or a model: zero-shot, linear probe, retrieval.

    Zero-shot accuracy is measured where pictures have labels, a linear probe where training pictures with labels lie
    beside them (train/ and test/ in one folder), recall both ways where they have captions. Each number comes with an
    interval.

    Args:
        model: a run, measured on its own test set, or a model directory.
        data: what to measure on instead: folders, lists, shards, or hf-hub:org/name.
        suite: the tasks of a suite of the paper; limner eval tasks lists them.
        only: of these tasks, or of all that limner eval tasks lists, only some.
        root: the folder that holds a folder for each task of a suite.
        do: what to measure; without it, all that the data allows.
        prompts: a file of templates, or a JSON file of the sentences of each class.
        probe_features: stand the linear probe before or after the image encoder's projection.
        out: a folder for the results; what is done there is not measured again.
        device: auto (a GPU where there is one, else the CPU), cpu, cuda, or one of several: cuda:1.
        precision: what the encoders compute in; bf16 is faster on a GPU and less exact.
        features: keep the features of the pictures in this folder, and take them from there the next time.
        json: print the rows as JSON.
    """
    from limner.evaluation.registry import tasks_of
    from limner.evaluation.suite import How, evaluate_run, present
    from limner.training.world import world

    asked = bool(suite or only)
    require(
        asked == (root is not None), "--root", "come with --suite or --only, and they with it", "one alone", "Add it."
    )
    require(not (asked and data), "--data", "not come with --suite or --only", "both", "Measure one after the other.")
    entries = tasks_of(suite, only) if asked else []
    many = int(os.environ.get("WORLD_SIZE", "1")) > 1
    with world(RANKS_SECONDS) if many else nullcontext() as ranks, quiet(unless=ranks is None or ranks.rank == 0):
        how = How(
            protocols=do,
            prompts=prompts,
            probe_features=probe_features,
            keep=features,
            group=None if ranks is None else ranks.group,
        )
        if root is not None and not only:
            entries = present(entries, root)
        evaluations, failed = evaluate_run(
            model,
            entries or data,
            how,
            root=root,
            out=out,
            device=str(ranks.device) if ranks is not None and device == "auto" else device,
            precision=precision,
        )
        if ranks is None or ranks.rank == 0:
            show(evaluations, json=json)
    if failed:
        sys.exit(1)


def show(evaluations: list, *, json: bool) -> None:
    """Print the rows of evaluations."""
    from limner.evaluation.metrics import describe_row

    rows = [(evaluation.trained_on, row) for evaluation in evaluations for row in evaluation.rows]
    if json:
        print_json([asdict(row) | {"trained_on": trained_on} for trained_on, row in rows])
        return
    mark = {True: " (trained on)", False: ""}
    print_table(
        ("task", "metric", "value", "interval", "kind", "of"),
        [
            (row.task + mark[known], row.metric, *describe_row(row), row.interval or "", f"{row.count:,}")
            for known, row in rows
        ],
    )
    for setting in dict.fromkeys(f"{row.task}: {row.setting}" for _, row in rows if row.setting):
        say(setting)


def tasks(
    *,
    suite: str | None = None,
    only: tuple[str, ...] = (),
    root: Path | None = None,
    model: str | None = None,
    json: bool = False,
) -> None:
    """List the tasks of the paper, and which of them are in a folder.

    Args:
        suite: those of a suite: paper, probe27, zero-shot, retrieval, shifts, ocr, action or geo.
        only: some of them.
        root: say what is there of each in this folder, which holds a folder for each task.
        model: the paper's numbers of this model, such as ViT-B/32, in per cent; (r) are recalled, not read.
        json: print all that is known of each as JSON.
    """
    from limner.evaluation.registry import BEST, METRICS, SUITES, tasks_of

    entries = tasks_of(suite, only)
    states = dict[str, str]()
    if root is not None:
        from limner.evaluation.suite import state_of

        states = {entry.name: state_of(entry, root) for entry in entries}
    if json:
        print_json([asdict(entry) | ({"state": states[entry.name]} if states else {}) for entry in entries])
        return

    def number(value: int | float | None) -> str:
        return "" if value is None else f"{value:,}"

    chosen = model or BEST
    require(
        any(chosen in entry.zero_shot for entry in entries),
        "--model",
        "be one of the paper's",
        chosen,
        "For example: --model ViT-B/32.",
    )
    header = ["task", "suites", "kind", "metric", "classes", "pictures", "public copy", "zero-shot", "probe"]
    rows = []
    for entry in entries:
        paper = []
        numbers: list[tuple[Literal["zero-shot", "linear-probe"], dict[str, float]]]
        numbers = [("zero-shot", entry.zero_shot), ("linear-probe", entry.linear_probe)]
        for protocol, values in numbers:
            mark = "" if entry.how_known(protocol, chosen) == "read" else " (r)"
            paper.append(f"{values[chosen]}{mark}" if chosen in values else "")
        suites = " ".join(one for one in entry.suites if one != "paper")
        about = (entry.name, suites, entry.kind, entry.metric, number(entry.classes), number(entry.test), entry.copy)
        rows.append([*about, *paper, *([states[entry.name]] if states else [])])
    print_table([*header, f"in {root}"] if states else header, rows)
    metrics = dict.fromkeys(entry.metric for entry in entries)
    say("\n".join(["", *(f"{name}: {METRICS[name]}" for name in metrics)]))
    say(f"Numbers are the paper's of {chosen}, in per cent; (r): recalled, not read again.")
    say(f"Suites: {', '.join(SUITES)}. With --json: splits, licences and what to know of each.")


def prompts(
    model: str,
    data: str,
    /,
    *,
    out: Path,
    templates: Path | None = None,
    device: str = "auto",
    precision: Precision = "fp32",
    features: Path | None = None,
    json: bool = False,
) -> None:
    """Choose the templates that name your pictures best.

    limner eval prompts MODEL DATA --out prompts.json. They are chosen on one half of the pictures, and measured on
    the other.

    Args:
        model: a run or a model directory.
        data: pictures with labels; of a folder with train/ in it, those.
        out: the file to write, for limner eval --prompts.
        templates: a file of templates to choose from, one a line; without it, those beside the pictures and some forty
            others.
        device: auto (a GPU where there is one, else the CPU), cpu, cuda, or one of several: cuda:1.
        precision: what the encoders compute in; bf16 is faster on a GPU and less exact.
        features: keep the features of the pictures in this folder, and take them from there the next time.
        json: print JSON.
    """
    from limner.evaluation.prompts import choose_templates, read_prompts, write_choice
    from limner.evaluation.tasks import read_task
    from limner.store.store import load

    given = [] if templates is None else read_prompts(templates)
    require(isinstance(given, list), "--templates", "be a file of templates", "sentences of classes", "Give a list.")
    task = read_task(data, fetch_train=True)
    choice = choose_templates(load(model, device=device, precision=precision), task, list(given), keep=features)
    write_choice(out, choice)
    if json:
        print_json(asdict(choice))
        return
    print_table(
        ("templates", "top-1", "95 % interval", "of"),
        [
            ("chosen", f"{choice.accuracy:.1%}", f"{choice.low:.1%} - {choice.high:.1%}", f"{choice.held_out:,}"),
            ("all", f"{choice.accuracy_of_all:.1%}", "", f"{choice.held_out:,}"),
            ("usual", f"{choice.accuracy_of_usual:.1%}", "", f"{choice.held_out:,}"),
        ],
    )
    say(f"\nChosen by {choice.chosen_by:,} other pictures, and written to {out}:")
    say("\n".join(f"  {template}" for template in choice.templates))


def compare(first: Path, second: Path, /, *, json: bool = False) -> None:
    """Compare two models on the same pictures: limner eval compare A B.

    Each is a run, or a folder that limner eval --out wrote. Accuracies and recalls are compared by McNemar's test, the
    mean over classes by a paired bootstrap; over several tasks chances are corrected by Holm's rule.

    Args:
        first: the results of one model.
        second: the results of the other.
        json: print JSON.
    """
    from limner.evaluation.compare import compare as differences

    found = differences(first, second)
    if json:
        print_json([asdict(one) for one in found])
        return
    print_table(
        ("task", "metric", "first", "second", "difference", "95 % interval", "chance", "corrected", "of"),
        [
            (
                one.task,
                one.metric,
                f"{one.first:.1%}",
                f"{one.second:.1%}",
                f"{one.difference:+.1%}",
                f"{one.low:+.1%} to {one.high:+.1%}",
                f"{one.chance:.3g}",
                f"{one.corrected:.3g}",
                f"{one.count:,}",
            )
            for one in found
        ],
    )


def explain(first: Path, second: Path, /, *, task: str | None = None, json: bool = False) -> None:
    """Find out why two zero-shot accuracies differ: limner eval explain A B.

    A and B are runs, folders that limner eval --out wrote, or JSON files such as {"value": 0.55, "interpolation":
    "bilinear"} for a result of another tool. Such a file may say model, data, class_names (in the order of the labels,
    or by id), templates, interpolation (bicubic, bilinear, nearest), ties (first, last, wrong), mean, std, precision;
    what it does not say is as in A. Everything in which they differ is measured again.

    Args:
        first: one result.
        second: the other.
        task: of several results, those of this task.
        json: print JSON.
    """
    from limner.evaluation.explain import explain as explanation

    found = explanation(first, second, task=task)
    if json:
        print_json(asdict(found))
        return
    rows = [("first", f"{found.first:.1%}", f"measured again: {found.measured_first:.1%}")]
    rows += [(cause, f"{worth:+.2%}", "") for cause, worth in found.causes.items()]
    rows += [("unexplained", f"{found.unexplained:+.2%}", "")]
    rows += [("second", f"{found.second:.1%}", f"measured again: {found.measured_second:.1%}")]
    print_table(("what", "top-1", ""), rows)
