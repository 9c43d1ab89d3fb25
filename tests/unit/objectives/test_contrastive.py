import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from limn.objectives.contrastive import contrastive_loss


def features(count: int, dim: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image, text = (
        F.normalize(torch.randn(count, dim, generator=generator, dtype=torch.float64), dim=1) for _ in range(2)
    )
    return image, text


def by_hand(image: torch.Tensor, text: torch.Tensor, scale: float) -> float:
    """The definition, pair by pair, in float64."""
    total = 0.0
    for i in range(len(image)):
        row = [math.exp(scale * float(image[i] @ text[j])) for j in range(len(text))]
        column = [math.exp(scale * float(image[j] @ text[i])) for j in range(len(text))]
        total -= math.log(row[i] / sum(row)) + math.log(column[i] / sum(column))
    return total / (2 * len(image))


@given(count=st.integers(2, 9), dim=st.integers(1, 6), scale=st.floats(0, 100), seed=st.integers(0, 1000))
@settings(max_examples=50)
def test_the_definition(count: int, dim: int, scale: float, seed: int):
    image, text = features(count, dim, seed)
    loss = contrastive_loss(image.float(), text.float(), torch.tensor(scale))
    # float32 logits of up to 100 carry errors of 100 * 2**-23
    assert loss.item() == pytest.approx(by_hand(image, text, scale), rel=1e-4, abs=5e-5)


@given(count=st.integers(2, 20), seed=st.integers(0, 1000))
def test_equal_similarities_cost_log_n(count: int, seed: int):
    image, text = features(count, 4, seed)
    assert contrastive_loss(image, text, torch.tensor(0.0)).item() == pytest.approx(math.log(count), rel=1e-6)


@given(count=st.integers(2, 12), seed=st.integers(0, 1000))
def test_the_order_of_the_pairs_a_joint_rotation_and_swapping_the_sides_do_not_matter(count: int, seed: int):
    image, text = features(count, 5, seed)
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor(10.0)
    before = contrastive_loss(image, text, scale).item()
    order = torch.randperm(count, generator=generator)
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64)).Q
    assert contrastive_loss(image[order], text[order], scale).item() == pytest.approx(before, rel=1e-5, abs=1e-5)
    assert contrastive_loss(image @ rotation, text @ rotation, scale).item() == pytest.approx(
        before, rel=1e-5, abs=1e-5
    )
    assert contrastive_loss(text, image, scale).item() == pytest.approx(before, rel=1e-5, abs=1e-5)


def test_gradients_match_finite_differences():
    image, text = features(4, 3, 0)
    scale = torch.tensor(5.0, dtype=torch.float64)
    image32, text32, scale32 = (x.float().requires_grad_() for x in (image, text, scale))
    contrastive_loss(image32, text32, scale32).backward()
    step = 1e-4
    for tensor, gradient in ((image, image32.grad), (text, text32.grad), (scale, scale32.grad)):
        assert gradient is not None
        flat = tensor.view(-1)
        for i in range(flat.numel()):
            before = flat[i].item()
            flat[i] = before + step
            above = by_hand(image, text, float(scale))
            flat[i] = before - step
            below = by_hand(image, text, float(scale))
            flat[i] = before
            assert gradient.view(-1)[i].item() == pytest.approx((above - below) / (2 * step), abs=2e-5)


def test_it_is_float32_under_autocast():
    image, text = (x.float() for x in features(64, 16, 0))
    plain = contrastive_loss(image, text, torch.tensor(100.0))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(contrastive_loss(image, text, torch.tensor(100.0)), plain)
