"""What a model is measured on, and what came of it.

A task is a source. Images with a label are classified zero-shot, images with captions measured in retrieval both ways.

```
.cls in shards, whole numbers as labels in a list ─> the lines of classnames.txt, in the folder or the one around it
texts as labels in a list                        ─> these texts, or the lines of classnames.txt that say the same
FOLDER/<class>/*.jpg, without any caption        ─> the folders' names, or the lines of classnames.txt: those that say
                                                    the same, or, where none does, one for each folder in their order
```

A class and its line are matched by their words; where only some of them match, that is an error, not a guess.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import cattrs

from limner.config import DEFAULT_TEMPLATES, RunConfig
from limner.data.pairs import Pair, Source, innermost, is_hidden, is_number, lines_beside
from limner.data.sources.read import absolute, read_images, read_pairs, split_pairs
from limner.data.tokenizer import clean
from limner.errors import ConfigError, DataError, require
from limner.evaluation.metrics import Row
from limner.evaluation.zero_shot import Prediction
from limner.files import printable, read_json, write_json
from limner.progress import say
from limner.run import RunDirectory
from limner.store.foreign import own_facts, read_config

SPLITS = ("test", "val", "train")
"""What folders that are no classes are called (`split_of`); the first that there is is the one to measure on."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The rows of one task, and what they are counted from."""

    task: str
    data: str
    """Where the images are."""
    kept_back: bool = False
    """They are those that the run kept back from the training pairs there."""
    trained_on: bool = False
    """The run was trained on them, or on pairs at the same place: a measure of memory."""
    rows: list[Row]
    class_names: list[str] = field(default_factory=list)
    templates: list[str] = field(default_factory=list)
    predictions: list[Prediction] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    """Images left out, by reason."""


def write_evaluation(run: RunDirectory, evaluation: Evaluation) -> Path:
    """Keep an evaluation in the run's eval/: one file for each task and state of its data, and for each other model
    than the run's own, such as the same in another precision."""
    model, data = evaluation.rows[0].model, evaluation.rows[0].data
    other = "" if model == fingerprint_of(run) else f"-model-{model[:8]}"
    file = run.evaluations / f"{evaluation.task.replace('/', '-')}-{data[:8]}{other}.json"
    write_json(file, asdict(evaluation))
    return file


def fingerprint_of(run: RunDirectory) -> str | None:
    """The fingerprint of a run's model, as its config.json says it."""
    return (own_facts(read_config(run.model)) or {}).get("fingerprint")


def read_evaluations(run: RunDirectory) -> list[Evaluation]:
    """The evaluations in a run's eval/. Raises `ConfigError` for a file that holds something else."""
    return [_read_evaluation(file) for file in sorted(run.evaluations.glob("*.json"))]


def _read_evaluation(file: Path) -> Evaluation:
    try:
        found = cattrs.structure(read_json(file), Evaluation)
        require(bool(found.rows), f"The file {file}", "hold rows", "none", "Move it elsewhere.")
        return found
    except cattrs.BaseValidationError as error:
        raise ConfigError(
            f"The file {file}",
            must="hold an evaluation",
            got="; ".join(cattrs.transform_error(error, path="evaluation")[:3]),
            then="Move it elsewhere and run limner eval again.",
        ) from error


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


def classes_of_task(source: Source, pairs: Sequence[Pair]) -> tuple[list[str], list[int | None]]:
    """(class names, the class of each of `pairs`); no names where nothing says what the classes are.

    Raises `DataError` for class folders or labels that do not fit classnames.txt.
    """
    labels, lines = [pair.label for pair in pairs], lines_beside(source.path, "classnames.txt")
    if "" in (words := [clean(line) for line in lines]):
        raise DataError(
            f"Line {words.index('') + 1} of the classnames.txt of {source.path}",
            must="be the name of a class",
            got="an empty line",
            then="Correct it: a class is the number of its line.",
        )
    if source.classes:
        return _named_by_texts(source, labels, lines)
    if any(label is not None for label in labels):
        return lines, labels
    captioned = sum(bool(pair.captions) for pair in pairs)
    if captioned:
        if captioned < len(pairs) / 2 and any("/" in pair.key for pair in pairs):
            say(
                f"The folders in {source.path} are not taken for classes, because {captioned:,} of its pictures have "
                "captions: move these .txt files elsewhere to have it classified."
            )
        return [], labels
    return _named_by_folders(source, pairs, lines)


def _named_by_texts(source: Source, labels: list[int | None], lines: list[str]) -> tuple[list[str], list[int | None]]:
    """Classes that a list names by texts; where classnames.txt says the same, its lines, in its order."""
    places = _places(source, list(source.classes), lines)
    if places is None:
        if lines:
            say(f"The classnames.txt of {source.path} holds none of the names in its labels, and is not used.")
        return list(source.classes), labels
    return lines, [None if label is None else places[label] for label in labels]


def _named_by_folders(source: Source, pairs: Sequence[Pair], lines: list[str]) -> tuple[list[str], list[int | None]]:
    """Classes by the folders in which images without captions lie, in the order of their names, or of their numbers."""
    tops = [PurePosixPath(pair.key).parts[0] if "/" in pair.key else None for pair in pairs]
    folders = sorted({PurePosixPath(pair.key).parts[0] for pair in source if "/" in pair.key})
    are_files = all(printable(Path(pair.path).name) == PurePosixPath(pair.key).name for pair in pairs)
    if folders and "::" in str(source.path) and are_files:
        raise DataError(
            f"The class folders of {source.path}",
            must="be measured one source after the other",
            got="several sources as one, whose classes may be others",
            then="Give them with spaces between: --data A B.",
        )
    if not folders or not are_files or not Path(source.path).is_dir():  # keys in shards and tables are no paths
        return [], [None] * len(pairs)
    splits = {split: folder for folder in reversed(folders) if (split := split_of(folder))}
    if all(map(split_of, folders)):
        best = next(splits[split] for split in SPLITS if split in splits)
        raise DataError(
            f"The folder {source.path}",
            must="hold a folder for each class",
            got=f"the splits {', '.join(folders)}",
            then=f"Give the one to measure on: {source.path}/{best}",
        )
    if len(folders) == 1 and None not in tops and all(len(PurePosixPath(pair.key).parts) > 2 for pair in pairs):
        raise DataError(
            f"The folder {source.path}",
            must="hold a folder for each class",
            got=f"one folder, {folders[0]}, with others in it",
            then=f"Give that one: {source.path}/{folders[0]}",
        )
    if found := [folder for folder in folders if split_of(folder)]:
        say(f"{', '.join(found)} in {source.path} are taken for classes, for there are other folders beside them.")
    if all(map(is_number, folders)):
        folders.sort(key=int)
    unread = [folder for folder in folders if folder not in tops]
    if unread:
        say(f"Classes of {source.path} of which no picture can be read: {', '.join(unread[:5])}.")
    places = _places(source, folders, lines)
    if places is None and lines:
        places = _by_order(source, folders, lines)
    if not lines and all(re.fullmatch(r"n\d{8}", folder) for folder in folders):
        say(
            f"The folders of {source.path} are named by WordNet's numbers, which say nothing to a text encoder: put a "
            "classnames.txt beside them, a line for each folder, sorted by name."
        )
    numbers = dict(zip(folders, places or range(len(folders)), strict=True))
    names = lines or [as_words(folder) for folder in folders]
    return names, [None if top is None else numbers[top] for top in tops]


def split_of(folder: str) -> str | None:
    """Which of `SPLITS` a folder's name means: Testing, val2017, dev_set; None: none."""
    found = re.fullmatch(r"(test|val|valid|validation|dev|eval|train)(?:ing)?[-_ ]?(?:set|\d{4})?", folder.lower())
    return found and (found[1] if found[1] in SPLITS else "val")


def _by_order(source: Source, folders: Sequence[str], lines: Sequence[str]) -> list[int]:
    """The line of each class folder where none says a folder's name: one for each, in the order of names or numbers.

    Folders with no picture that can be read count as well. Raises `DataError` where their numbers do not fit, and where
    words say that another order is meant; what is taken is said.
    """
    there = {path.name for path in Path(source.path).iterdir() if path.is_dir() and not is_hidden(path.name)}
    all_folders = sorted(there | set(folders))
    counted = sorted(int(folder) for folder in all_folders if is_number(folder))
    are_numbers = len(counted) == len(all_folders)
    places = {folder: place for place, folder in enumerate(sorted(all_folders, key=int if are_numbers else str))}
    fits = len(lines) == len(all_folders)
    if are_numbers and fits:  # from 0 or from 1 on, without gaps
        fits = counted == list(range(counted[0], counted[0] + len(counted))) and counted[0] in (0, 1)
    elif are_numbers and counted[0] == 0 and counted[-1] < len(lines) and len(set(counted)) == len(counted):
        places, fits = {folder: int(folder) for folder in all_folders}, True
    if not fits:
        raise DataError(
            f"The classnames.txt of {source.path}",
            must=f"have a line for each of its {len(all_folders)} folders, in their order",
            got=f"{len(lines)} lines" + (f", for folders {counted[0]} to {counted[-1]}" if are_numbers else ""),
            then="Correct it, or move it away for the folders' own names.",
        )
    words = [_words(line) for line in lines]
    for folder in folders:
        own = _words(folder)
        if own & set().union(*words) and not own & words[places[folder]]:
            raise DataError(
                f"Line {places[folder] + 1} of the classnames.txt of {source.path}",
                must=f"be the name of the folder {folder}, which is the one of that number in their order",
                got=lines[places[folder]],
                then="Write the lines in the order of the folders, or with the folders' own words.",
            )
    first = min(folders, key=places.__getitem__)
    say(
        f"The lines of classnames.txt are taken for the folders of {source.path} in their order: {first} is "
        f"{lines[places[first]]!r}, and so on."
    )
    return [places[folder] for folder in folders]


def _words(name: str) -> set[str]:
    """The words in a name that say what it is: of three letters or more."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return {word for word in re.findall(r"[^\W\d_]{3,}", parted.lower())}


def _places(source: Source, ids: Sequence[str], lines: Sequence[str]) -> list[int] | None:
    """The line of classnames.txt that says the same as each of `ids`; None if none does.

    Spelt alike, or with other blanks and capitals (SeaLake), or behind a number (001.Sea_lake), or with the id in front
    (n01443537 goldfish). Raises `DataError` if only some do: a guess would give classes the names of others.
    """
    without = list(ids)
    for of_id, of_line in SPELLINGS:
        places = {of_line(line): place for place, line in reversed(list(enumerate(lines)))}
        found = [places.get(of_id(one)) for one in ids]
        if None not in found and len(set(found)) == len(found):
            return [place for place in found if place is not None]
        missing = [one for one, place in zip(ids, found, strict=True) if place is None]
        without = min(without, missing, key=len)
    if len(without) == len(ids):
        return None
    named = f"none for {', '.join(without[:5])}" if without else "one line for several of them"
    raise DataError(
        f"The classnames.txt of {source.path}",
        must="say the name of each of its classes, or of none of them",
        got=f"{named}, of {len(ids)} classes",
        then="Add what is missing, spelt as the class is, or move the file away.",
    )


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, clean(name)))


def _unnumbered(name: str) -> str:
    return _letters(re.sub(r"^(n\d{8}|\d+)[-._ ]+", "", name))


def _in_front(line: str) -> str:
    return line.split()[0] if line.split() else ""


SPELLINGS: tuple[tuple[Callable[[str], str], Callable[[str], str]], ...] = (
    (clean, clean),
    (_letters, _letters),
    (_unnumbered, _unnumbered),
    (str, _in_front),
)
"""How a class and its line in classnames.txt may be compared, the strictest first."""


def as_words(name: str) -> str:
    """A folder's name as text: _ and - are blanks."""
    return re.sub(r"[\s_-]+", " ", name).strip() or name
