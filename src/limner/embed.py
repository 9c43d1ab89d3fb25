"""Source to features, streamed: `images -> central squares -> image encoder -> features`, kept on disk when asked.

This is the one way to embed: evaluation, search, classification and the report stand on it. Images are read by threads
with deadlines (`data/reading.py`); the encoder runs where the model is, in the model's precision; features come back to
the CPU as float32. What was embedded once is known by the fingerprints of model and data.
"""

import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor, nn

from limner.data.pairs import Pair, Source
from limner.data.reading import LATE, SLOW, UNREAD, Squares, Unread, caption_ids, centres, describe_unreadable
from limner.errors import DataError, ModelError, StorageError
from limner.model.clip import CLIP
from limner.progress import say, track
from limner.store.store import fingerprint_now
from limner.store.tensors import read_tensors, write_tensors

FORMAT = 2
"""Of kept features: those of another one are not looked at. It grows when pictures are decoded to other pixels, too."""
BATCH, TEXTS = 256, 1024
"""Images, and sentences, that are encoded at once."""


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """The features of a source's images."""

    source: Source
    indices: list[int]
    """The numbers in the source of the readable images, rising."""
    features: Float[Tensor, "images embed"]
    """Their features: float32, L2-normalised, on the CPU."""
    contents: list[int]
    """Hashes of the pixels that the encoder saw: equal ones are the same image."""
    unreadable: list[Unread]

    def pairs(self) -> list[Pair]:
        """The pairs of the readable images."""
        return [self.source[index] for index in self.indices]


def embed_images(model: CLIP, source: Source, *, keep: Path | None = None) -> Embedded:
    """The features of all images of `source`; with `keep`, taken from that folder if they are there, else put there.

    Raises `DataError` if no image can be read.
    """
    file = None if keep is None else _file(model, source, keep)
    if file is not None and (kept := _kept(file, source)) is not None:
        return kept
    indices, contents, parts, unreadable = list[int](), list[int](), list[Tensor](), list[Unread]()
    batches = _stream(model, source)
    for squares, features in track(batches, title="Encoding pictures", total=-(-len(source) // BATCH)):
        indices += squares.indices
        contents += squares.contents
        parts.append(features)
        unreadable += squares.unread
    if not indices:
        raise DataError(
            f"The pictures of {source.path}",
            must="be readable",
            got=describe_unreadable(unreadable),
            then="Check the files.",
        )
    features = torch.cat(parts)
    found = Embedded(source=source, indices=indices, features=features, contents=contents, unreadable=unreadable)
    if file is not None:
        _keep(file, found)
    return found


def stream_images(
    model: CLIP, source: Source
) -> Iterator[tuple[list[int], Float[Tensor, "batch embed"], list[Unread]]]:
    """The features of a source's images as they are made: (numbers in the source, features, what could not be read)."""
    for squares, features in _stream(model, source):
        yield squares.indices, features, squares.unread


def _stream(model: CLIP, source: Source) -> Iterator[tuple[Squares, Float[Tensor, "batch embed"]]]:
    with closing(centres(source, model.architecture.image_size, batch_size=BATCH)) as batches:
        for squares in batches:
            with measuring(model):
                features = model.encode_image(squares.pixels).cpu()
            yield squares, features


def embed_texts(model: CLIP, texts: Sequence[str]) -> Float[Tensor, "texts embed"]:
    """The features of sentences: float32, L2-normalised, on the CPU. Says how many are cut to the context."""
    before = model.tokenizer.cut if model.tokenizer else 0
    nothing = torch.empty(0, model.architecture.embed_dim)
    with measuring(model):
        parts = [model.encode_text(texts[start : start + TEXTS]).cpu() for start in range(0, len(texts), TEXTS)]
    if model.tokenizer and (cut := model.tokenizer.cut - before):
        say(
            f"{cut:,} of {len(texts):,} sentences are longer than the {model.architecture.text.context_length} tokens "
            "that the model reads: what comes after is not seen."
        )
    return torch.cat(parts or [nothing])


def ids_of_texts(model: CLIP, texts: Sequence[str]) -> list[int]:
    """What sentences are known by: equal ids are the same sentence to the text encoder."""
    chunks = (texts[start : start + TEXTS] for start in range(0, len(texts), TEXTS))
    return [one for chunk in chunks for one in caption_ids(model.tokenize(chunk).numpy())]


_measured: dict[int, tuple[int, list[nn.Module]]] = {}
"""Of models that are in inference mode for a while, by their ids: how many threads measure, and which modules were
training."""
_measuring = threading.Lock()


@contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """Inference mode without gradients, whatever the model was in; after it every module is as it was.

    In training mode a BatchNorm would use the batch's statistics, and change its own. Of several threads the last one
    puts the model back.
    """
    with _measuring:
        threads, trained = _measured.get(id(model), (0, []))
        trained = trained if threads else [module for module in model.modules() if module.training]
        _measured[id(model)] = threads + 1, trained
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        with _measuring:
            threads, trained = _measured.pop(id(model))
            if threads > 1:
                _measured[id(model)] = threads - 1, trained
            else:
                for module in trained:
                    module.training = True


def require_finite(what: str, values: Tensor) -> None:
    """Raise `ModelError` unless all `values` are finite: NaN compares as neither more nor less, and would win."""
    if not bool(torch.isfinite(values).all()):
        raise ModelError(
            what,
            must="be finite numbers",
            got=f"{int((~torch.isfinite(values)).sum()):,} of {values.numel():,} that are not",
            then="The weights overflowed or were damaged: limner doctor MODEL says where.",
        )


# --- kept on disk ----------------------------------------------------------------------------------------------------


def _file(model: CLIP, source: Source, folder: Path) -> Path:
    """Where the features of these images by this model, as it is now, are kept."""
    now = fingerprint_now(model)
    precision = str(model.image.dtype).removeprefix("torch.")
    told = f"{now[:16]}-{precision}-{source.fingerprint[:16]}-{_stamp(source)[:16]}"
    return folder / f"{told}-{FORMAT}.safetensors"


def _stamp(source: Source) -> str:
    """A sha256 over the times of loose files, whose fingerprint does not notice another image of the same size."""
    digest = hashlib.sha256()
    for part in source.parts:
        for path in part.loose():
            try:
                status = path.stat()
                digest.update(f"{status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}\n".encode())
            except OSError as error:  # it will be counted as unreadable
                digest.update(f"{error.errno}\n".encode())
    return digest.hexdigest()


def _keep(file: Path, found: Embedded) -> None:
    """Write features to `file`. What cannot be kept is said, and lost is nothing: they are at hand."""
    passing = [one for one in found.unreadable if one.reason in (LATE, SLOW, UNREAD)]
    if passing:
        say(f"The features are not kept: {passing[0].key} may be readable another time ({passing[0].got}).")
        return
    tensors = {
        "indices": torch.tensor(found.indices),
        "features": found.features,
        "contents": torch.tensor(found.contents),
    }
    unreadable = json.dumps([one._asdict() for one in found.unreadable])
    try:
        write_tensors(file, tensors, unreadable=unreadable, digest=_digest(tensors, unreadable))
    except StorageError as error:
        say(f"The features are not kept: {error}")
    else:
        say(f"Kept the features in {file}.")


def _digest(tensors: dict[str, Tensor], unreadable: str) -> str:
    digest = hashlib.sha256(unreadable.encode())
    for name in sorted(tensors):
        digest.update(tensors[name].numpy().data)
    return digest.hexdigest()


def _kept(file: Path, source: Source) -> Embedded | None:
    """The features that `file` keeps, if there is such a file and it is whole."""
    if not file.is_file():
        return None
    try:
        tensors = read_tensors(file)
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
        if metadata["digest"] != _digest(tensors, metadata["unreadable"]):
            raise ValueError("other bytes than were written")
        unreadable = [Unread(**one) for one in json.loads(metadata["unreadable"])]
        indices, contents = tensors["indices"].tolist(), tensors["contents"].tolist()
        features = tensors["features"].clone()  # in the file they lie anywhere, and products differ in the last bit
    except (ModelError, KeyError, TypeError, ValueError) as error:
        say(f"The features kept in {file} are damaged ({error}): the pictures are encoded again.")
        return None
    say(f"Features of {len(indices):,} pictures from {file}.")
    return Embedded(source=source, indices=indices, features=features, contents=contents, unreadable=unreadable)
