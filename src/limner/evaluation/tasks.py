"""What a model is measured on: `Task = pictures + classes + prompts + metric`, whatever their layout.

```
SET/{test,val,train}: shards, tables, lists or class folders     ┐
SET/{test,val,train}.csv (.tsv, .jsonl, .parquet)                ├─> read_task ─> Task: measured on test, or on val;
shards, tables, a list, class folders: no split                  │                the others are for the linear probe
hf-hub:org/name, fetched                                         ┘
```
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from limner.config import DEFAULT_TEMPLATES, RunConfig
from limner.data.pairs import Source, innermost, is_hidden, lines_beside
from limner.data.sources.beside import METADATA
from limner.data.sources.read import absolute, read_images, read_pairs, split_pairs
from limner.errors import ConfigError, DataError
from limner.evaluation.classes import NO_CLASSES, SPLITS, Classes, Label, classes_of, split_of
from limner.evaluation.registry import Entry
from limner.evaluation.zero_shot import prompts_of
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
        return [prompts_of(names, self.templates) for names in self.classes.names]


def read_task(path: Any, *, name: str = "", entry: Entry | None = None, fetch_train: bool = False) -> Task:
    """The task at a path: a folder of splits, or pictures of one; see the module's docstring.

    Of a copy on the hub the pictures to measure are fetched; the training pictures, which may be many more, only with
    `fetch_train`. Raises `DataError` if there is no picture, or if what is there does not fit together.
    """
    if isinstance(path, str) and path.startswith("hf-hub:"):
        name = name or path.removeprefix("hf-hub:").partition("@")[0]
        path = fetch_dataset(path.removeprefix("hf-hub:"), train=fetch_train)
        splits = {split: place for split, place in splits_of(path).items() if fetch_train or split != "train"}
    else:
        splits = splits_of(path)
    if not splits:
        return task_of(read_images(path), name=name, entry=entry)
    order = [split for split in SPLITS if split in splits]
    found = {split: read_images(splits[split]) for split in order}
    where = Path(splits[order[0]].split("::")[0]).name
    rest = f"; for the linear probe there is {' and '.join(order[1:])}" if len(order) > 1 else ""
    say(f"Of {path} the split {order[0]} ({where}) is measured{rest}.")
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
        entry=entry,
    )


def splits_of(path: Any) -> dict[str, str]:
    """The place of each split in the folder at `path`: folders, or lists, tables and shards that are named by splits;
    {}: it is no folder of splits.

    Raises `DataError` where some names are splits and others are not, and for two that may be the same split.
    """
    folder = Path(str(path))
    if "::" in str(path) or not folder.is_dir():
        return {}
    inside = sorted(one for one in folder.iterdir() if not is_hidden(one.name))
    files = [one for one in (*inside, *sorted(folder.glob("data/*.parquet"))) if one.suffix.lower() in DATA_ENDINGS]
    files = [one for one in files if one.name != "classnames.csv"]
    named = _by_split(files)
    if {"test", "val"} & named.keys() or (named and all(one.suffix == ".parquet" for one in files)):
        _require_all(folder, files, named)
    else:
        folders = [one for one in inside if one.is_dir()]
        is_read_itself = any(one.suffix == ".tar" or one.name in METADATA for one in files)
        named = {} if is_read_itself else _by_split(folders)
        if not {"test", "val"} & named.keys() and len(folders) != len(named):
            return {}
        if "train" in named:
            _require_all(folder, folders, named)
        elif sum(map(len, named.values())) < len(folders):
            return {}
    for split, several in named.items():
        if len({_said(one) for one in several}) > 1 or (len(several) > 1 and several[0].is_dir()):
            raise DataError(
                f"The folder {path}",
                must="hold one split of each kind",
                got=f"{' and '.join(one.name for one in several[:3])} for {split}",
                then="Give the one to measure on, or take the other away.",
            )
    return {split: "::".join(map(str, several)) for split, several in named.items()}


DATA_ENDINGS = (".tar", ".csv", ".tsv", ".jsonl", ".parquet")


def _said(place: Path) -> str:
    """What a folder's or file's name says, without the number of a part: train of train-00000-of-00002.parquet."""
    return re.sub(r"[-_.]?\d+([-_]of[-_]\d+)?$", "", place.stem) if split_of(place.stem) is None else place.stem


def _by_split(places: Sequence[Path]) -> dict[str, list[Path]]:
    """Those that are named by a split."""
    found = dict[str, list[Path]]()
    for place in places:
        if split := split_of(_said(place)):
            found.setdefault(split, []).append(place)
    return found


def _require_all(folder: Path, places: Sequence[Path], named: dict[str, list[Path]]) -> None:
    others = [one.name for one in places if not any(one in several for several in named.values())]
    if others:
        raise DataError(
            f"The folder {folder}",
            must="hold splits alone, or none",
            got=f"{', '.join(named)} and beside them {', '.join(others[:3])}",
            then=f"Give the one to measure on, such as {next(iter(named.values()))[0]}, or move the others elsewhere.",
        )


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
