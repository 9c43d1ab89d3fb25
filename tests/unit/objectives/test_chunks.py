"""What the chunks promise, for both objectives: the reference's values and gradients, in little memory."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from limner.errors import ConfigError
from limner.objectives.chunks import check_batch
from limner.objectives.contrastive import contrastive_loss, contrastive_loss_reference
from limner.objectives.sigmoid import sigmoid_loss, sigmoid_loss_reference

Loss = Callable[..., Tensor]
OBJECTIVES: dict[str, tuple[Loss, Loss]] = {
    "contrastive": (
        lambda image, text, scale, _, **settings: contrastive_loss(image, text, scale, **settings),
        lambda image, text, scale, _, **settings: contrastive_loss_reference(image, text, scale, **settings),
    ),
    "sigmoid": (sigmoid_loss, sigmoid_loss_reference),
}
both = pytest.mark.parametrize(("loss", "reference"), OBJECTIVES.values(), ids=OBJECTIVES)


def batch(count: int, dim: int, *, scale: float, likeness: float = 0.5, seed: int = 0) -> list[Tensor]:
    """Image features, text features that are somewhat like them, a logit scale and a logit bias, in float64."""
    generator = torch.Generator().manual_seed(seed)
    image, noise = torch.randn(2, count, dim, generator=generator, dtype=torch.float64)
    text = likeness * image + noise
    scalars = [torch.tensor(x, dtype=torch.float64) for x in (scale, -scale / 3)]
    return [F.normalize(image, dim=1), F.normalize(text, dim=1), *scalars]


def ids(count: int, kinds: int, *, different: int, seed: int = 0) -> Tensor:
    """Ids as large as hashes, each of which `count / different` pairs have on average."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(different, (count, kinds), generator=generator) * 0x9E3779B97F4A7C1 - 2**62


def value_and_gradients(loss: Loss, inputs: list[Tensor], **settings: object) -> list[Tensor]:
    """Zeros for the gradients of inputs that play no role."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    value = loss(*inputs, **settings)
    value.backward()
    return [value.detach(), *(torch.zeros_like(x) if x.grad is None else x.grad for x in inputs)]


def assert_same(found: list[Tensor], expected: list[Tensor], *, within: float) -> None:
    """Norms of the differences, relative to the norms."""
    for some, other in zip(found, expected, strict=True):
        assert (some.double() - other.double()).norm() <= within * other.double().norm()


@both
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
@pytest.mark.parametrize(
    ("count", "dim", "chunk_size"), [(1, 1, 1), (2, 3, 1), (7, 640, 3), (64, 16, 64), (65, 16, 64), (50, 8, 1000)]
)
def test_the_reference_in_float64(loss: Loss, reference: Loss, count: int, dim: int, chunk_size: int, scale: float):
    inputs = batch(count, dim, scale=scale, likeness=0.1)
    for positives in (None, ids(count, 2, different=count)):
        found = value_and_gradients(loss, inputs, chunk_size=chunk_size, positives=positives)
        expected = value_and_gradients(reference, inputs, positives=positives)
        for some, other in zip(found, expected, strict=True):
            torch.testing.assert_close(some, other, rtol=1e-11, atol=1e-13)


@both
@settings(max_examples=60)
@given(
    count=st.integers(1, 30),
    kinds=st.integers(1, 3),
    different=st.integers(1, 40),
    chunk_size=st.integers(1, 35),
    seed=st.integers(0, 1000),
)
def test_positives(loss: Loss, reference: Loss, count: int, kinds: int, different: int, chunk_size: int, seed: int):
    inputs = batch(count, 6, scale=10, seed=seed)
    positives = ids(count, kinds, different=different, seed=seed)
    found = value_and_gradients(loss, inputs, chunk_size=chunk_size, positives=positives)
    expected = value_and_gradients(reference, inputs, positives=positives)
    for some, other in zip(found, expected, strict=True):
        torch.testing.assert_close(some, other, rtol=1e-10, atol=1e-12)


@both
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_float32_is_within_a_millionth(loss: Loss, reference: Loss, scale: float):
    inputs = batch(2048, 512, scale=scale, likeness=0.3 if scale < 100 else 0.1)
    found = value_and_gradients(loss, [x.float() for x in inputs])
    assert_same(found, value_and_gradients(reference, [x.float().double() for x in inputs]), within=1e-6)


@both
@pytest.mark.parametrize("positives", [None, ids(40, 2, different=30)], ids=["own", "ids"])
@pytest.mark.parametrize("scale", [100.0, 3000.0, -3000.0])
def test_logits_far_apart(loss: Loss, reference: Loss, positives: Tensor | None, scale: float):
    """One caption and one picture are as far from all others as can be: their exponentials beside the others' largest
    logits would be zero. float32 rounds logits of 3,000 to 1/4,096."""
    image, text, _, bias = batch(40, 4, scale=1.0)
    image[:], text[:] = F.normalize(image + 3 * image[0], dim=1), F.normalize(text + 3 * image[0], dim=1)
    text[5], image[9] = -text[5], -image[9]
    inputs = [image.float(), text.float(), torch.tensor(scale), bias.float()]
    found = value_and_gradients(loss, inputs, chunk_size=16, positives=positives)
    assert all(x.isfinite().all() for x in found)
    assert_same(found, value_and_gradients(reference, [x.double() for x in inputs], positives=positives), within=1e-4)


@both
def test_exponents_that_are_cut_do_not_show(loss: Loss, reference: Loss):
    """Logits of -71 to -120 below the others, where exponentials are cut, in float64."""
    image = torch.eye(30, dtype=torch.float64)
    inputs = [image, image.flip(0), torch.tensor(95.0).double(), torch.tensor(-50.0).double()]
    assert_same(value_and_gradients(loss, inputs), value_and_gradients(reference, inputs), within=1e-14)


@both
def test_half_precision_features_are_computed_in_float32(loss: Loss, reference: Loss):
    image, text, scale, bias = batch(100, 16, scale=50)
    inputs = [image.bfloat16(), text.bfloat16(), scale.float(), bias.float()]
    found = value_and_gradients(loss, inputs, chunk_size=32)
    assert [x.dtype for x in found] == [torch.float32, torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    expected = value_and_gradients(reference, [x.double() for x in inputs])
    assert_same(found[::3], expected[::3], within=1e-5)
    assert_same(found, expected, within=2**-8)


@both
@pytest.mark.parametrize("positives", [None, ids(64, 2, different=50)], ids=["own", "ids"])
def test_autocast_changes_nothing(loss: Loss, reference: Loss, positives: Tensor | None):
    inputs = [x.float() for x in batch(64, 16, scale=100)]
    plain = value_and_gradients(loss, inputs, chunk_size=20, positives=positives)
    of_reference = reference(*inputs, positives=positives)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, value_and_gradients(loss, inputs, chunk_size=20, positives=positives), plain))
        assert torch.equal(reference(*inputs, positives=positives), of_reference)


@both
@pytest.mark.parametrize("positives", [None, ids(7, 2, different=5)], ids=["own", "ids"])
def test_gradcheck(loss: Loss, reference: Loss, positives: Tensor | None):
    inputs = [x.requires_grad_() for x in batch(7, 3, scale=4)]
    assert torch.autograd.gradcheck(lambda *inputs: loss(*inputs, chunk_size=3, positives=positives), inputs)


@both
def test_the_gradient_from_above_scales_everything(loss: Loss, reference: Loss):
    inputs = batch(9, 4, scale=4)
    plain = value_and_gradients(loss, inputs)
    scaled = value_and_gradients(lambda *inputs: 3 * loss(*inputs), inputs)
    assert_same(scaled, [3 * x for x in plain], within=1e-14)


@both
@pytest.mark.parametrize("wanted", range(4))
def test_each_input_alone(loss: Loss, reference: Loss, wanted: int):
    """As with a locked tower or a fixed scale."""
    inputs = batch(9, 4, scale=4)
    everything = value_and_gradients(loss, inputs)[1 + wanted]
    inputs[wanted].requires_grad_()
    value = loss(*inputs, chunk_size=2)
    if value.requires_grad:  # the contrastive loss has no bias
        value.backward()
        gradient = inputs[wanted].grad
        assert gradient is not None
        assert_same([gradient], [everything], within=1e-14)
    assert all(inputs[i].grad is None for i in range(4) if i != wanted)


@both
def test_no_second_derivative(loss: Loss, reference: Loss):
    inputs = [x.requires_grad_() for x in batch(5, 3, scale=4)]
    with pytest.raises(ConfigError, match=r"create_graph .* must be False"):
        torch.autograd.grad(loss(*inputs), inputs[:1], create_graph=True)


@pytest.mark.parametrize(
    ("image", "text", "positives", "chunk_size", "message"),
    [
        ((4, 3), (5, 3), None, 8, r"must have the same shape.* Got \[4, 3\] and \[5, 3\]"),
        ((4, 3), (4, 2), None, 8, r"Got \[4, 3\] and \[4, 2\]"),
        ((4,), (4,), None, 8, r"must have the same shape, \[batch, embed\]"),
        ((4, 3), (4, 3), None, 0, r"chunk_size must be at least 1. Got 0"),
        ((4, 3), (4, 3), (3, 2), 8, r"ids of 4 pairs, \[batch, kinds\]. Got the shape \[3, 2\]"),
        ((4, 3), (4, 3), (4,), 8, r"Got the shape \[4\]"),
        ((4, 3), (4, 3), (4, 0), 8, r"Got the shape \[4, 0\]"),
    ],
)
def test_what_does_not_fit(image: tuple, text: tuple, positives: tuple | None, chunk_size: int, message: str):
    """Asked directly: in the tests, jaxtyping finds shapes before limner does."""
    with pytest.raises(ConfigError, match=message):
        check_batch(
            torch.zeros(image), torch.zeros(text), None if positives is None else torch.zeros(positives), chunk_size
        )


@both
def test_an_empty_batch_and_an_empty_chunk(loss: Loss, reference: Loss):
    one = torch.tensor(1.0)
    with pytest.raises(ConfigError, match="The batch must hold a pair"):
        loss(torch.zeros(0, 3), torch.zeros(0, 3), one, one)
    with pytest.raises(ConfigError, match="chunk_size must be at least 1"):
        loss(torch.zeros(2, 3), torch.zeros(2, 3), one, one, chunk_size=0)


PEAK = """
import sys, torch
from pathlib import Path
from limner.objectives.contrastive import contrastive_loss
from limner.objectives.sigmoid import sigmoid_loss

def memory(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024

def step(loss, count):
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(count, 32, generator=generator).div_(6).requires_grad_() for _ in range(2))
    positives = torch.randint(count, (count, 2), generator=generator)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory("VmRSS")
    loss(image, text, chunk_size=256, positives=positives).backward()
    return memory("VmHWM") - before

scale, bias = torch.tensor(10.0, requires_grad=True), torch.tensor(-10.0, requires_grad=True)
contrastive = lambda image, text, **settings: contrastive_loss(image, text, scale, **settings)
sigmoid = lambda image, text, **settings: sigmoid_loss(image, text, scale, bias, **settings)
step(contrastive, 300), step(sigmoid, 300)  # what is set up once
print(step(contrastive, 8192), step(sigmoid, 8192))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks of memory are read from Linux")
def test_memory():
    """All logits would take 256 MB a copy; two chunks of logits take 16 MB, the gradients 2 MB.

    Beside that are the pages that come in with the first call, 52 MB in all once on a machine with other work.
    """
    command = [sys.executable, "-c", PEAK]
    peaks = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert all(float(megabytes) < 96 for megabytes in peaks), peaks
