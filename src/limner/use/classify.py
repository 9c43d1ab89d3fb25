"""Naming a person's own images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from limner.data.pairs import IMAGE_ENDINGS, Pair, Source, describe, listed, notes
from limner.data.remote import is_address
from limner.data.sources.read import read_images
from limner.data.tokenizer import clean, texts_of
from limner.embed import Embedded, embed_images
from limner.errors import DataError, whole_from_one
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
    images: str | Path | Sequence[str | Path],
    labels: Any,
    templates: Any,
    *,
    top: Any = 5,
    keep: Path | None = None,
) -> list[Answer]:
    """Name `images`: files, or folders, lists, shards and addresses of them.

    `labels` and `templates` are a text or several, `top` is a whole number from 1 on. One that cannot be read is
    reported and left out, never the others; `keep` is a folder for their features. Raises `DataError` if none can be
    read.
    """
    top = whole_from_one(top, "top")
    classifier = ZeroShotClassifier(model, each_once(labels), templates)
    sources = list(_sources([images] if isinstance(images, str | Path) else images))
    if not sources:
        raise DataError(
            "The pictures to name",
            must=f"be files ({', '.join(IMAGE_ENDINGS)}) or folders of them",
            got="none that can be read",
            then="Check the paths.",
        )
    answers: list[Answer] = []
    failed: DataError | None = None
    for prefix, source in sources:
        try:
            embedded = embed_images(model, source, keep=keep)
        except DataError as error:  # nothing there can be read
            say(f"Left out: {error}")
            failed = error
            continue
        for one in embedded.unreadable:
            say(f"Left out: {prefix}{one.key}: {one.got}")
        named = name_all(classifier, embedded, top=top)
        answers += [replace(answer, image=prefix + answer.image) for answer in named]
    if failed is not None and not answers:
        raise failed
    return answers


def name_all(classifier: ZeroShotClassifier, embedded: Embedded, *, top: Any = 5) -> list[Answer]:
    """The `top` names of each image that the classifier's model has embedded."""
    labels = classifier.class_names
    classes, shares = classifier.likeliest(embedded.features, whole_from_one(top, "top"))
    return [
        Answer(image=pair.key, names={labels[k]: share for k, share in zip(several, values, strict=True)})
        for pair, several, values in zip(embedded.pairs(), classes.tolist(), shares.tolist(), strict=True)
    ]


def each_once(labels: Any) -> list[str]:
    """The texts in `labels`, one or several, without those that are the same to the text encoder as an earlier one,
    which are said."""
    names, again = dict[str, str](), list[str]()
    for label in texts_of(labels, "The class names"):
        if clean(label) in names:
            again.append(label)
        names.setdefault(clean(label), label)
    if again:
        say(f"Named more than once, and counted once: {', '.join(again)}.")
    return list(names.values())


def _sources(images: Sequence[str | Path]) -> Iterator[tuple[str, Source]]:
    """(what to write before a key, images) of each place; files that follow each other are one source."""
    for is_file, places in groupby(images, key=_is_image_file):
        if is_file:
            files = [Path(place) for place in places]
            pairs = [Pair(key=str(file), path=file, offset=0, size=file.stat().st_size) for file in files]
            yield "", listed(str(files[0]), pairs)
            continue
        for place in places:
            try:
                source = read_images(place)
            except DataError as error:
                say(f"Left out: {error}")
                continue
            if source.skipped:
                say(f"Left out of {place}: {describe(source.skipped)}.")
            if source.noted:
                say(notes(source))
            is_folder = not is_address(str(place)) and Path(place).is_dir()
            yield f"{Path(place)}/" if is_folder else f"{place}: ", source


def _is_image_file(place: str | Path) -> bool:
    return Path(place).suffix.lower() in IMAGE_ENDINGS and Path(place).is_file()
