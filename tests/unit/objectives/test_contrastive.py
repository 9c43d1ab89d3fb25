import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from limner.objectives.contrastive import contrastive_loss, contrastive_loss_and_accuracy, contrastive_loss_reference

both = pytest.mark.parametrize("loss_of", [contrastive_loss, contrastive_loss_reference])


def features(count: int, dim: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image, text = (
        F.normalize(torch.randn(count, dim, generator=generator, dtype=torch.float64), dim=1) for _ in range(2)
    )
    return image, text


def by_hand(image: torch.Tensor, text: torch.Tensor, scale: float, ids: list[tuple[int, int]] | None = None) -> float:
    """The definition, pair by pair, in float64. Each pair has two ids, of its picture and of its caption."""
    total = 0.0
    ids = ids or [(i, i) for i in range(len(image))]
    for i, (picture, caption) in enumerate(ids):
        row = [math.exp(scale * float(image[i] @ text[j])) for j in range(len(text))]
        column = [math.exp(scale * float(image[j] @ text[i])) for j in range(len(text))]
        right = [j for j, (other, its_caption) in enumerate(ids) if picture == other or caption == its_caption]
        for j in right:
            total -= (math.log(row[j] / sum(row)) + math.log(column[j] / sum(column))) / len(right)
    return total / (2 * len(image))


@given(count=st.integers(2, 9), dim=st.integers(1, 6), scale=st.floats(0, 100), seed=st.integers(0, 1000))
@settings(max_examples=50)
@both
def test_the_definition(loss_of: Callable, count: int, dim: int, scale: float, seed: int):
    image, text = features(count, dim, seed)
    loss = loss_of(image.float(), text.float(), torch.tensor(scale))
    # float32 logits of up to 100 carry errors of 100 * 2**-23
    assert loss.item() == pytest.approx(by_hand(image, text, scale), rel=1e-4, abs=5e-5)


@given(pairs=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=9), seed=st.integers(0, 99))
@settings(max_examples=50)
@both
def test_the_definition_with_positives(loss_of: Callable, pairs: list[tuple[int, int]], seed: int):
    image, text = features(len(pairs), 4, seed)
    loss = loss_of(image, text, torch.tensor(7.0), positives=torch.tensor(pairs))
    assert loss.item() == pytest.approx(by_hand(image, text, 7.0, pairs), rel=1e-12, abs=1e-12)


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


@given(count=st.integers(1, 20), different=st.integers(1, 20), chunk_size=st.integers(1, 25), seed=st.integers(0, 1000))
def test_accuracy(count: int, different: int, chunk_size: int, seed: int):
    image, text = (x.float() for x in features(count, 4, seed))
    positives = torch.randint(different, (count, 2), generator=torch.Generator().manual_seed(seed))
    right = (positives[:, None] == positives).any(2)
    nearest = (image @ text.T).argmax(1)
    for ids, hits in ((None, nearest == torch.arange(count)), (positives, right[torch.arange(count), nearest])):
        loss, accuracy = contrastive_loss_and_accuracy(
            image, text, torch.tensor(5.0), chunk_size=chunk_size, positives=ids
        )
        assert accuracy.item() == pytest.approx(hits.float().mean().item())
        assert torch.equal(loss, contrastive_loss(image, text, torch.tensor(5.0), chunk_size=chunk_size, positives=ids))


def test_features_that_are_all_equal_are_not_accurate():
    same = torch.ones(10, 3)
    assert contrastive_loss_and_accuracy(same, same, torch.tensor(1.0))[1].item() == pytest.approx(0.1)


def test_accuracy_is_not_differentiated():
    image, text = (x.requires_grad_() for x in features(5, 3, 0))
    loss, accuracy = contrastive_loss_and_accuracy(image, text, torch.tensor(1.0))
    assert loss.requires_grad and not accuracy.requires_grad
