"""Naming a person's own images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from limner.data.pairs import IMAGE_ENDINGS, Pair, describe, listed
from limner.data.remote import is_address
from limner.data.sources.read import read_images
from limner.embed import Embedded, embed_images
from limner.errors import DataError
from limner.evaluation.zero_shot import ZeroShotClassifier
from limner.model.clip import CLIP
from limner.progress import say


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The likeliest names of an image with their probabilities, the likeliest first."""

    image: str
    names: dict[str, float]


def classify_images(
    model: CLIP,
    images: Sequence[str | Path],
    labels: Sequence[str],
    templates: Sequence[str],
    *,
    top: int = 5,
    keep: Path | None = None,
) -> list[Answer]:
    """Name `images`: files, or folders, lists, shards and addresses of them.

    One that cannot be read is reported and left out, never the others; `keep` is a folder for their features. Raises
    `DataError` if none can be read.
    """
    classifier = ZeroShotClassifier(model, labels, templates)
    pairs = [pair for path in images for pair in _pairs_at(path)]
    if not pairs:
        raise DataError(
            "The pictures to name",
            must=f"be files ({', '.join(IMAGE_ENDINGS)}) or folders of them",
            got="none that can be read",
            then="Check the paths.",
        )
    embedded = embed_images(model, listed(str(images[0]), pairs), keep=keep)
    for one in embedded.unreadable:
        say(f"Left out: {one.key}: {one.got}")
    return name_all(classifier, embedded, top=top)


def name_all(classifier: ZeroShotClassifier, embedded: Embedded, *, top: int = 5) -> list[Answer]:
    """The `top` names of each image that the classifier's model has embedded."""
    labels = classifier.class_names
    found = classifier.probabilities(embedded.features).topk(min(top, len(labels)), dim=1)
    return [
        Answer(image=pair.key, names={labels[int(k)]: share for k, share in zip(indices, shares, strict=True)})
        for pair, indices, shares in zip(embedded.pairs(), found.indices.tolist(), found.values.tolist(), strict=True)
    ]


def _pairs_at(path: str | Path) -> list[Pair]:
    """The images at `path`, their keys made to show where they are; none, and a word, if they cannot be read."""
    file = Path(path)
    if file.suffix.lower() in IMAGE_ENDINGS and file.is_file():
        return [Pair(key=str(path), path=file, offset=0, size=file.stat().st_size)]
    try:
        source = read_images(path)
    except DataError as error:
        say(f"Left out: {error}")
        return []
    if source.skipped:
        say(f"Left out of {path}: {describe(source.skipped)}.")
    is_folder = not is_address(str(path)) and file.is_dir()
    return [replace(pair, key=str(file / pair.key) if is_folder else f"{path}: {pair.key}") for pair in source]
