"""Why training on a CPU takes the plain attention (docs/decisions/0003): forward and backward, both ways, as JSON.

The shape is a quarter of the demo's batch of captions: 64 captions, 4 heads of 32, at several lengths. Medians of
interleaved runs, so that a busy machine slows both alike.
"""

import json
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from limner.model.transformer import attention_reference

REPEATS = 30


def fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return attention_reference(query, key, value, causal=True)


def milliseconds(attend: Callable[[Tensor, Tensor, Tensor], Tensor], length: int, dtype: torch.dtype) -> float:
    query, key, value = (torch.randn(64, 4, length, 32, dtype=dtype, requires_grad=True) for _ in range(3))
    start = time.perf_counter()
    attend(query, key, value).sum().backward()
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for length in (8, 16, 24, 40, 77):
            times = [(milliseconds(fused, length, dtype), milliseconds(plain, length, dtype)) for _ in range(REPEATS)]
            a, b = (statistics.median(column) for column in zip(*times, strict=True))
            rows.append(
                {"dtype": str(dtype), "tokens": length, "fused_ms": a, "plain_ms": b, "fused_over_plain": a / b}
            )
    print(json.dumps({"threads": torch.get_num_threads(), "torch": torch.__version__, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
