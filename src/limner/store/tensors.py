"""Files of tensors: safetensors, in one file or in several with an index."""

import errno
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from limner.errors import ModelError
from limner.files import read_json, replacing

Tensors = dict[str, Tensor]


def read_tensors(path: Path) -> Tensors:
    """The tensors of a safetensors file; of an index (.json) those of all the files that it names."""
    if path.suffix == ".json":
        return _read_indexed(path)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"The file {path}", must="be a whole safetensors file", got=error, then="Copy or save it again."
        ) from error


def _read_indexed(path: Path) -> Tensors:
    """The tensors of the files that an index names: each from its place there; one without a place is in one file."""
    place_of, found = _places(path), Tensors()
    for file in dict.fromkeys(place_of.values()):
        for name, tensor in read_tensors(file).items():
            if place_of.get(name, file) != file:
                continue
            if name in found:
                raise ModelError(
                    f"The tensor {name} of {path}",
                    must="be in one file, or have its place in the index",
                    got=f"several, {file.name} among them",
                    then="Copy or save the checkpoint again.",
                )
            found[name] = tensor
    return found


def _places(path: Path) -> dict[str, Path]:
    """The file of each tensor, by an index. A name may not lead out of the index's directory."""
    told = read_json(path)
    places = told.get("weight_map") if isinstance(told, dict) else None
    if not isinstance(places, dict) or not places:
        raise ModelError(
            f"The index {path}", must="name a file for each tensor", got="no weight_map", then="Copy it again."
        )
    for name in dict.fromkeys(map(str, places.values())):
        if Path(name).name != name or not (path.parent / name).is_file():
            raise ModelError(
                f"The file names in {path}",
                must="be files beside it",
                got=repr(name),
                then="A file elsewhere is never opened: copy the whole checkpoint again.",
            )
    return {name: path.parent / str(file) for name, file in places.items()}


def write_tensors(path: Path, tensors: Tensors, **metadata: str) -> None:
    """Write a safetensors file, whole or not at all."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with replacing(path) as file:
        try:
            save_file(contiguous, file.name, metadata={"format": "pt", **metadata})
        except SafetensorError as error:  # as it calls a full disk
            raise OSError(errno.ENOSPC, str(error)) from error
