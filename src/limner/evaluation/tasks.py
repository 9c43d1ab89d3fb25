"""What a model is measured on."""

from dataclasses import dataclass, field
from pathlib import Path

from limner.data.pairs import Source
from limner.data.sources.read import absolute, held_back_pairs, read_pictures
from limner.errors import ConfigError
from limner.evaluation.metrics import Row
from limner.evaluation.zero_shot import Prediction
from limner.run import RunDirectory


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The rows of one task, and what they are counted from."""

    task: str
    data: str
    """Where the pictures are."""
    kept_back: bool
    """They are those that the run kept back from the training pairs there."""
    rows: list[Row]
    class_names: list[str] = field(default_factory=list)
    templates: list[str] = field(default_factory=list)
    predictions: list[Prediction] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    """Pictures left out, by reason."""


def own_task(run: RunDirectory) -> Source:
    """What a run is measured on: its test set, or the pairs that it kept back from training."""
    config = run.read_config()
    own = read_pictures(config.test) if config.test is not None else held_back_pairs(config)
    if own is None:
        raise ConfigError(
            f"The run {run.path}",
            must="have a test set or held-out pairs",
            got="neither, or too few pairs to keep any back",
            then="Give --data PATH.",
        )
    return own


def _absolute(path: Path | str) -> str:
    return str(path.resolve()) if isinstance(path, Path) else absolute(path)


def _lines(folder: Path, name: str) -> list[str]:
    """The lines of `name` in `folder` or in the folder around it; none if there is no such file."""
    path = next((path for path in (folder / name, folder.parent / name) if path.is_file()), None)
    return path.read_text(encoding="utf-8").rstrip().splitlines() if path else []
