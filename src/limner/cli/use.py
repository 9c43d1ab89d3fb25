"""The verbs that use a model: `limner classify`, `limner search`."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from limner.cli.show import as_typed, print_json, print_table, require_top
from limner.config import DEFAULT_TEMPLATES
from limner.errors import require
from limner.progress import say

Precision = Literal["fp32", "bf16"]


def classify(
    model: str,
    images: list[str],
    /,
    *,
    labels: tuple[str, ...] = (),
    label: tuple[str, ...] = (),
    labels_file: Path | None = None,
    template: tuple[str, ...] = DEFAULT_TEMPLATES,
    top: int = 5,
    device: str = "auto",
    precision: Precision = "fp32",
    features: Path | None = None,
    json: bool = False,
) -> None:
    """Name pictures: limner classify MODEL IMAGES --labels cat dog "red fox".

    Args:
        model: a model directory or a finished run.
        images: picture files, or folders, lists and shards of them.
        labels: the names to choose from; a single value may hold several, with commas between them.
        label: a name, commas and all; as often as you like. They come after those of --labels.
        labels_file: a file of names, one a line, commas and all; they come last.
        template: one or more sentences with {} where the name goes; their features are averaged.
        top: how many names to print for each picture.
        device: auto (a GPU where there is one, else the CPU), cpu, cuda, or one of several: cuda:1.
        precision: what the encoders compute in; bf16 is faster on a GPU and less exact.
        features: keep the features of the pictures in this folder, and take them from there the next time.
        json: print JSON.
    """
    from limner.report.html import percent
    from limner.store.store import load
    from limner.use.classify import classify_images

    names = [as_typed(name) for name in (*names_in(labels), *label)]
    names += names_of(labels_file) if labels_file is not None else []
    require_top(top)
    require(
        bool(images), "IMAGES", "be one picture at least, or a folder of them", "none", "Give them before --labels."
    )
    require(
        bool(names),
        "--labels, --label or --labels-file",
        "be one name at least",
        "none",
        "Put spaces between: --labels cat dog.",
    )
    for given in (*labels, *label):
        if given.endswith(".txt") and Path(given).is_file():
            say(f"{given} is taken for a name. For the names in that file: --labels-file {given}")
    loaded = load(model, device=device, precision=precision)
    templates = [as_typed(one) for one in template]
    answers = classify_images(loaded, images, names, templates, top=top, keep=features)
    if json:
        print_json([asdict(answer) for answer in answers])
    else:
        print_table(
            ("picture", "names"),
            [(a.image, "  ".join(f"{name} {percent(share)}" for name, share in a.names.items())) for a in answers],
        )


def search(
    model: str,
    data: str,
    text: str,
    /,
    *,
    top: int = 10,
    device: str = "auto",
    precision: Precision = "fp32",
    features: Path | None = None,
    json: bool = False,
) -> None:
    """Find pictures by a sentence: limner search MODEL DATA "a smiling cat".

    Args:
        model: a model directory or a finished run.
        data: a folder of pictures, a list, or shards.
        text: the sentence.
        top: how many pictures to print.
        device: auto (a GPU where there is one, else the CPU), cpu, cuda, or one of several: cuda:1.
        precision: what the encoders compute in; bf16 is faster on a GPU and less exact.
        features: keep the features of the pictures in this folder, and take them from there the next time.
        json: print JSON.
    """
    from limner.store.store import load
    from limner.use.search import find

    require_top(top)
    hits = find(load(model, device=device, precision=precision), data, as_typed(text), top=top, keep=features)
    if json:
        print_json([asdict(hit) for hit in hits])
    else:
        print_table(("similarity", "picture", "file"), [(f"{h.similarity:.3f}", h.key, h.path) for h in hits])


def names_in(labels: Sequence[str]) -> list[str]:
    """The names in --labels; a single value with commas, or values that end with one, are names between commas."""
    has_commas = len(labels) == 1 or any(label.endswith(",") for label in labels)
    names = " ".join(labels).split(",") if has_commas else labels
    return [name.strip() for name in names if name.strip()]


def names_of(file: Path) -> list[str]:
    """The names in a file, one a line; empty lines are none."""
    from limner.data.pairs import lines_of

    return [line.strip() for line in lines_of(file) if line.strip()]
