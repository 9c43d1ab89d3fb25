import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from limner.objectives.sigmoid import sigmoid_loss, sigmoid_loss_reference

both = pytest.mark.parametrize("loss_of", [sigmoid_loss, sigmoid_loss_reference])


def features(count: int, dim: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image, text = torch.randn(2, count, dim, generator=generator, dtype=torch.float64)
    return F.normalize(image, dim=1), F.normalize(text, dim=1)


@given(
    pairs=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=9),
    own=st.booleans(),
    scale=st.floats(0, 50),
    bias=st.floats(-20, 20),
    seed=st.integers(0, 99),
)
@settings(max_examples=50)
@both
def test_the_definition(
    loss_of: Callable, pairs: list[tuple[int, int]], own: bool, scale: float, bias: float, seed: int
):
    """Pair by pair, with only each picture's own caption right, or with ids of pictures and captions."""
    image, text = features(len(pairs), 4, seed)
    total = 0.0
    for i, (picture, caption) in enumerate(pairs):
        for j, (other, its_caption) in enumerate(pairs):
            right = i == j or (not own and (picture == other or caption == its_caption))
            logit = scale * float(image[i] @ text[j]) + bias
            total += math.log1p(math.exp(-logit if right else logit))
    scalars = [torch.tensor(x, dtype=torch.float64) for x in (scale, bias)]
    loss = loss_of(image, text, *scalars, positives=None if own else torch.tensor(pairs))
    assert loss.item() == pytest.approx(total / len(pairs), rel=1e-12)


@both
def test_the_loss_at_the_start_of_siglip(loss_of: Callable):
    """With a bias of -10 and a scale of 10, N orthogonal pairs cost about 10: the right captions."""
    image = torch.eye(64)
    loss = loss_of(image, image.roll(1, 0), torch.tensor(10.0), torch.tensor(-10.0))
    wrong = 62 * math.log1p(math.exp(-10)) + math.log(2)
    assert loss.item() == pytest.approx(10 + math.log1p(math.exp(-10)) + wrong, rel=1e-6)


def test_large_logits_lose_nothing():
    """Right by far: the loss is the sum of exp(-|logit|), of which no difference of large numbers is left."""
    image, text = torch.eye(4), 2 * torch.eye(4) - 1
    loss = sigmoid_loss(image, text, torch.tensor(40.0), torch.tensor(0.0))
    assert loss.item() == pytest.approx(4 * math.exp(-40), rel=1e-5)
