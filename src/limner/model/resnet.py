"""The modified ResNet (paper section 2.4).

```
pixels ─> three-convolution stem (ResNet-D, He et al. 2018) ─> average pool
       ─> stages of bottlenecks; wherever a ResNet strides, an average pool (rect-2 blur, Zhang 2019) and no stride
       ─> attention pooling: one query, the mean of the grid, over the grid and that mean ─> embedding
```
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from limner.architecture import Activation, ResNetConfig
from limner.model.transformer import Blocks, attention, resized_positions

EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions beside a shortcut; a stride is an average pool in front of the last convolution."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = EXPANSION * width
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        nn.init.zeros_(self.bn3.weight)  # each block starts as its shortcut
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.shortcut = nn.Identity()
        if stride > 1 or channels != out:
            self.shortcut = nn.Sequential(self.pool, nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out rows columns"]:
        """One block."""
        # in place, for nobody needs what goes in: neither the gradient of a norm nor that of a sum
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.pool(F.relu(self.bn2(self.conv2(out)), inplace=True))
        return F.relu(self.bn3(self.conv3(out)) + self.shortcut(x), inplace=True)


class AttentionPool(nn.Module):
    """Multi-head attention whose one query is the mean of the grid; its output is the embedding."""

    def __init__(self, positions: int, hidden: int, heads: int, embed_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(positions + 1, hidden) * hidden**-0.5)
        self.q_proj = nn.Linear(hidden, hidden)
        self.k_proj = nn.Linear(hidden, hidden)
        self.v_proj = nn.Linear(hidden, hidden)
        self.c_proj = nn.Linear(hidden, embed_dim)
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.c_proj):
            nn.init.normal_(linear.weight, std=hidden**-0.5)

    def forward(self, x: Float[Tensor, "batch hidden rows columns"]) -> Float[Tensor, "batch embed"]:
        """The embedding of each grid."""
        x = self.embed(x)
        return self.c_proj(self.attend(x[:, :1], x)[:, 0])

    def attend_whole(self, x: Float[Tensor, "batch hidden rows columns"]) -> Float[Tensor, "batch embed"]:
        """The readable reference: every position asks, then the mean's answer is read."""
        x = self.embed(x)
        return self.c_proj(self.attend(x, x))[:, 0]

    def embed(self, x: Float[Tensor, "batch hidden rows columns"]) -> Float[Tensor, "batch tokens hidden"]:
        """The mean of the grid in front of it, positions added."""
        x = x.flatten(2).transpose(1, 2)
        return torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + self.positional_embedding

    def attend(
        self, asking: Float[Tensor, "batch queries hidden"], x: Float[Tensor, "batch tokens hidden"]
    ) -> Float[Tensor, "batch queries hidden"]:
        """What the heads gather for each query."""
        query, key, value = (
            linear(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear, tokens in ((self.q_proj, asking), (self.k_proj, x), (self.v_proj, x))
        )
        return attention(query, key, value, training=self.training).transpose(1, 2).flatten(2)


class ResNet(nn.Module):
    """The modified ResNet."""

    def __init__(self, config: ResNetConfig, embed_dim: int, image_size: int, _activation: Activation) -> None:
        super().__init__()
        width = config.width
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.pool = nn.AvgPool2d(2)
        channels, stages = width, []
        for stage, blocks in enumerate(config.layers):
            inside = width * 2**stage
            for block in range(blocks):
                stages.append(Bottleneck(channels, inside, stride=2 if stage > 0 and block == 0 else 1))
                channels = EXPANSION * inside
        self.blocks = Blocks(*stages)
        side = image_size // config.stride
        self.attention_pool = AttentionPool(side**2, channels, config.heads, embed_dim)
        # the layout that convolutions are fastest in, on CPUs and GPUs
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        return self.conv1.weight.dtype

    @property
    def projection(self) -> nn.Linear:
        """The last layer: what it is given is what the attention pool has gathered, [batch hidden]."""
        return self.attention_pool.c_proj

    def resize_grid(self, old: int, new: int) -> None:
        """Take grids of `new` positions on each side instead of `old`."""
        pool = self.attention_pool
        pool.positional_embedding = resized_positions(pool.positional_embedding, old, new)

    def encode_whole(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch embed"]:
        """The readable reference."""
        return self.forward(pixels)

    def forward(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch embed"]:
        """The embedding of each normalised picture."""
        x = pixels.contiguous(memory_format=torch.channels_last)
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.relu(norm(conv(x)), inplace=True)
        return self.attention_pool(self.blocks(self.pool(x)))
