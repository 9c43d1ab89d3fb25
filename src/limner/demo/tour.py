"""`limner demo`: every step from pictures to a report, each the same function that its own verb calls."""

import re
import shlex
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from limner.config import DEFAULT_TEMPLATES, RunConfig
from limner.data.sources.read import read_pairs
from limner.data.tokenizer import Tokenizer
from limner.demo.pairs import default_folder, write_demo
from limner.embed import Embedded, embed_images
from limner.errors import ConfigError
from limner.evaluation.results import Evaluation, write_evaluation
from limner.evaluation.suite import evaluate_features
from limner.evaluation.tasks import own_task
from limner.evaluation.zero_shot import ZeroShotClassifier
from limner.files import write_bytes, write_json
from limner.progress import say
from limner.recipes import RECIPES
from limner.report.run import write_report
from limner.run import RunDirectory
from limner.store.store import load
from limner.training.loop import train
from limner.training.prepare import settled
from limner.use.classify import name_all
from limner.use.search import find_among

SENTENCES = {
    "emoji": (
        "a smiling cat",
        "something to eat",
        "red heart",
        "a musical instrument",
        "a green plant",
        "a vehicle with wheels",
        "an angry face",
        "the moon at night",
    ),
    "digits": ("the digit three", "a handwritten seven.", "zero"),
}


def run_demo(source: Literal["emoji", "digits"], out: Path | None = None) -> Path:
    """Fetch or make the pairs, train, evaluate, classify, search, report; returns the report's path.

    A run that is there and was stopped is continued; one that was finished is measured again.
    """
    started = time.monotonic()
    recipe = {"emoji": "demo", "digits": "digits"}[source]
    config = RECIPES[recipe]()
    config = settled(replace(config, out=out or Path("runs") / recipe))
    assert config.out is not None and config.test is not None and config.data is not None
    run = RunDirectory(config.out)

    say("\n1. The pairs")
    write_demo(default_folder(source), source=source)

    say("\n2. The tokenizer")
    if not run.config.exists():
        Tokenizer.train(read_pairs(config.data).captions(), vocab_size=config.vocab_size).save(run.tokenizer)
    say(f"{short(run.tokenizer)}: {Tokenizer.load(run.tokenizer).vocab_size} tokens.")

    say("\n3. Training")
    train_or_continue(replace(config, tokenizer=str(run.tokenizer)), run)

    say("\n4. Zero-shot evaluation on pictures never seen")
    model = load(run.path, device="auto")
    embedded = embed_images(model, own_task(run))
    evaluation = evaluate_features(model, embedded)
    write_evaluation(run, evaluation)

    say("\n5. Classify and search")
    chosen = some_images(embedded)
    names = [pair.captions[0] for pair in chosen.pairs()]
    images = write_images(chosen, run.path / "pictures")
    classifier = ZeroShotClassifier(model, names, DEFAULT_TEMPLATES)
    for path, answer in zip(images, name_all(classifier, chosen, top=3), strict=True):
        likeliest = ", ".join(f"{name} {share:.0%}" for name, share in answer.names.items())
        say(f"{path.name:<32} {likeliest}")
    sentences = SENTENCES[source]
    captions = {pair.key: pair.captions[0] for pair in embedded.pairs()}
    hits = find_among(model, embedded, sentences[0], top=5)
    say(f'Found for "{sentences[0]}": {", ".join(captions[hit.key] for hit in hits)}')

    say("\n6. The report")
    report = write_report(run.path, sentences=sentences, model=model, embedded=[embedded])

    summary = summarise(evaluation, run)
    write_json(run.path / "summary.json", summary)
    for part, facts in summary.items():
        for name, value in facts.items():
            print(
                f"  {part + '.' + name:<26} {value:,.3f}"
                if isinstance(value, float)
                else f"  {part + '.' + name:<26} {value:,}"
            )
    say(f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes. Open {short(report)} in a browser.\nThen try:")
    limner, where = command_name(), short(run.path)
    say(f"  {limner} classify {where} {short(images[0])} --labels {shlex.join(names[:3])}")
    say(f"  {limner} search {where} {where}/pictures {shlex.quote(sentences[0])}")
    say(f"  {limner} train small --data A_FOLDER_OF_YOUR_PICTURES_WITH_TXT_FILES_BESIDE_THEM")
    return report


def command_name() -> str:
    """What a person types to run limner here: its path when it is not on the PATH."""
    return "limner" if shutil.which("limner") else short(Path(sys.executable).parent / "limner")


def short(path: Path) -> str:
    """`path` from the current folder, if it is inside."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def train_or_continue(config: RunConfig, run: RunDirectory) -> None:
    """Train, continue a run that was stopped, or find that it is finished."""
    if not run.config.exists():
        train(config)
        return
    apart = {"data": None, "test": None, "out": None, "tokenizer": None}
    before, now = (replace(settled(one), **apart) for one in (run.read_config(), config))
    if before != now:
        raise ConfigError(
            f"The run {run.path}",
            must="be one of this demo",
            got="a run with other settings",
            then="Choose another --out, or move the folder away.",
        )
    if run.is_finished:
        say(f"{run.path} is trained already; remove the folder to train again.")
    else:
        train(config, resume=True)


def some_images(embedded: Embedded, number: int = 8) -> Embedded:
    """Images of `number` different captions."""
    pairs, first = embedded.pairs(), dict[str, int]()
    for place in np.random.default_rng(1).permutation(len(pairs)).tolist():
        first.setdefault(pairs[place].captions[0], place)
    places = list(first.values())[:number]
    indices = [embedded.indices[place] for place in places]
    return replace(embedded, indices=indices, features=embedded.features[places])


def write_images(embedded: Embedded, folder: Path) -> list[Path]:
    """Write images as files named after their captions."""
    paths = []
    for pair in embedded.pairs():
        name = re.sub("[^a-z0-9]+", "-", pair.captions[0].lower()).strip("-")
        paths.append(folder / f"{name}.png")
        write_bytes(paths[-1], pair.read())
    return paths


def summarise(evaluation: Evaluation, run: RunDirectory) -> dict[str, dict[str, float | int]]:
    """What summary.json holds: shares in [0, 1], seconds, pairs, GB (10**9 bytes)."""
    summary: dict[str, dict[str, float | int]] = {}
    for row in evaluation.rows:
        part, _, name = row.metric.partition(".")
        summary.setdefault(part, {})[name] = row.value
    if evaluation.class_names:
        summary.setdefault("zero_shot", {})["classes"] = len(evaluation.class_names)
    last = run.read_metrics()[-1]
    summary["train"] = {
        "seconds": last["seconds"],
        "pairs": last["pairs"],
        "pairs_per_second": last["pairs"] / last["seconds"],
        "peak_memory_gb": last["peak_memory_gb"],
    }
    return summary
