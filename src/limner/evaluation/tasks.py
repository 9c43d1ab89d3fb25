"""What a model is measured on: `Task = pictures + classes + prompts + metric`, whatever their layout.

```
SET/{test,val,train}: shards, tables, lists or class folders     ┐
SET/{test,val,train}.csv (.tsv, .jsonl, .parquet)                ├─> read_task ─> Task: measured on test, or on val;
shards, tables, a list, class folders: no split                  │                the others are for the linear probe
hf-hub:org/name, fetched                                         ┘
```
"""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from limner.config import DEFAULT_TEMPLATES, RunConfig
from limner.data.pairs import Source, innermost, is_hidden, lines_beside
from limner.data.sources.read import absolute, read_images, read_pairs, split_pairs
from limner.errors import ConfigError, DataError
from limner.evaluation.classes import NO_CLASSES, SPLITS, Classes, Label, classes_of, split_of
from limner.evaluation.registry import Entry
from limner.files import read_json
from limner.progress import say
from limner.run import RunDirectory
from limner.store.hub import fetch_dataset


@dataclass(frozen=True, kw_only=True)
class Split:
    """Some pictures of a task."""

    source: Source
    labels: list[Label]
    """The class of each pair of the source."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a model is measured on."""

    name: str
    test: Split
    """The pictures that it is measured on."""
    train: Split | None = None
    validation: Split | None = None
    """Those that a linear probe is fitted to, and those that its strength is chosen by."""
    classes: Classes = NO_CLASSES
    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    prompts: tuple[tuple[str, ...], ...] = ()
    """The prompts of each class, where they are given themselves; empty: the names in the templates."""
    metric: str = "top1"
    """What it is measured by: a name in `classified.METRICS`."""
    entry: Entry | None = None
    """What the registry says of it, if it is one of the paper's."""

    @property
    def path(self) -> str:
        """Where the pictures are, for people."""
        return str(self.test.source.path)

    @property
    def place(self) -> str:
        """Where the pictures are, so that it means the same from any folder."""
        return place_of_task(self.test.source)

    def prompts_of(self) -> list[list[str]]:
        """The prompts of each class: each of its names in each template, or those that were given."""
        if self.prompts:
            return [list(several) for several in self.prompts]
        return [
            [template.replace("{}", name) for name in names for template in self.templates]
            for names in self.classes.names
        ]


def read_task(path: Any, *, name: str = "", entry: Entry | None = None, fetch_train: bool = False) -> Task:
    """The task at a path: a folder of splits, or pictures of one; see the module's docstring.

    Of a copy on the hub the pictures to measure are fetched; the training pictures, which may be many more, only with
    `fetch_train`. Raises `DataError` if there is no picture, or if what is there does not fit together.
    """
    if isinstance(path, str) and path.startswith("hf-hub:"):
        name = name or path.removeprefix("hf-hub:").partition("@")[0]
        path = fetch_dataset(path.removeprefix("hf-hub:"), train=fetch_train)
    splits = splits_of(path)
    if not splits:
        return task_of(read_images(path), name=name, entry=entry)
    order = [split for split in SPLITS if split in splits]
    found = {split: read_images(splits[split]) for split in order}
    if order[0] == "train":
        say(f"{path} has no other split than train: that one is measured.")
    measured = found.pop(order[0])
    return task_of(measured, found.get("train"), found.get("val"), name=name, entry=entry)


def task_of(
    measured: Source,
    train: Source | None = None,
    validation: Source | None = None,
    *,
    name: str = "",
    entry: Entry | None = None,
) -> Task:
    """A task of opened sources."""
    there = [one for one in (measured, train, validation) if one is not None]
    classes, labels = classes_of([(one, list(one)) for one in there])
    splits = {id(one): Split(source=one, labels=own) for one, own in zip(there, labels, strict=True)}
    return Task(
        name=name or name_of_task(measured),
        test=splits[id(measured)],
        train=None if train is None else splits[id(train)],
        validation=None if validation is None else splits[id(validation)],
        classes=classes,
        templates=tuple(templates_of_task(measured)),
        metric=entry.metric if entry is not None else "top1",
        entry=entry,
    )


def splits_of(path: Any) -> dict[str, str]:
    """The place of each split in the folder at `path`, if it holds nothing else; {}: it is no folder of splits.

    Raises `DataError` for two folders that may be the same split.
    """
    folder = Path(str(path))
    if "::" in str(path) or not folder.is_dir():
        return {}
    inside = sorted(one for one in folder.iterdir() if not is_hidden(one.name))
    folders = [one for one in inside if one.is_dir()]
    shards = [one for one in inside if one.suffix.lower() in (".tar", ".arrow")]
    files = [*shards, *(one for one in inside if one.suffix.lower() in (".csv", ".tsv", ".jsonl", ".parquet"))]
    lists = [one for one in files if split_of(one.stem)]
    tables = sorted([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")])
    parts = {one: found[1] for one in tables if (found := re.fullmatch(r"(\w+?)-\d+-of-\d+\.parquet", one.name))}
    if parts and len(parts) == len(tables):
        places = [(split, one) for one, split in parts.items()]
    elif {split_of(one.stem) for one in lists} & {"test", "val"} and set(shards) <= set(lists):
        places = [(one.stem, one) for one in lists]
    elif folders and not shards and all(split_of(one.name) for one in folders):
        places = [(one.name, one) for one in folders]
    else:
        return {}
    splits: dict[str, dict[str, list[str]]] = {}
    for said, place in places:
        if split := split_of(said):
            splits.setdefault(split, {}).setdefault(said, []).append(str(place))
    for split, several in splits.items():
        if len(several) > 1 or (not parts and len(next(iter(several.values()))) > 1):
            raise DataError(
                f"The folder {path}",
                must="hold one split of each kind",
                got=f"{' and '.join(sorted(several))} for {split}",
                then="Give the one to measure on, or take the other away.",
            )
    return {split: "::".join(next(iter(several.values()))) for split, several in splits.items()}


# --- a run's own pictures ---------------------------------------------------------------------------------------------


def own_task(run: RunDirectory) -> Source:
    """What a run is measured on: its test set, or the pairs that it kept back from training."""
    config = run.read_config()
    if config.test is not None:
        return read_images(config.test)
    assert config.data is not None
    trained, kept_back = split_pairs(config.data, config.data_weights, holdout=config.holdout)
    said = _told(run.data, "fingerprint")
    if trained.fingerprint != said["fingerprint"] or said.get("trained_before"):
        raise DataError(
            f"The pairs of {config.data}",
            must=f"be those that {run.path} was trained on, so that the ones that it kept back are known",
            got="others: some of the pairs that would be kept back now may have been trained on",
            then="Put the data back as it was, or give --data with pictures that the run was not trained on.",
        )
    if len(kept_back) == 0:
        raise ConfigError(
            f"The run {run.path}",
            must="have a test set or held-out pairs",
            got="neither, or too few pairs to keep any back",
            then="Give --data with pictures that it was not trained on.",
        )
    return kept_back


def was_trained_on(run: RunDirectory, source: Source) -> bool:
    """Whether a run was trained on pairs at the place of `source`, on the same files, or on shards or tables with the
    same content. Copies of single images are not found out, nor pairs that were packed anew."""
    config = run.read_config()
    if config.data is None:
        return False
    told = _told(run.manifest, "parts")["parts"] if run.manifest.is_file() else []
    trained = {part[name] for part in told for name in ("digest", "of") if name in part}
    splits = [source, source.split(config.holdout)[0]] if config.test is None else [source]
    parts = [each for one in splits for part in one.parts for each in (part, innermost(part))]
    is_same = any(part.digest() in trained for part in parts)
    is_there = not set(place_of_task(source).split("::")).isdisjoint(absolute(config.data).split("::"))
    files = _files(source)
    return is_same or is_there or bool(files and files & _files_trained_on(config))


def _told(file: Path, name: str) -> dict[str, Any]:
    """What a JSON file of a run says. Raises `ConfigError` if it does not say `name`."""
    said = read_json(file)
    if not isinstance(said, dict) or name not in said:
        raise ConfigError(
            f"The file {file}", must=f"say {name}", got="nothing of it", then="Take it from a copy of the run."
        )
    return said


def _files_trained_on(config: RunConfig) -> set[Path]:
    """The single files among the images that a run was trained on, as far as they are still there."""
    assert config.data is not None
    try:
        source = read_pairs(config.data, config.data_weights)
    except DataError:  # it is not there any more
        return set()
    if config.test is None and _files(source):
        source, _ = source.split(config.holdout)
    return _files(source)


def _files(source: Source) -> set[Path]:
    return {path.resolve() for part in source.parts for path in part.loose()}


def place_of_task(source: Source) -> str:
    """Where the images of a task are, so that it means the same from any folder."""
    return str(source.path.resolve()) if isinstance(source.path, Path) else absolute(source.path)


def name_of_task(source: Source) -> str:
    """The last two parts of its place, without the ending of a list or a shard: "digits/test"."""
    place = place_of_task(source)
    is_file = not Path(place).is_dir() and re.search(r"\.(tar|csv|tsv|jsonl|parquet)$", place)
    return "/".join(PurePosixPath(place[: is_file.start()] if is_file else place).parts[-2:])


def templates_of_task(source: Source) -> list[str]:
    """The templates that lie beside the images, as CLIP_benchmark keeps them, or the default ones."""
    found = lines_beside(source.path, "zeroshot_classification_templates.txt")
    return [line.replace("{c}", "{}") for line in found] or list(DEFAULT_TEMPLATES)
