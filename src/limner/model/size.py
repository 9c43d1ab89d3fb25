"""How large an architecture is and what one pair costs, counted on a model without weights (the meta device)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from limner.architecture import Architecture
from limner.model.clip import CLIP


@dataclass(frozen=True)
class Size:
    """Parameters, work and memory of an architecture.

    A FLOP is a multiplication or an addition: 2 x MAC. (The paper's figure 9 says GFLOPs and counts MACs.) Matrix
    products and convolutions count; captions have the whole context; nothing is left out of the last block.
    """

    image_parameters: int
    text_parameters: int
    image_gflops: float
    text_gflops: float
    image_size: int
    embed_dim: int
    weight_mb: float
    """Megabytes (10^6) of all weights in float32."""

    @property
    def parameters(self) -> int:
        """Both encoders' and the logit scale."""
        return self.image_parameters + self.text_parameters + 1


def size_of(shape: Architecture) -> Size:
    """The size of `shape`."""
    with torch.device("meta"):
        model = CLIP(shape)
        pixels = torch.empty(1, 3, shape.image_size, shape.image_size)
        tokens = torch.zeros(1, shape.text.context_length, dtype=torch.long)
    return Size(
        image_parameters=_parameters(model.image),
        text_parameters=_parameters(model.text),
        image_gflops=_gflops(model.image, pixels),
        text_gflops=_gflops(model.text, tokens),
        image_size=shape.image_size,
        embed_dim=shape.embed_dim,
        weight_mb=sum(t.numel() * t.element_size() for t in model.state_dict().values()) / 1e6,
    )


def _parameters(encoder: Any) -> int:
    return sum(parameter.numel() for parameter in encoder.parameters())


@torch.no_grad()
def _gflops(encoder: Any, batch: torch.Tensor) -> float:
    encoder.eval()
    with FlopCounterMode(display=False) as counter:
        encoder.encode_whole(batch)
    return counter.get_total_flops() / 1e9
