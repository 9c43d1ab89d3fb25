"""Losses and gradients on 1, 2 and 4 processes are those of one process with the same global batch."""

import warnings
from datetime import timedelta
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from limner.errors import ConfigError
from limner.objectives.contrastive import contrastive_loss, contrastive_loss_and_accuracy
from limner.objectives.ranks import Ranks
from limner.objectives.sigmoid import sigmoid_loss

SIZES = {"even": [5, 5, 5, 5], "uneven": [7, 3, 1, 6], "a rank without pairs": [4, 0, 3, 2]}
WITHIN = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 2e-2}
"""Relative differences of gradients, by the dtype of the features: half-precision towers round theirs to 1/256."""


class TwoTowers(nn.Module):
    """Linear towers, in double precision; features in `dtype`."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        generator = torch.Generator().manual_seed(1)
        self.image, self.text = (
            nn.Parameter(torch.randn(12, 8, generator=generator, dtype=torch.float64)) for _ in range(2)
        )
        self.log_scale = nn.Parameter(torch.tensor(2.5, dtype=torch.float64))
        self.bias = nn.Parameter(torch.tensor(-3.0, dtype=torch.float64))

    def forward(self, pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        image, text = F.normalize(pixels @ self.image, dim=1), F.normalize(tokens @ self.text, dim=1)
        return image.to(self.dtype), text.to(self.dtype), self.log_scale.exp(), self.bias


def step(
    model: nn.Module, objective: str, pixels: Tensor, tokens: Tensor, positives: Tensor | None, **settings
) -> Tensor:
    image, text, scale, bias = model(pixels, tokens)
    settings |= {"chunk_size": 3, "positives": positives}
    if objective == "sigmoid":
        loss = sigmoid_loss(image, text, scale, bias, **settings)
    else:
        loss = contrastive_loss(image, text, scale, **settings) + 0 * bias  # DDP waits for every parameter
    (loss / 2).backward()  # as when gradients are accumulated
    return loss.detach()


def assert_close(found: Tensor, expected: Tensor, within: float, what: str) -> None:
    assert (found - expected).norm() <= within * expected.norm(), f"{what}: {found} instead of {expected}"


def check(sizes: list[int], objective: str, dtype: torch.dtype, with_ids: bool, group: dist.ProcessGroup) -> None:
    """DDP's mean over the ranks is the single process's gradient, on each rank; so is the loss."""
    generator = torch.Generator().manual_seed(0)
    count, rank = sum(sizes), dist.get_rank(group)
    pixels, tokens = (torch.randn(count, 12, generator=generator, dtype=torch.float64) for _ in range(2))
    positives = torch.randint(count - 1, (count, 2), generator=generator) if with_ids else None
    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))

    alone = TwoTowers(dtype)
    expected = step(alone, objective, pixels, tokens, positives)
    model = TwoTowers(dtype)
    on_ranks = DistributedDataParallel(model, process_group=group)
    own_ids = None if positives is None else positives[own]
    loss = step(on_ranks, objective, pixels[own], tokens[own], own_ids, group=group)

    case = f"{sizes} {objective} {dtype} {with_ids}"
    assert_close(loss, expected, min(WITHIN[dtype], 1e-6), f"{case} loss")
    for (name, found), wanted in zip(model.named_parameters(), alone.parameters(), strict=True):
        assert found.grad is not None and wanted.grad is not None
        assert_close(found.grad, wanted.grad, WITHIN[dtype], f"{case} {name}")


def check_accuracy(sizes: list[int], group: dist.ProcessGroup) -> None:
    generator = torch.Generator().manual_seed(2)
    image, text = torch.randn(2, sum(sizes), 6, generator=generator)
    own = slice(sum(sizes[: group.rank()]), sum(sizes[: group.rank() + 1]))
    positives = torch.randint(4, (sum(sizes), 1), generator=generator)
    for ids in (None, positives):
        own_ids = None if ids is None else ids[own]
        _, found = contrastive_loss_and_accuracy(
            image[own], text[own], torch.tensor(9.0), Ranks(len(image[own]), group, image.device), positives=own_ids
        )
        _, expected = contrastive_loss_and_accuracy(image, text, torch.tensor(9.0), positives=ids)
        assert found == expected


def check_no_group_is_this_process_alone(rank: int) -> None:
    image, text = torch.randn(2, 3 + rank, 6, generator=torch.Generator().manual_seed(rank))
    similarities = 9 * image @ text.T
    own = torch.arange(3 + rank)
    expected = (F.cross_entropy(similarities, own) + F.cross_entropy(similarities.T, own)) / 2
    assert_close(contrastive_loss(image, text, torch.tensor(9.0)), expected, 1e-5, "alone")


def check_locked_texts(group: dist.ProcessGroup) -> None:
    """No gradients are scattered that nobody asked for."""
    image, text = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(group.rank()))
    image.requires_grad_()
    contrastive_loss(image, text, torch.tensor(9.0), group=group).backward()
    assert image.grad is not None and text.grad is None


def check_an_empty_global_batch(group: dist.ProcessGroup) -> None:
    with pytest.raises(ConfigError, match="must hold a pair"):
        contrastive_loss(torch.zeros(0, 3), torch.zeros(0, 3), torch.tensor(1.0), group=group)


def check_all(rank: int, file: str) -> None:
    """What each of four processes runs: groups of one, two and all four, of which some are not the default group."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    init = {"init_method": f"file://{file}", "timeout": timedelta(seconds=60)}
    dist.init_process_group("gloo", rank=rank, world_size=4, **init)
    world = dist.group.WORLD
    assert world is not None
    for members, group in (([0], dist.new_group([0])), ([1, 3], dist.new_group([1, 3])), ([0, 1, 2, 3], world)):
        if rank in members:
            for sizes in SIZES.values():
                for objective, dtype, with_ids in product(("contrastive", "sigmoid"), WITHIN, (False, True)):
                    check(sizes[: len(members)], objective, dtype, with_ids, group)
                check_accuracy(sizes[: len(members)], group)
            check_locked_texts(group)
            check_an_empty_global_batch(group)
    check_no_group_is_this_process_alone(rank)
    dist.destroy_process_group()


def test_groups_of_one_two_and_four_processes(tmp_path: Path):
    """In one test: starting the processes takes longer than all that they do."""
    torch.multiprocessing.spawn(check_all, (str(tmp_path / "ranks"),), nprocs=4)
