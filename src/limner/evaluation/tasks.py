"""What a model is measured on, and what came of it.

A task is a source. If its shards hold labels (`.cls`) and `classnames.txt` lies in its folder or the one around it,
CLIP_benchmark's layout, it is classified zero-shot; if its images have captions, retrieval is measured both ways.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

import cattrs

from limner.config import DEFAULT_TEMPLATES
from limner.data.pairs import Source
from limner.data.sources.read import absolute, held_back_pairs, read_images
from limner.errors import ConfigError
from limner.evaluation.metrics import Row
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
    kept_back: bool
    """They are those that the run kept back from the training pairs there."""
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
        return cattrs.structure(read_json(file), Evaluation)
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
    own = held_back_pairs(config.data, config.data_weights, holdout=config.holdout)
    if own is None:
        raise ConfigError(
            f"The run {run.path}",
            must="have a test set or held-out pairs",
            got="neither, or too few pairs to keep any back",
            then="Give --data PATH.",
        )
    return own


def place_of_task(source: Source) -> str:
    """Where the images of a task are, so that it means the same from any folder."""
    return str(source.path.resolve()) if isinstance(source.path, Path) else absolute(source.path)


def name_of_task(source: Source) -> str:
    """The last two parts of its place, without an ending: "digits/test"."""
    return "/".join(PurePosixPath(place_of_task(source)).with_suffix("").parts[-2:])


def classes_of_task(source: Source) -> tuple[list[str], list[str]]:
    """(class names, templates) that lie beside the images, as CLIP_benchmark keeps them; no names if there are none."""
    folder = Path(source.path) if Path(source.path).is_dir() else Path(source.path).parent
    found = _lines(folder, "zeroshot_classification_templates.txt")
    templates = [line.replace("{c}", "{}") for line in found] or list(DEFAULT_TEMPLATES)
    return _lines(folder, "classnames.txt"), templates


def _lines(folder: Path, name: str) -> list[str]:
    """The lines of `name` in `folder` or in the folder around it; none if there is no such file."""
    path = next((path for path in (folder / name, folder.parent / name) if path.is_file()), None)
    return path.read_text(encoding="utf-8").rstrip().splitlines() if path else []
