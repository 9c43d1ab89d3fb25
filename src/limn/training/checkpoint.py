"""Checkpoints: everything that a run needs to continue to the bit, in one safetensors file, no pickle.

`model.NAME` are weights and BatchNorm statistics, `exp_avg.NAME` and `exp_avg_sq.NAME` AdamW's moments, and the step is
in the file's metadata. There is no random state to keep: every draw is a function of the seed and the step.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from limn.errors import TrainingError
from limn.files import write_bytes
from limn.model.clip import CLIP
from limn.model.store import load_weights
from limn.model.tensors import read_tensors

KEPT = 2
"""Checkpoints that stay on the disk: the newest, and one more should that be damaged."""
MOMENTS = ("exp_avg", "exp_avg_sq")


def save_checkpoint(folder: Path, model: CLIP, optimizer: torch.optim.AdamW, *, step: int, data: str) -> Path:
    """Write the state after `step` steps; `data` is the fingerprint of the training data."""
    tensors = {f"model.{name}": tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        state = optimizer.state.get(parameter, {})
        tensors |= {f"{moment}.{name}": state[moment].cpu().contiguous() for moment in MOMENTS if moment in state}
    path = folder / f"step-{step:08d}.safetensors"
    write_bytes(path, save(tensors, metadata={"step": str(step), "data": data}))
    for old in checkpoints(folder)[KEPT:]:
        old.unlink()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, the one with the most steps first."""
    return sorted(folder.glob("step-*.safetensors"), reverse=True)


def is_readable(path: Path) -> bool:
    """Whether a checkpoint is a whole safetensors file."""
    try:
        with safe_open(path, framework="pt"):
            return True
    except (OSError, SafetensorError):
        return False


def load_checkpoint(path: Path, model: CLIP, optimizer: torch.optim.AdamW, *, data: str) -> int:
    """Put the state of `path` into `model` and `optimizer`; returns the steps already done.

    Raises `TrainingError` if it was trained on other data, `ModelError` if it is of another architecture.
    """
    tensors = read_tensors(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if metadata.get("data") != data:
        raise TrainingError(
            f"The data of the run that {path} belongs to",
            must=f"be what it was trained on, fingerprint {str(metadata.get('data'))[:12]}",
            got=f"fingerprint {data[:12]}",
            then="Restore the data, or start a new run with --out.",
        )
    weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    load_weights(model, weights, where=str(path))
    step = int(metadata["step"])
    for name, parameter in model.named_parameters():
        if f"exp_avg.{name}" in tensors:
            optimizer.state[parameter] = {
                "step": torch.tensor(float(step), device=parameter.device),
                # empty_like keeps the parameter's memory order, on which the fused step's rounding depends
                **{moment: torch.empty_like(parameter).copy_(tensors[f"{moment}.{name}"]) for moment in MOMENTS},
            }
    return step
