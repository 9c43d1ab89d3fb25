"""What came of evaluations, on disk: the eval/ of a run, and the folder of results that `limner eval --out` fills.

```
OUT/results.jsonl              the rows, one a line; those of one protocol on one task are written at once
OUT/TASK-DATA-PROTOCOL-KEY.json  the whole evaluation: classes, prompts, what came of each picture
```

A protocol that has its rows in results.jsonl is done, and is not measured again; with another model, other data, other
prompts or other training pictures it is another one. Nothing in there is ever overwritten by something else.
"""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO

import cattrs

from limner.errors import ConfigError, StorageError, require
from limner.evaluation.metrics import Outcome, Row
from limner.evaluation.zero_shot import Prediction
from limner.files import read_json, write_json
from limner.run import RunDirectory
from limner.store.foreign import own_facts, read_config


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
    model: str = ""
    """Where the model is."""
    precision: str = "fp32"
    """What the encoders computed in."""
    class_ids: list[str] = field(default_factory=list)
    class_names: list[str] = field(default_factory=list)
    templates: list[str] = field(default_factory=list)
    names: list[list[str]] = field(default_factory=list)
    """All names of each class, where a class has several."""
    prompts: list[list[str]] = field(default_factory=list)
    """The prompts of each class, where they were given in place of templates."""
    predictions: list[Prediction] = field(default_factory=list)
    """Of zero-shot classification."""
    outcomes: list[Outcome] = field(default_factory=list)
    reliability: list[tuple[float, float, int]] = field(default_factory=list)
    """(mean probability, accuracy, pictures) of zero-shot answers, from the least to the most certain."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Images left out, by reason."""


def joined(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Several protocols on one task as one evaluation."""
    first = evaluations[0]
    return replace(
        first,
        rows=[row for one in evaluations for row in one.rows],
        class_ids=next((one.class_ids for one in evaluations if one.class_ids), []),
        class_names=next((one.class_names for one in evaluations if one.class_names), []),
        templates=next((one.templates for one in evaluations if one.templates), []),
        names=next((one.names for one in evaluations if one.names), []),
        prompts=next((one.prompts for one in evaluations if one.prompts), []),
        predictions=[prediction for one in evaluations for prediction in one.predictions],
        outcomes=[outcome for one in evaluations for outcome in one.outcomes],
        reliability=next((one.reliability for one in evaluations if one.reliability), []),
        skipped={reason: count for one in evaluations for reason, count in one.skipped.items()},
    )


# --- a run's ----------------------------------------------------------------------------------------------------------


def write_evaluation(run: RunDirectory, evaluation: Evaluation) -> Path:
    """Keep an evaluation in the run's eval/: one file for each task and state of its data, and for each other model
    than the run's own, such as the same in another precision."""
    model, data = evaluation.rows[0].model, evaluation.rows[0].data
    other = "" if model == fingerprint_of(run) else f"-model-{model[:8]}"
    file = run.evaluations / f"{evaluation.task.replace('/', '-')}-{data[:8]}{other}.json"
    write_json(file, asdict(evaluation if not file.is_file() else _added(_read_evaluation(file), evaluation)))
    return file


def _added(before: Evaluation, now: Evaluation) -> Evaluation:
    """What was measured now, with the protocols of before that were not measured now."""
    measured = {row.protocol for row in now.rows}
    kept = [row for row in before.rows if row.protocol and row.protocol not in measured]
    if not kept or before.rows[0].model != now.rows[0].model:
        return now
    prefixes = {row.metric.rpartition(".")[0].partition(".")[0] for row in kept}
    outcomes = [one for one in before.outcomes if one.metric.partition(".")[0] in prefixes]
    had_zero_shot = any(row.protocol == "zero-shot" for row in kept)
    nothing = replace(before, predictions=[], reliability=[], templates=[], names=[], prompts=[])
    return joined([now, replace(before if had_zero_shot else nothing, rows=kept, outcomes=outcomes)])


def fingerprint_of(run: RunDirectory) -> str | None:
    """The fingerprint of a run's model, as its config.json says it."""
    return (own_facts(read_config(run.model)) or {}).get("fingerprint")


def read_evaluations(folder: Path) -> list[Evaluation]:
    """The evaluations in a folder: a run's eval/, or results. Raises `ConfigError` for a file with something else."""
    return [_read_evaluation(file) for file in sorted(folder.glob("*.json"))]


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


VERSION = 1
"""Of the protocols: it grows when the same model and data would give other numbers."""


# --- results ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Key:
    """What a measurement is known by: the same key, the same numbers."""

    task: str
    protocol: str
    model: str
    data: str
    prompts: str = ""
    train: str = ""
    features: str = ""
    """Which features a probe stands on."""
    stamp: str = ""
    """What tells loose pictures from others of the same names and sizes: `stamp_of` each split."""
    version: int = VERSION

    def digest(self) -> str:
        """A short name for it."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:12]


def _locked(folder: Path) -> IO[bytes]:
    """The file of rows in a folder, which only this process may write to until it is closed."""
    path = folder / "results.jsonl"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    except OSError as error:
        raise ConfigError(
            f"The folder {folder}", must="be one to write to", got=error.strerror or error, then="Choose another."
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ConfigError(
            f"The results {folder}",
            must="be written by one command at a time",
            got="another one at work there",
            then="Wait for it, or choose another folder for --out.",
        ) from None
    return file


class Results:
    """The folder of results, and which measurements are done. One process at a time writes there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = _locked(folder)
        self._done = set[str]()
        self._end = 0
        try:
            self._read_all()
        except BaseException:
            self.close()
            raise

    def _read_all(self) -> None:
        self._file.seek(0)
        lines = self._file.read().splitlines(keepends=True)
        while lines and lines[0].endswith(b"\n"):
            key, count = self._read(lines[0])
            group = lines[:count]
            if len(group) < count or not group[-1].endswith(b"\n"):
                break  # a killed process was writing them
            for line in group:
                self._read(line)
            self._done.add(key)
            self._end += sum(map(len, group))
            lines = lines[count:]

    def done(self, key: Key) -> Evaluation | None:
        """The evaluation of a measurement that is done; None: it is due."""
        file = self._evaluation(key)
        return _read_evaluation(file) if key.digest() in self._done and file.is_file() else None

    def add(self, key: Key, evaluation: Evaluation) -> None:
        """Keep a measurement: the evaluation first, then, with one write, its rows.

        Raises `StorageError` when that fails; what was there before is still there.
        """
        write_json(self._evaluation(key), asdict(evaluation))
        if key.digest() in self._done:  # only its evaluation was gone
            return
        told = {"key": key.digest(), "rows": len(evaluation.rows)}
        lines = "".join(json.dumps(told | asdict(row)) + "\n" for row in evaluation.rows).encode()
        try:
            self._file.truncate(self._end)  # what a killed process, or a full disk, left of its last rows
            self._file.write(lines)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise StorageError(
                f"The file {self.folder / 'results.jsonl'}",
                must="take the rows of an evaluation",
                got=error.strerror or str(error),
                then="Make room, and run the same command again: what is done is not measured again.",
            ) from error
        self._end += len(lines)
        self._done.add(key.digest())

    def close(self) -> None:
        """Let others write there."""
        self._file.close()

    def _evaluation(self, key: Key) -> Path:
        task = re.sub(r"[^\w.-]+", "-", key.task)[:80]
        return self.folder / f"{task}-{key.data[:8]}-{key.protocol}-{key.digest()}.json"

    def _read(self, line: bytes) -> tuple[str, int]:
        """(key, rows of its group) in a line. Raises `ConfigError` for one that holds no row."""
        try:
            told = json.loads(line)
            key, count = told.pop("key"), told.pop("rows")
            if type(count) is not int or count < 1:
                raise ValueError(count)
            cattrs.structure(told, Row)
            return str(key), count
        except (ValueError, LookupError, TypeError, AttributeError, cattrs.BaseValidationError):
            raise ConfigError(
                f"The file {self.folder / 'results.jsonl'}",
                must="hold rows that limner eval wrote",
                got=line[:80].decode("utf-8", "replace").strip(),
                then="Choose another folder for --out, or move that file elsewhere.",
            ) from None
