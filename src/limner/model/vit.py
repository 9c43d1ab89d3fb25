"""The Vision Transformer (section 2.4): `pixels -> patches -> [class, patches] -> LayerNorm -> blocks -> class`.

Only the class token leaves the last block, so `forward` computes the last block for it alone: its query against every
token's key and value, then its own MLP. `encode_whole` is the readable reference, equal in value and gradient.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limner.architecture import Activation, ViTConfig
from limner.model.transformer import Block, Transformer, resized_positions


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
        self.blocks = Transformer(hidden, config.heads, config.layers, causal=False, activation=activation)
        self.norm_after = nn.LayerNorm(hidden)
        self.projection = nn.Linear(hidden, embed_dim, bias=False)
        for block in self.blocks:
            assert isinstance(block, Block)
            nn.init.xavier_uniform_(block.attention.in_proj.weight)
            nn.init.zeros_(block.attention.in_proj.bias)
            nn.init.zeros_(block.attention.out_proj.bias)
        nn.init.normal_(self.projection.weight, std=hidden**-0.5)

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        return self.class_embedding.dtype

    def resize_grid(self, old: int, new: int) -> None:
        """Take grids of `new` patches on each side instead of `old`."""
        self.positional_embedding = resized_positions(self.positional_embedding, old, new)

    def forward(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch embed"]:
        """The embedding of each normalised picture."""
        x = self.embed(self.patches_as_rows(pixels))
        first = torch.zeros(x.shape[0], dtype=torch.long, device=x.device)
        return self.projection(self.norm_after(self.blocks.only(x, first)))

    def encode_whole(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch embed"]:
        """The readable reference: a convolution for the patches, every token in every block."""
        x = self.embed(self.patch_embedding(pixels).flatten(2).transpose(1, 2))
        return self.projection(self.norm_after(self.blocks(x)[:, 0]))

    def patches_as_rows(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch patches hidden"]:
        """The patch embedding as one matrix product, which is what a convolution that never overlaps is."""
        side = self.patch_embedding.kernel_size[0]
        batch, channels, height, width = pixels.shape
        grid = pixels.view(batch, channels, height // side, side, width // side, side)
        rows = grid.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * side * side)
        return nn.functional.linear(rows, self.patch_embedding.weight.flatten(1))

    def embed(self, patches: Float[Tensor, "batch patches hidden"]) -> Float[Tensor, "batch tokens hidden"]:
        """Class token in front, positions added, normalised."""
        first = self.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        return self.norm_before(torch.cat([first, patches], dim=1) + self.positional_embedding)
