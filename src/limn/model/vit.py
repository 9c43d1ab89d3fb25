"""The Vision Transformer (section 2.4): `pixels -> patches -> [class, patches] -> LayerNorm -> blocks -> class`."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limn.config import Activation, ViTConfig
from limn.model.transformer import Block


class ViT(nn.Module):
    """Dosovitskiy et al. 2020 with one more LayerNorm, in front of the first block."""

    def __init__(self, config: ViTConfig, embed_dim: int, image_size: int, activation: Activation) -> None:
        super().__init__()
        hidden = config.width
        patches = (image_size // config.patch_size) ** 2
        self.patch_embedding = nn.Conv2d(3, hidden, config.patch_size, stride=config.patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(hidden) * hidden**-0.5)
        self.positional_embedding = nn.Parameter(torch.randn(patches + 1, hidden) * hidden**-0.5)
        self.norm_before = nn.LayerNorm(hidden)
        self.blocks = nn.Sequential(
            *(Block(hidden, config.heads, causal=False, activation=activation) for _ in range(config.layers))
        )
        self.norm_after = nn.LayerNorm(hidden)
        self.projection = nn.Linear(hidden, embed_dim, bias=False)
        for block in self.blocks:
            assert isinstance(block, Block)
            nn.init.xavier_uniform_(block.attention.in_proj.weight)
            nn.init.zeros_(block.attention.in_proj.bias)
            nn.init.zeros_(block.attention.out_proj.bias)
        nn.init.normal_(self.projection.weight, std=hidden**-0.5)

    def forward(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch embed"]:
        """The embedding of each normalised picture."""
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        x = self.norm_before(torch.cat([first, patches], dim=1) + self.positional_embedding)
        return self.projection(self.norm_after(self.blocks(x)[:, 0]))
