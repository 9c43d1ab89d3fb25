"""Small models and batches, one process as a world, and how far gradients are apart."""

import dataclasses

import torch
from torch import Tensor

from limner.architecture import ZOO, Architecture, TextConfig, ViTConfig
from limner.data.loader import Batch
from limner.training.world import World

ALONE = World(rank=0, size=1, device=torch.device("cpu"), at=lambda _step, _stage: None)
TEXT = TextConfig(layers=2, width=32, heads=2, vocab_size=100, context_length=12)
VIT = Architecture(image=ViTConfig(layers=2, width=32, heads=2, patch_size=8), text=TEXT, embed_dim=16, image_size=24)
RESNET = dataclasses.replace(ZOO["RN-nano"], text=TEXT)


def batch_of(number: int, size: int, seed: int = 0) -> Batch:
    """Random pixels of `size` and captions of the vocabulary of `TEXT`."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (number, 3, size, size), generator=generator, dtype=torch.uint8)
    tokens = torch.randint(1, 98, (number, 12), generator=generator)
    ends = torch.randint(2, 12, (number,), generator=generator)
    tokens[torch.arange(number), ends] = 99
    tokens[torch.arange(12) > ends[:, None]] = 0
    return Batch(pixels, tokens, tuple(map(str, range(number))), torch.arange(2 * number).view(number, 2))


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The norm of the difference over the norm."""
    assert one.keys() == other.keys()
    apart = sum(float((one[name].double() - other[name].double()).square().sum()) for name in one)
    return (apart / sum(float(tensor.double().square().sum()) for tensor in one.values())) ** 0.5
