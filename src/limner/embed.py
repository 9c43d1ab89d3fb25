"""Source to features, streamed: `images -> central squares -> image encoder -> features`, kept on disk when asked.

This is the one way to embed: evaluation, search, classification and the report stand on it. Images are read by threads
with deadlines (`data/reading.py`); the encoder runs where the model is, in the model's precision; features come back to
the CPU as float32. What was embedded once is known by the fingerprints of model and data.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from limner.data.pairs import Pair, Source, chosen
from limner.data.reading import LATE, SLOW, UNREAD, Squares, Unread, caption_ids, centres, describe_unreadable
from limner.errors import DataError, LimnerError, ModelError, StorageError
from limner.model.clip import CLIP
from limner.progress import say, track
from limner.store.store import fingerprint_now
from limner.store.tensors import read_tensors, write_tensors

T = TypeVar("T")
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
    hidden: Float[Tensor, "images hidden"] | None = None
    """What the encoder's projection was given, as float32 and not normalised, where that was asked for."""

    def pairs(self) -> list[Pair]:
        """The pairs of the readable images."""
        return [self.source[index] for index in self.indices]


def embed_images(
    model: CLIP, source: Source, *, keep: Path | None = None, hidden: bool = False, group: Any = None
) -> Embedded:
    """The features of all images of `source`; with `keep`, taken from that folder if they are there, else put there.

    With `hidden`, those before the projection as well. The ranks of a process `group` share the images, and each gets
    the features of all. Raises `DataError` if no image can be read.
    """
    file = None if keep is None else _file(model, source, keep, hidden=hidden)
    kept = None if file is None else _kept(file, source)
    if kept is None and keep is not None and not hidden:  # what holds more will do
        kept = _kept(_file(model, source, keep, hidden=True), source)
    if not all(together(group, lambda: kept is not None)):  # a folder of kept features is not on every machine
        kept = None
    if kept is not None:
        return kept
    found = _embedded(model, source, hidden=hidden) if group is None else _shared(model, source, hidden, group)
    if not found.indices:
        raise DataError(
            f"The pictures of {source.path}",
            must="be readable",
            got=describe_unreadable(found.unreadable),
            then="Check the files.",
        )
    if file is not None and (group is None or dist.get_rank(group) == 0):
        _keep(file, found)
    return found


def _embedded(
    model: CLIP, source: Source, *, hidden: bool, resampling: Image.Resampling = Image.Resampling.BICUBIC
) -> Embedded:
    indices, contents, parts, unreadable = list[int](), list[int](), list[Tensor](), list[Unread]()
    given = list[Tensor]()
    with _inputs_of(model.image.projection, given) if hidden else nullcontext():
        batches = _stream(model, source, resampling)
        for squares, features in track(batches, title="Encoding pictures", total=-(-len(source) // BATCH)):
            indices += squares.indices
            contents += squares.contents
            parts.append(features)
            unreadable += squares.unread
    if hidden and sum(map(len, given)) != len(indices):
        raise ModelError(
            f"The projection of the image encoder {type(model.image).__name__}",
            must="be called once for each picture",
            got=f"{sum(map(len, given))} calls for {len(indices)}",
            then="See ENCODERS in limner.model.clip.",
        )
    return Embedded(
        source=source,
        indices=indices,
        features=torch.cat(parts) if parts else torch.empty(0, model.architecture.embed_dim),
        contents=contents,
        unreadable=unreadable,
        hidden=torch.cat(given or [torch.empty(0, model.image.projection.in_features)]) if hidden else None,
    )


@contextmanager
def _inputs_of(layer: nn.Module, into: list[Tensor]) -> Iterator[None]:
    """While it lasts, what `layer` is given goes `into` a list, as float32 on the CPU."""
    own = threading.get_ident()

    def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if threading.get_ident() == own:  # others may measure the same model
            into.append(inputs[0].detach().float().cpu().flatten(1))

    hook = layer.register_forward_pre_hook(note)
    try:
        yield
    finally:
        hook.remove()


def together(group: Any, do: Callable[[], T]) -> list[T]:
    """What `do` gives on each rank of a process group; where it fails on one with a `LimnerError`, it fails on all, so
    that no rank waits for another one that went on."""
    if group is None:
        return [do()]
    try:
        own: tuple[Any, LimnerError | None] = (do(), None)
    except LimnerError as error:
        own = (None, error)
    told: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(told, own, group)
    if failed := [error for _, error in told if error is not None]:
        raise own[1] or failed[0]
    return [value for value, _ in told]


def images_resized_by(model: CLIP, source: Source, resampling: Image.Resampling) -> Embedded:
    """The features of images that are resized by another filter than limner's bicubic one."""
    return _embedded(model, source, hidden=False, resampling=resampling)


def _shared(model: CLIP, source: Source, hidden: bool, group: Any) -> Embedded:
    """Each rank of `group` embeds a stretch of the source; the features of all, in the source's order, are on each."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    first, last = len(source) * rank // size, len(source) * (rank + 1) // size
    numbers = zip(source.parts, source.starts.tolist(), strict=False)
    parts = (
        chosen(part, (np.arange(len(part)) + start >= first) & (np.arange(len(part)) + start < last))
        for part, start in numbers
    )
    stretch, nothing = replace(source, parts=tuple(parts), shares=()), replace(source, parts=(), shares=())
    told = together(group, lambda: replace(_embedded(model, stretch, hidden=hidden), source=nothing))
    starts = [len(source) * rank // size for rank in range(size)]
    given = [one.hidden for one in told if one.hidden is not None]
    return Embedded(
        source=source,
        indices=[start + index for start, one in zip(starts, told, strict=True) for index in one.indices],
        features=torch.cat([one.features for one in told]),
        contents=[content for one in told for content in one.contents],
        unreadable=[one for part in told for one in part.unreadable],
        hidden=torch.cat(given) if hidden else None,
    )


def stream_images(
    model: CLIP, source: Source
) -> Iterator[tuple[list[int], Float[Tensor, "batch embed"], list[Unread]]]:
    """The features of a source's images as they are made: (numbers in the source, features, what could not be read)."""
    for squares, features in _stream(model, source):
        yield squares.indices, features, squares.unread


def _stream(
    model: CLIP, source: Source, resampling: Image.Resampling = Image.Resampling.BICUBIC
) -> Iterator[tuple[Squares, Float[Tensor, "batch embed"]]]:
    size = model.architecture.image_size
    with closing(centres(source, size, batch_size=BATCH, resampling=resampling)) as batches:
        for squares in batches:
            with measuring(model):
                features = model.encode_image(squares.pixels).cpu()
            yield squares, features


def embed_texts(model: CLIP, texts: Sequence[str]) -> Float[Tensor, "texts embed"]:
    """The features of sentences: float32, L2-normalised, on the CPU. Says how many are cut to the context."""
    before = model.tokenizer.cut if model.tokenizer else 0
    nothing = torch.empty(0, model.architecture.embed_dim)
    chunks = [texts[start : start + TEXTS] for start in range(0, len(texts), TEXTS)]
    with measuring(model):
        bar = track(chunks, title="Encoding sentences", total=len(chunks)) if len(chunks) > 1 else chunks
        parts = [model.encode_text(chunk).cpu() for chunk in bar]
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


def _file(model: CLIP, source: Source, folder: Path, *, hidden: bool) -> Path:
    """Where the features of these images by this model, as it is now, are kept; with `hidden`, those before the
    projection too."""
    now = fingerprint_now(model)
    precision = str(model.image.dtype).removeprefix("torch.")
    told = f"{now[:16]}-{precision}-{source.fingerprint[:16]}-{stamp_of(source)[:16]}"
    return folder / f"{told}-{FORMAT}{'-hidden' if hidden else ''}.safetensors"


def stamp_of(source: Source) -> str:
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


def kept_tensor(file: Path | None, make: Callable[[], Tensor]) -> Tensor:
    """What `make` gives, taken from `file` if that keeps it whole, else put there."""
    if file is not None and file.is_file():
        try:
            with safe_open(file, framework="pt") as opened:
                digest = (opened.metadata() or {}).get("digest")
            tensors = read_tensors(file)
            if digest == _digest(tensors, "") and list(tensors) == ["kept"]:
                return tensors["kept"].clone()
        except (ModelError, ValueError, OSError, SafetensorError):
            pass
        say(f"What is kept in {file} is damaged, and is made again.")
    made = make()
    if file is not None:
        try:
            write_tensors(file, {"kept": made}, digest=_digest({"kept": made}, ""))
        except StorageError as error:
            say(f"It is not kept: {error}")
    return made


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
    } | ({} if found.hidden is None else {"hidden": found.hidden})
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
        # in the file they lie anywhere, and products differ in the last bit
        features, hidden = tensors["features"].clone(), tensors["hidden"].clone() if "hidden" in tensors else None
    except (ModelError, KeyError, TypeError, ValueError) as error:
        say(f"The features kept in {file} are damaged ({error}): the pictures are encoded again.")
        return None
    say(f"Features of {len(indices):,} pictures from {file}.")
    return Embedded(
        source=source, indices=indices, features=features, contents=contents, unreadable=unreadable, hidden=hidden
    )
