"""Checkpoints: everything that a run needs to continue to the bit, in safetensors, no pickle.

`model.NAME` are weights and BatchNorm statistics, `exp_avg.NAME` and `exp_avg_sq.NAME` AdamW's moments, `ema.NAME` the
average of the weights; the step and what else is a number are in the metadata. There is no random state to keep: every
draw is a function of the seed and the step.

```
checkpoints/step-00000100.safetensors    written by rank 0, where every rank has the whole model
checkpoints/step-00000100/               sharded (FSDP): by torch.distributed.checkpoint, one safetensors file per rank,
                                         and state.json, the metadata
```

Both are read on any number of ranks, sharded or not.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from torch.distributed.checkpoint.state_dict_saver import save as save_shards
from torch.distributed.tensor import DTensor, distribute_tensor

from limner.errors import StorageError, TrainingError
from limner.files import read_json, write_json
from limner.model.clip import CLIP, trainable
from limner.run import RunDirectory
from limner.store.store import load_weights
from limner.store.tensors import read_tensors, write_tensors
from limner.training.half_adamw import MOMENTS
from limner.training.optimizer import Average
from limner.training.world import World

KEPT = 2
"""Checkpoints that stay on the disk: the newest, and one more should that be damaged."""


@dataclass(frozen=True)
class State:
    """What training changes: all of it is in a checkpoint."""

    model: CLIP
    optimizer: torch.optim.Optimizer
    average: Average | None

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by their names in a checkpoint; moments are there after the first update."""
        tensors = {f"model.{name}": tensor.detach() for name, tensor in self.model.state_dict().items()}
        for name, parameter in trainable(self.model).items():
            state = self.optimizer.state.get(parameter, {})
            tensors |= {f"{moment}.{name}": state[moment] for moment in MOMENTS if moment in state}
        if self.average is not None:
            tensors |= {f"ema.{name}": tensor for name, tensor in self.average.weights.items()}
        return tensors

    def updates(self) -> int:
        """Optimizer steps that changed the weights; a skipped one does not count."""
        counts = [state["step"] for state in self.optimizer.state.values()]
        return int(counts[0]) if counts else 0


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    step: int
    """Steps done."""
    left_out: int
    """Batches that were gone past without a step (train.non_finite rewind): the data is this far ahead of the step."""
    data: str
    """The fingerprint of the training data."""
    dropped: dict[str, int]
    """Times that a pair could not be used, by reason."""


def save_checkpoint(folder: Path, state: State, progress: Progress, world: World) -> Path:
    """Write the state of a run; every rank calls it. Older checkpoints than the newest two go away."""
    metadata = {
        "step": str(progress.step),
        "left_out": str(progress.left_out),
        "data": progress.data,
        "dropped": json.dumps(progress.dropped),
        "updates": str(state.updates()),
    }
    tensors = state.tensors()
    if any(isinstance(tensor, DTensor) for tensor in tensors.values()):
        path = _save_sharded(folder / f"step-{progress.step:08d}", tensors, metadata, world)
    else:
        path = folder / f"step-{progress.step:08d}.safetensors"
        if world.rank == 0:
            write_tensors(path, {name: tensor.cpu() for name, tensor in tensors.items()}, **metadata)
    world.barrier()
    if world.rank == 0:
        for old in [*checkpoints(folder)[KEPT:], *folder.glob(".step-*.partial")]:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    return path


def _save_sharded(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], world: World) -> Path:
    """Every rank writes its shards into one folder, which takes its name when all are there."""
    partial = path.with_name(f".{path.name}.partial")
    if world.rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    world.barrier()
    try:
        save_shards(tensors, storage_writer=HuggingFaceStorageWriter(str(partial), save_distributed=True))
    except (OSError, CheckpointException) as error:
        raise StorageError(
            f"The checkpoint {path}",
            must="be written whole",
            got=str(error).partition("\n")[0],
            then="Make room; the last checkpoint stays, and limner resume RUN continues from it.",
        ) from error
    if world.rank == 0:
        write_json(partial / "state.json", {**metadata, "files": len(list(partial.glob("*.safetensors")))})
        shutil.rmtree(path, ignore_errors=True)
        partial.replace(path)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, the one with the most steps first."""
    return sorted(folder.glob("step-*"), key=lambda path: path.name.removesuffix(".safetensors"), reverse=True)


def is_readable(path: Path) -> bool:
    """Whether a checkpoint is whole: each of its safetensors files is."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    try:
        for file in files:
            with safe_open(file, framework="pt"):
                pass
    except (OSError, SafetensorError):
        return False
    state = path / "state.json"
    return not path.is_dir() or (state.is_file() and read_json(state)["files"] == len(files))


def load_checkpoint(path: Path, state: State, *, data: str | None) -> Progress:
    """Put what `path` holds, trained on `data` unless that is None, into `state`, sharded as its parameters are.

    Raises `TrainingError` if it was trained on other data, `ModelError` if it is of another architecture.
    """
    if path.is_dir():
        metadata = read_json(path / "state.json")
        tensors = _read_sharded(path)
    else:
        tensors = read_tensors(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    if data is not None and metadata.get("data") != data:
        raise TrainingError(
            f"The data of the run that {path} belongs to",
            must=f"be what it was trained on, fingerprint {str(metadata.get('data'))[:12]}",
            got=f"fingerprint {data[:12]}",
            then="Restore the data, go on with what is there now by --other-data, or start a new run with --out.",
        )
    own = state.model.state_dict()
    weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    load_weights(state.model, {n: _like(own.get(n), t) for n, t in weights.items()}, where=str(path))
    state.optimizer.state.clear()  # a checkpoint of before the first update has none
    for name, parameter in trainable(state.model).items():
        if f"exp_avg.{name}" in tensors:
            state.optimizer.state[parameter] = {
                "step": torch.tensor(float(metadata.get("updates", metadata["step"])), device=parameter.device),
                **{moment: _moment(parameter, tensors[f"{moment}.{name}"]) for moment in MOMENTS},
            }
        if state.average is not None:
            # a run that only now keeps an average starts it from the weights
            average = tensors.get(f"ema.{name}", tensors[f"model.{name}"])
            state.average.weights[name].copy_(_like(parameter, average.float()))
    return Progress(
        step=int(metadata["step"]),
        left_out=int(metadata.get("left_out", 0)),
        data=metadata["data"],
        dropped=json.loads(metadata.get("dropped", "{}")),
    )


def _read_sharded(path: Path) -> dict[str, Tensor]:
    """The whole tensors of a sharded checkpoint."""
    reader = HuggingFaceStorageReader(str(path))
    described = reader.read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in described.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    load_shards(tensors, storage_reader=reader, no_dist=True)
    return tensors


def _like(own: Tensor | None, tensor: Tensor) -> Tensor:
    """`tensor`, which every rank has read, sharded as `own` is."""
    if isinstance(own, DTensor):
        return distribute_tensor(tensor.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
    return tensor


def _moment(parameter: Tensor, tensor: Tensor) -> Tensor:
    """A moment of `parameter`, in the precision that it was kept in."""
    if isinstance(parameter, DTensor):
        return _like(parameter, tensor)
    # empty_like keeps the parameter's memory order, on which the fused step's rounding depends
    return torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)


def continue_from(run: RunDirectory, state: State, world: World, *, data: str | None) -> Progress | None:
    """Load the newest whole checkpoint of a run, if there is one, which was trained on `data` (None: whatever it was);
    returns how far it is. Rank 0 chooses for all."""
    world.at(-1, "preparing")
    chosen = None
    for checkpoint in checkpoints(run.checkpoints) if world.rank == 0 else ():
        if is_readable(checkpoint):
            chosen = checkpoint.name
            break
        world.say(f"{checkpoint} is damaged; the one before it is used.")
    chosen = world.collect(chosen)[0]
    there = None if chosen is None else load_checkpoint(run.checkpoints / chosen, state, data=data)
    world.barrier()
    return there


def gathered(tensors: dict[str, Tensor], world: World, *, on_all: bool = False) -> dict[str, Tensor]:
    """Weights as a model directory keeps them, whole and on the CPU, on rank 0 or on all; nothing on the others."""
    whole = {}
    for name, tensor in tensors.items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()
        if world.rank == 0 or on_all:
            whole[name] = full.cpu()
    return whole
