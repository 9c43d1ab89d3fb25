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
        place_of = {name: path.parent / file for name, file in read_json(path)["weight_map"].items()}
        several = ((file, name, tensor) for file in _indexed(path) for name, tensor in read_tensors(file).items())
        return {name: tensor for file, name, tensor in several if place_of.get(name, file) == file}
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"The file {path}", must="be a whole safetensors file", got=error, then="Copy or save it again."
        ) from error


def _indexed(path: Path) -> list[Path]:
    """The files that an index names, each once. A name may not lead out of the index's directory."""
    names = dict.fromkeys(read_json(path)["weight_map"].values())
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not (path.parent / name).is_file():
            raise ModelError(
                f"The file names in {path}",
                must="be files beside it",
                got=repr(name),
                then="A file elsewhere is never opened: copy the whole checkpoint again.",
            )
    return [path.parent / name for name in names]


def write_tensors(path: Path, tensors: Tensors, **metadata: str) -> None:
    """Write a safetensors file, whole or not at all."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with replacing(path) as file:
        try:
            save_file(contiguous, file.name, metadata={"format": "pt", **metadata})
        except SafetensorError as error:  # as it calls a full disk
            raise OSError(errno.ENOSPC, str(error)) from error
