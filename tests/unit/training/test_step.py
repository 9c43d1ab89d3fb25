"""Gradient caching is exact: micro-batches give the gradient of the whole batch."""

import copy
import dataclasses
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from helpers.training import ALONE, RESNET, VIT, batch_of, difference
from limner.data.loader import Batch
from limner.model.clip import CLIP, create
from limner.objectives.contrastive import Contrastive, contrastive_loss_and_accuracy
from limner.objectives.objective import Trainee
from limner.objectives.ranks import Ranks
from limner.training import step as step_module
from limner.training.optimizer import halve_weights
from limner.training.step import Outcome, backward
from limner.training.watch import STAGES


def gradients(
    model: CLIP, batch: Batch, pieces: int, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Tensor], Outcome]:
    model.zero_grad()
    outcome = backward(Trainee(model, Contrastive()), batch, pieces=pieces, dtype=dtype, world=ALONE)
    outcome.statistics.advance(ALONE, torch.tensor(0.0))
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, outcome


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # measured: 2e-16, 3e-7, 8e-3; bfloat16 differs because captions run in other groups
    [(torch.float64, 1e-13), (torch.float32, 3e-6), (torch.bfloat16, 3e-2)],
)
def test_micro_batches_give_the_gradient_of_the_whole_batch(dtype: torch.dtype, tolerance: float, recompute: bool):
    model = create(VIT).train()
    model.recompute_blocks(recompute)
    if dtype == torch.float64:
        model.double()
    batch = batch_of(50, 24)
    autocast = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    whole, outcome = gradients(model, batch, 1, autocast)
    for pieces in (2, 7, 50):
        cached, again = gradients(model, batch, pieces, autocast)
        assert difference(whole, cached) < tolerance
        assert again.loss.item() == pytest.approx(outcome.loss.item(), rel=tolerance)
        assert again.metrics["accuracy"].item() == pytest.approx(outcome.metrics["accuracy"].item(), abs=0.05)


@given(number=st.integers(2, 20), pieces=st.integers(1, 25), seed=st.integers(0, 100))
@settings(max_examples=15)
def test_any_number_of_micro_batches(number: int, pieces: int, seed: int):
    model, batch = create(VIT).train().double(), batch_of(number, 24, seed)
    assert difference(gradients(model, batch, 1)[0], gradients(model, batch, pieces)[0]) < 1e-12


def test_random_draws_are_replayed():
    """With dropout in both encoders: the same draws in both passes, and the gradient of the graph that they make."""
    model = create(VIT).train().double()
    for tower in (model.image, model.text):
        tower.blocks.insert(1, nn.Dropout(0.5).train())  # type: ignore[union-attr]
    batch = batch_of(30, 24)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        cached, _ = gradients(model, batch, 3)
        after = torch.get_rng_state()
        torch.manual_seed(1)
        model.zero_grad()
        parts = [
            model(pixels, tokens)[:2]
            for pixels, tokens in zip(batch.pixels.tensor_split(3), batch.tokens.tensor_split(3), strict=True)
        ]
        image, text = (torch.cat(part) for part in zip(*parts, strict=True))
        contrastive_loss_and_accuracy(image, text, model.logit_scale)[0].backward()
        assert torch.equal(torch.get_rng_state(), after), "the replay must not advance the generator"
    whole = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert difference(whole, cached) < 1e-13


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("pieces", [1, 3])
def test_batch_norm(pieces: int, recompute: bool):
    """Each micro-batch is normalised on its own, in both passes; the running statistics advance once, by the mean."""
    model = create(RESNET).train().double()
    model.recompute_blocks(recompute)
    reference, batch = copy.deepcopy(model), batch_of(30, 32)
    reference.recompute_blocks(False)
    cached, _ = gradients(model, batch, pieces)

    before = {name: buffer.clone() for name, buffer in reference.named_buffers()}
    sums = {name: torch.zeros_like(buffer) for name, buffer in before.items()}
    parts = []
    for pixels, tokens in zip(batch.pixels.tensor_split(pieces), batch.tokens.tensor_split(pieces), strict=True):
        parts.append(reference(pixels, tokens)[:2])
        for name, buffer in reference.named_buffers():
            sums[name] += buffer
            buffer.data = before[name].clone()
    image, text = (torch.cat(part) for part in zip(*parts, strict=True))
    contrastive_loss_and_accuracy(image, text, reference.logit_scale)[0].backward()
    whole = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
    assert difference(whole, cached) < 1e-12
    for name, buffer in model.named_buffers():
        if "running" in name:
            assert torch.allclose(buffer, sums[name] / pieces, rtol=1e-12), name
        elif "tracked" in name:
            assert buffer == 1, name


def test_gradients_of_bfloat16_weights_are_summed_in_float32():
    model, batch = create(VIT).train(), batch_of(40, 24)
    halve_weights(model, ("text",))
    whole, _ = gradients(model, batch, 1, torch.bfloat16)
    cached, _ = gradients(model, batch, 20, torch.bfloat16)
    half = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.bfloat16}
    assert half and all(cached[name].dtype == torch.float32 for name in half)
    assert difference(whole, cached) < 3e-2


def test_features_are_the_same_bits_with_and_without_a_graph():
    """The cached features are those that the second pass differentiates."""
    for name in ("ViT-mini", "RN-mini"):
        model = create(name).train()
        size = model.architecture.image_size
        pixels, tokens = batch_of(8, size).pixels, batch_of(8, size).tokens
        tokens[tokens == 99] = model.architecture.text.vocab_size - 1
        forward = partial(model, pixels, tokens)
        for dtype in (torch.float32, torch.bfloat16):
            with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
                with torch.no_grad():
                    without = forward()
                assert all(torch.equal(a, b) for a, b in zip(without, forward(), strict=True))


@pytest.mark.parametrize("pieces", [1, 3])
def test_ranks_meet_at_the_loss_and_no_stage_comes_again(monkeypatch: pytest.MonkeyPatch, pieces: int):
    """The watch finds out by stages who is missing: a rank that waits for others must say that it is at the loss."""
    stages: list[str] = []

    class Meeting(Ranks):
        def __init__(self, *args: Any) -> None:
            stages.append("meeting")
            super().__init__(*args)

    monkeypatch.setattr(step_module, "Ranks", Meeting)
    world = dataclasses.replace(ALONE, at=lambda _step, stage: stages.append(stage))
    backward(
        Trainee(create(VIT).train(), Contrastive()),
        batch_of(9, 24),
        pieces=pieces,
        dtype=torch.float32,
        world=world,
    )
    assert list(dict.fromkeys(stages)) == ["encoding", "loss", "meeting", "backward"]
    order = [STAGES.index(stage) for stage in stages if stage != "meeting"]
    assert order == sorted(order)
