"""One rank of test_world.py: every case on this rank's share of the batch, gradients written as safetensors.

python -m helpers.ranks FOLDER    with tests/ on the path and RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT as torchrun
sets them
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from helpers.training import RESNET, VIT, batch_of
from limner.architecture import Architecture
from limner.data.loader import Batch
from limner.model.clip import create
from limner.objectives.contrastive import Contrastive
from limner.objectives.objective import Trainee
from limner.training.guard import Guard
from limner.training.optimizer import halve_weights
from limner.training.step import backward
from limner.training.world import World, parallelise, world


@dataclass(frozen=True)
class Case:
    """A global batch of 24 pairs, `left_out` of whose first rank's pairs could not be read."""

    shape: Architecture
    parallel: Literal["ddp", "fsdp"] = "ddp"
    dtype: torch.dtype = torch.float64
    micro_batch: int = 24
    """As much as every rank has, or less."""
    recompute: bool = False
    duplicates: bool = False
    left_out: int = 0
    half: bool = False
    """The text encoder's matrices in bfloat16, computing in bfloat16."""


CASES = {
    "vit": Case(VIT),
    "vit float32": Case(VIT, dtype=torch.float32),
    "vit cached": Case(VIT, micro_batch=3),
    "vit cached, recomputed, duplicates": Case(VIT, micro_batch=2, recompute=True, duplicates=True),
    "vit uneven": Case(VIT, left_out=2),
    "vit cached, uneven": Case(VIT, micro_batch=3, left_out=2),
    "vit half": Case(VIT, dtype=torch.float32, half=True),
    "vit half cached": Case(VIT, dtype=torch.float32, half=True, micro_batch=3),
    "vit fsdp uneven": Case(VIT, parallel="fsdp", left_out=2),
    "vit fsdp": Case(VIT, parallel="fsdp"),
    "vit fsdp float32": Case(VIT, parallel="fsdp", dtype=torch.float32),
    "vit fsdp cached, recomputed": Case(VIT, parallel="fsdp", micro_batch=3, recompute=True),
    # six pairs a rank at most: on every number of ranks the same pictures are normalised together
    "resnet": Case(RESNET, micro_batch=6),
    "resnet fsdp, recomputed": Case(RESNET, parallel="fsdp", micro_batch=6, recompute=True),
}


def run(case: Case, ranks: World) -> dict[str, Tensor]:
    """The loss, the gradient norms of the guard, every gradient averaged over ranks, BatchNorm's buffers."""
    model = create(case.shape).train().to(case.dtype)
    model.recompute_blocks(case.recompute)
    halve_weights(model, ("text",) if case.half else ())
    share = 24 // ranks.size
    rows = list(range(ranks.rank * share, (ranks.rank + 1) * share))
    if ranks.rank == 0:
        rows = rows[case.left_out :]
    everything = batch_of(24, case.shape.image_size)
    batch = Batch(everything.pixels[rows], everything.tokens[rows], (), everything.identities[rows])
    batch = replace(batch, identities=batch.identities // 4)
    objective = Contrastive("positives" if case.duplicates else "negatives")
    replica = parallelise(Trainee(model, objective), case.parallel, ranks)
    pieces = -(-share // case.micro_batch)
    dtype = torch.bfloat16 if case.half else torch.float32
    outcome = backward(replica, batch, pieces=pieces, dtype=dtype, world=ranks)
    found, norms = Guard(model, ranks).look(outcome.loss, outcome.finite, 0)
    outcome.statistics.advance(ranks, found)
    results = {"loss": outcome.loss, "accuracy": outcome.metrics["accuracy"], "found": found}
    results |= {f"norm {name}": norm for name, norm in norms.items()}
    results |= {f"gradient {name}": gathered(p.grad) for name, p in model.named_parameters()}
    results |= {f"buffer {name}": buffer.clone() for name, buffer in model.named_buffers()}
    return {name: tensor.clone().contiguous() for name, tensor in results.items()}


def gathered(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # type: ignore[attr-defined]


def main() -> None:
    with world(60.0) as ranks:
        for name, case in CASES.items():
            results = run(case, ranks)
            if ranks.rank == 0:
                save_file(results, Path(sys.argv[1]) / f"{name}.safetensors")


if __name__ == "__main__":
    main()
