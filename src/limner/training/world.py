"""Many processes, one training run: `torchrun -m limner train ...` starts them, each a rank with a share of the batch.

Every rank runs the same program on its own pairs. The loss gathers what it needs (objectives/contrastive.py), DDP or
FSDP2 averages gradients, rank 0 writes. The run directory must be on a disk that all ranks see.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from limner.errors import ConfigError
from limner.model.clip import CLIP
from limner.model.transformer import Blocks
from limner.objectives.objective import Trainee
from limner.progress import say
from limner.training.watch import Watch

BUCKET_NUMBERS = 2**24
"""Gradients are sent together until they are this many numbers."""
COLLECTIVE_TIMEOUT = timedelta(hours=2)
"""torch's own limit for one exchange; the watch is faster, and saving may take long."""


@dataclass(frozen=True)
class World:
    """The ranks of this run, and which of them this process is. One process is a world of size 1 without a group."""

    rank: int
    size: int
    device: torch.device
    at: Callable[[int, str], None]
    """`at(step, stage)`: say where this rank is, for the watch."""

    @property
    def group(self) -> dist.ProcessGroup | None:
        """What collectives run in."""
        return dist.group.WORLD if self.size > 1 else None

    def say(self, text: str) -> None:
        """One line for people, from rank 0."""
        if self.rank == 0:
            say(text)

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.any()

    def any(self, *facts: bool) -> tuple[bool, ...]:
        """For each fact whether it holds on at least one rank: what ranks must decide alike."""
        if self.size == 1:
            return facts
        # on the CPU, over gloo, so that no GPU is waited for
        flags = torch.tensor([True, *facts], dtype=torch.int32)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return tuple(bool(flag) for flag in flags[1:])

    def collect(self, value: Any) -> list[Any]:
        """The plain values of all ranks, in their order."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def mean(self, tensors: list[Tensor]) -> None:
        """Replace float tensors by their means over ranks."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, mean in zip(tensors, (flat / self.size).split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))


# --- starting --------------------------------------------------------------------------------------------------------


def rank() -> int:
    """This process's rank as torchrun says it; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def is_restart() -> bool:
    """Whether torchrun started the job again after a rank failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextmanager
def world(patience_seconds: float) -> Iterator[World]:
    """Join the other ranks that torchrun started, if it did, and keep watch over them until the end."""
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(rank=0, size=1, device=device, at=lambda _step, _stage: None)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=COLLECTIVE_TIMEOUT)
    watch = Watch(rank(), size, patience_seconds)
    try:
        yield World(rank=rank(), size=size, device=device, at=watch.at)
        watch.at(sys.maxsize, "finished")
        dist.barrier()
    except BaseException as error:
        watch.fail(error)
        raise
    finally:
        watch.end()
        dist.destroy_process_group()


def share_of_rank(batch_size: int, world: World) -> int:
    """The pairs of a batch that each rank takes."""
    if batch_size % world.size:
        raise ConfigError(
            "batch-size of train",
            must=f"be a multiple of the {world.size} ranks",
            got=batch_size,
            then=f"Take {max(1, batch_size // world.size) * world.size}.",
        )
    return batch_size // world.size


# --- weights on ranks ------------------------------------------------------------------------------------------------


def parallelise(trainee: Trainee, parallel: Literal["ddp", "fsdp"], world: World) -> nn.Module:
    """`trainee` as something to call whose gradients are averaged over ranks.

    ddp: a wrapper around it, which stays whole on every rank. fsdp: `trainee` itself, whose parameters become DTensors,
    each block's gathered when it is due. Single numbers, such as the logit scale, stay whole.
    """
    if world.size == 1:
        return trainee
    if parallel == "ddp":
        # BatchNorm's statistics are averaged once a step (training/step.py), not sent from rank 0
        return DistributedDataParallel(trainee, forward_sync_buffers=False, gradient_as_bucket_view=True)
    trainee.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # FSDP shards nothing else
    mesh = init_device_mesh(world.device.type, (world.size,))
    for blocks in [module for module in trainee.modules() if isinstance(module, Blocks)]:
        for block in blocks:
            fully_shard(block, mesh=mesh)
            if hasattr(block, "only"):
                register_fsdp_forward_method(block, "only")
    numbers = {parameter for parameter in trainee.parameters() if parameter.ndim == 0}
    fully_shard(trainee, mesh=mesh, ignored_params=numbers)
    return trainee


def local_gradients(replica: nn.Module) -> AbstractContextManager[None]:
    """Backward passes whose gradients DDP leaves on this rank. FSDP averages them anyway: the weights are shared."""
    return replica.no_sync() if isinstance(replica, DistributedDataParallel) else nullcontext()


def average_gradients(model: CLIP, world: World) -> None:
    """Average over ranks the gradients of parameters that are whole on every rank, after `local_gradients`."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None and not isinstance(p, DTensor)]
    bucket: list[Tensor] = []
    for gradient in gradients:
        bucket.append(gradient)
        if sum(g.numel() for g in bucket) > BUCKET_NUMBERS:
            world.mean(bucket)
            bucket = []
    world.mean(bucket)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


# --- signals ---------------------------------------------------------------------------------------------------------


@contextmanager
def stop_at_signals() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C and SIGTERM into a question asked between steps; a second one interrupts at once."""
    asked = threading.Event()

    def ask(_number: int, _frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
