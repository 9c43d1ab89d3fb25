"""A model's weights among what a checkpoint holds beside them, and under whatever their trainer put before the names.

```
{"epoch": 3, "state_dict": {"module.visual.proj": ...}, "optimizer": {...}} ─> {"visual.proj": ...}
```

Keys of dictionaries and beginnings of names are one thing here, a place: what stands before `visual` (OpenAI's and
open_clip's names) or `vision_model` (Hugging Face's). So no list of prefixes is needed. A file with weights in several
places is an error that names them, but that averaged weights (EMA) give way to the plain ones, which is said.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limner.errors import ModelError
from limner.progress import say
from limner.store.tensors import Tensors

IMAGE_ENCODERS = ("visual", "vision_model")
"""What a CLIP's image encoder is called, in the names of its tensors."""
WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Modules that torch puts around others, at any place in a name: torch.compile, FSDP, activation checkpoints."""
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI's archives keep among the tensors."""
AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged?|avg)([._]|$)", re.IGNORECASE)
"""What in a place says that the weights there are a running average."""
DEEPEST, MOST_PLACES = 8, 32
"""Dictionaries within each other that are looked into, and places with weights that are compared."""

Place = tuple[str, Tensors]


def unpacked(content: Mapping[Any, Any], path: Path) -> Tensors:
    """The weights of the CLIP in what a checkpoint file holds, by their own names.

    Without one, the tensors of the largest dictionary: whoever knows their names can say what they are.
    """
    groups = [(place, clean(tensors, path)) for place, tensors in _dictionaries(content, path)]
    found = [(place + prefix, part) for place, all in groups for prefix, part in _models(all, path).items()]
    if not found:
        return max((tensors for _, tensors in groups), key=len, default={})
    place, chosen = _chosen(found, path)
    left = sum(len(tensors) for _, tensors in groups) - len(chosen)
    if left:
        where = f"under {place.rstrip('.')}" if place else "whose names begin with nothing"
        say(f"{path}: the weights {where} are read, {left:,} other tensors are not.")
    return chosen


def clean(tensors: Tensors, path: Path) -> Tensors:
    """`tensors` without torch's wrappers in their names, and without the numbers that are no weights."""
    bare = {".".join(part for part in name.split(".") if part not in WRAPPERS): name for name in tensors}
    if len(bare) < len(tensors):
        raise _twice(path, len(tensors) - len(bare), f"without {', '.join(sorted(WRAPPERS))}")
    return {short: tensors[name] for short, name in bare.items() if short.rpartition(".")[2] not in NOT_WEIGHTS}


def _twice(path: Path, count: int, how: str) -> ModelError:
    return ModelError(
        f"The tensors of {path}",
        must=f"have one name each {how}",
        got=f"{count} that are there twice",
        then="Save the model's state_dict() alone.",
    )


def _dictionaries(content: Mapping[Any, Any], path: Path, place: str = "", depth: int = 1) -> Iterator[Place]:
    """(place, tensors) of each dictionary with tensors: `content`, and those within it."""
    named = [(str(key), value) for key, value in content.items() if isinstance(value, Tensor)]
    if tensors := dict(named):
        if len(tensors) < len(named):
            raise _twice(path, len(named) - len(tensors), "as text")
        yield place, tensors
    for key, value in content.items():
        if not isinstance(value, Mapping):
            continue
        if depth == DEEPEST:
            say(f"{path}: what is in more than {DEEPEST} dictionaries within each other is not looked into.")
            return
        yield from _dictionaries(value, path, f"{place}{key}.", depth + 1)


def _models(tensors: Tensors, path: Path) -> dict[str, Tensors]:
    """The tensors of each CLIP among `tensors`, without the beginning that its names have in common."""
    prefixes = set[str]()
    for parts in (name.split(".") for name in tensors):
        first = next((at for at, part in enumerate(parts[:-1]) if part in IMAGE_ENCODERS), None)
        if first is not None:
            prefixes.add("".join(f"{part}." for part in parts[:first]))
    if len(prefixes) > MOST_PLACES:
        raise _several(path, sorted(prefixes))
    models: dict[str, Tensors] = {prefix: {} for prefix in sorted(prefixes)}
    for name, tensor in tensors.items():
        holders = [prefix for prefix in prefixes if name.startswith(prefix)]
        if holders:  # the longest: `ema.visual.proj` is none of the model whose names begin with nothing
            prefix = max(holders, key=len)
            models[prefix][name.removeprefix(prefix)] = tensor
    return models


def _chosen(found: list[Place], path: Path) -> Place:
    """The model that is meant, and its place."""
    plain = [one for one in found if not AVERAGED.search(one[0])]
    averaged = [one for one in found if AVERAGED.search(one[0])]
    among = plain or averaged
    if len(among) > MOST_PLACES:
        raise _several(path, [place for place, _ in among])
    different = [one for i, one in enumerate(among) if not any(_same(one[1], other) for _, other in among[:i])]
    if len(different) > 1:
        raise _several(path, [place for place, _ in different])
    if plain and averaged:
        say(
            f"{path} also has averaged weights, under {averaged[0][0].rstrip('.')}: the plain ones are read. "
            "For the averaged ones, save these to a file of their own."
        )
    return different[0]


def _several(path: Path, places: Sequence[str]) -> ModelError:
    named = " and ".join(place.rstrip(".") or "no name" for place in places[:3])
    return ModelError(
        f"The checkpoint {path}",
        must="hold the weights of one CLIP",
        got=f"those of {len(places)}, under {named}{' and others' * (len(places) > 3)}",
        then="Save the state_dict() of the one that you want alone.",
    )


def _same(one: Tensors, two: Tensors) -> bool:
    """Whether two are one model, which a checkpoint has twice where two modules share it: the same bits, NaN or not."""
    return one.keys() == two.keys() and all(_are_same(one[name], two[name]) for name in one)


def _are_same(one: Tensor, two: Tensor) -> bool:
    if one is two:
        return True
    if one.dtype != two.dtype or one.shape != two.shape:
        return False
    bits = (tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in (one, two))
    return torch.equal(*bits)
