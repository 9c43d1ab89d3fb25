"""Naming a person's own pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from limn.data.sources import PICTURES, read_pictures
from limn.errors import DataError
from limn.evaluation.zero_shot import ZeroShotClassifier
from limn.model.store import load
from limn.progress import say, track


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The likeliest names of a picture with their probabilities, the likeliest first."""

    picture: str
    names: dict[str, float]


def classify_pictures(
    model: Path, pictures: Sequence[Path], labels: Sequence[str], templates: Sequence[str], *, top: int = 5
) -> list[Answer]:
    """Name `pictures`, files or folders of them. One that cannot be read is said and left out, never the others."""
    classifier = ZeroShotClassifier(load(model), labels, templates)
    paths = [path for picture in pictures for path in _files(picture)]
    answers, trouble = [], []
    for path in track(paths, title="Naming pictures", total=len(paths)):
        try:
            names = classifier.predict(path, top=top)[0]
        except DataError as error:
            trouble.append(error)
            say(f"Left out: {error}")
        else:
            answers.append(Answer(picture=str(path), names=dict(names)))
    if trouble and not answers:
        raise DataError(
            "The pictures to name",
            must=f"be readable files ({', '.join(PICTURES)}) or folders of them",
            got=f"{len(trouble)} that cannot be read",
            then="See the lines above.",
        )
    return answers


def _files(path: Path) -> list[Path]:
    return [pair.path for pair in read_pictures(path)] if path.is_dir() else [path]
