import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

TOLERANCE = 1e-5
"""Features have a norm of 1 and logits one of 15: float32 rounds them at 6e-8 and 1e-6, and a few dozen blocks add up
their roundings in another order. What was measured is in benchmarks/results/parity.json."""


@pytest.fixture(scope="session")
def parity_rows(request: pytest.FixtureRequest) -> Iterator[list[dict[str, object]]]:
    rows: list[dict[str, object]] = []
    yield rows
    if path := request.config.getoption("--parity-table"):
        versions = {"torch": torch.__version__, "tolerance": TOLERANCE}
        Path(path).write_text(json.dumps(versions | {"rows": rows}, indent=2) + "\n")


@pytest.fixture
def compare(parity_rows: list[dict[str, object]]) -> Callable[..., None]:
    """Compare (image features, text features, logits) with a peer's, and keep the largest difference for the table."""

    def compare(model: str, peer: str, direction: str, ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
        apart = {
            what: (a - b).abs().max().item()
            for what, a, b in zip(("image", "text", "logits"), ours, theirs, strict=True)
        }
        parity_rows.append({"model": model, "peer": peer, "direction": direction, **apart})
        assert max(apart.values()) <= TOLERANCE, apart
        for features in ours[:2]:  # parity of constants would prove nothing
            assert (features[0] - features[1]).abs().max() > 100 * TOLERANCE

    return compare
