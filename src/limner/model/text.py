"""The text encoder (paper section 2.4): `tokens -> causal transformer -> state at [EOS] -> embedding`.

Because attention is causal and only the state at [EOS] is read, everything after [EOS] can be left out without
changing the result. Captions are therefore sorted by length and run in a few groups, each cut at its longest, and the
last block is computed for [EOS] alone.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from limner.architecture import Activation, TextConfig
from limner.model.transformer import Transformer, at, initialise_blocks

GROUPS = 4
"""Groups of similar length that a batch of captions runs in."""


class TextEncoder(nn.Module):
    """The causal transformer of captions."""

    def __init__(self, config: TextConfig, embed_dim: int, activation: Activation) -> None:
        super().__init__()
        hidden = config.width
        self.token_embedding = nn.Embedding(config.vocab_size, hidden)
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, hidden))
        self.blocks = Transformer(hidden, config.heads, config.layers, causal=True, activation=activation)
        self.norm = nn.LayerNorm(hidden)
        self.projection = nn.Linear(hidden, embed_dim, bias=False)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        initialise_blocks(self.blocks, hidden)
        nn.init.normal_(self.projection.weight, std=hidden**-0.5)

    def forward(self, tokens: Int[Tensor, "batch context"]) -> Float[Tensor, "batch embed"]:
        """The embedding of each caption; equal to `encode_whole` in value and gradient."""
        if len(tokens) == 0:
            return self.encode_whole(tokens)
        device = self.positional_embedding.device
        # worked out where the tokens are: on the CPU, as they come from the tokenizer, this waits for no GPU
        ends = tokens.argmax(dim=-1)
        order = ends.argsort(stable=True)
        words, places = tokens.unique(return_inverse=True)
        # a token's gradient is the sum over its places: over the vectors in use, in float32 even if the weights are
        # bfloat16; that of the whole table, as large as the vocabulary, is made once and not for each group
        vectors = self.token_embedding(words.to(device)).to(self.positional_embedding.dtype)
        # in training nearly always, because ranks that share weights (FSDP) must call each block equally often
        least = GROUPS if self.training else 8 * GROUPS
        groups = [
            self.encode_cut(
                F.embedding(places[rows, : int(ends[rows[-1]]) + 1].to(device), vectors), ends[rows].to(device)
            )
            for rows in order.tensor_split(GROUPS if len(order) >= least else 1)
        ]
        return torch.cat(groups)[order.argsort().to(device)]

    def encode_whole(self, tokens: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch embed"]:
        """The readable reference: every position is computed, then the one at [EOS], the highest id, is read."""
        tokens = tokens.to(self.positional_embedding.device)
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        return self.projection(self.norm(at(self.blocks(x), tokens.argmax(dim=-1))))

    def encode_cut(
        self, vectors: Float[Tensor, "batch tokens hidden"], ends: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch embed"]:
        """`encode_whole` from the tokens' vectors on, with the last block at [EOS] alone."""
        x = vectors + self.positional_embedding[: vectors.shape[1]]
        return self.projection(self.norm(self.blocks.only(x, ends)))
