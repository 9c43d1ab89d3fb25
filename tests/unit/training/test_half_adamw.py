from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limner.config import OptimConfig
from limner.data.tokenizer import Tokenizer
from limner.model.clip import create
from limner.training import half_adamw as module
from limner.training.half_adamw import HalfAdamW, random_words, stochastic_round
from limner.training.optimizer import halve_weights, make_optimizer

BF16, FP32 = torch.bfloat16, torch.float32


def bits(*values: int) -> Tensor:
    """float32 of these bit patterns."""
    return torch.tensor(values, dtype=torch.int64).to(torch.int32).view(FP32)


def normal(*shape: int, seed: int = 0, std: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * std


def parameter(values: Tensor, gradient: Tensor | None = None) -> nn.Parameter:
    made = nn.Parameter(values)
    if gradient is not None:
        made.grad_dtype = gradient.dtype
        made.grad = gradient
    return made


# --- rounding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1.2345678, -1.2345678, 3.3e-39, -3.3e-39, 0.1, -7e30, 1.9999999])
def test_over_all_noise_the_mean_is_the_value(value: float):
    x = torch.full((65536,), value)
    rounded = stochastic_round(x, torch.arange(65536, dtype=torch.int32)).double()
    assert len(rounded.unique()) == 2
    assert rounded.mean().item() == pytest.approx(x[0].double().item(), rel=1e-14, abs=0)


def test_values_of_bfloat16_infinities_and_nan_stay():
    every = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(BF16)
    for noise in (0, 1, 40000, 65535):
        rounded = stochastic_round(every.float(), torch.full((65536,), noise, dtype=torch.int32))
        finite = ~every.isnan()
        assert torch.equal(rounded.view(torch.int16)[finite], every.view(torch.int16)[finite])
        assert rounded[~finite].isnan().all()


def test_every_kind_of_nan_stays():
    x = bits(0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0xFF800001, 0x7FC00000, 0xFFC00000, 0x7FFF8000)
    for noise in (0, 1, 65535):
        assert stochastic_round(x, torch.full((len(x),), noise, dtype=torch.int32)).isnan().all()
    assert x.view(torch.int32)[0] == 0x7FFFFFFF, "the argument is left as it was"


def test_the_words_are_uniform_and_of_the_step_and_the_seed_alone():
    count = 1_000_000
    words = random_words(5, torch.tensor(3.0), count)
    expected = count / 256
    for byte in (words & 255, words >> 8):
        chi_square = (torch.bincount(byte, minlength=256) - expected).square().sum() / expected
        assert abs(chi_square - 255) < 4 * (2 * 255) ** 0.5
    assert torch.equal(words, random_words(5, torch.tensor(3.0), count))
    centred = (words - 32767.5) / 18918.6
    for others in (random_words(5, torch.tensor(4.0), count), random_words(6, torch.tensor(3.0), count), words.roll(1)):
        correlation = (centred * (others - 32767.5) / 18918.6).mean()
        assert abs(correlation) < 4 / count**0.5


def test_the_words_are_splitmix64s():
    def mix(x: int) -> int:
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = (x ^ x >> shift) * factor % 2**64
        return x ^ x >> 31

    start = mix(2**62 + 7)
    expected = [mix((start + index * 0x9E3779B97F4A7C15) % 2**64) % 65536 for index in range(100)]
    assert random_words(2**62, torch.tensor(7.0), 100).tolist() == expected


def test_noise_is_uniform_and_independent_between_rows_and_packs():
    """Of the variance of sums: with independent pairs it is the sum of variances."""
    size, draws, sums = 3 * module.ROW + 5, 300, []
    for seed in range(draws):
        rounding = module.Rounding(seed, torch.tensor(1.0), size, times=2)
        noise = torch.cat([rounding.noise(size), rounding.noise(size)])
        assert noise.min() >= 0 and noise.max() < 65536
        sums.append(((noise.double() - 32767.5) / 18918.6).sum() / len(noise) ** 0.5)
    squares = torch.stack(sums).square()
    assert abs(torch.stack(sums).mean()) < 4 / draws**0.5
    assert abs(squares.mean() - 1) < 4 * squares.std() / draws**0.5


# --- the step --------------------------------------------------------------------------------------------------------


SHAPES = ((), (3,), (100, 7), (8, 4, 3, 3), (5, 1, 2, 2), (3000,))


def two_of(make: Callable[[], list[nn.Parameter]]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    return make(), make()


def compare_with_torch(ours: list[nn.Parameter], theirs: list[nn.Parameter], **how: Any) -> float:
    """The largest difference of a weight after twenty steps with decay and changing rates."""
    options: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.2}
    half, reference = HalfAdamW(ours, moments=FP32, **options), torch.optim.AdamW(theirs, **options, **how)
    for step in range(20):
        for optimizer in (half, reference):
            optimizer.param_groups[0]["lr"] = 1e-3 * (step + 1)
        for index, (our, their) in enumerate(zip(ours, theirs, strict=True)):
            gradient = normal(*our.shape, seed=100 * step + index)
            our.grad, their.grad = gradient.clone(), gradient.clone()
        half.step()
        reference.step()
    for our, their in zip(ours, theirs, strict=True):
        assert float(half.state[our]["step"]) == float(reference.state[their]["step"]) == 20
    return max((our - their).abs().max().item() for our, their in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("pack", [64, 1000, 2**18])
def test_in_float32_it_is_torchs_adamw(pack: int, monkeypatch: pytest.MonkeyPatch):
    """Measured: the same bits as the fused kernel, 1.2e-7 from the plain loop and foreach; the weights are below 4."""
    monkeypatch.setitem(module.PACK, "cpu", pack)

    def make() -> list[nn.Parameter]:
        return [parameter(normal(*shape, seed=index)) for index, shape in enumerate(SHAPES)]

    for how in ({"fused": True}, {"foreach": True}, {"foreach": False}):
        assert compare_with_torch(*two_of(make), **how) < 5e-7


def test_kernels_keep_their_memory_order_whatever_the_gradients_is():
    def make() -> list[nn.Parameter]:
        shapes = [(8, 4, 3, 3), (8, 4, 1, 1), (8, 1, 3, 3)]
        return [parameter(normal(*shape).to(memory_format=torch.channels_last)) for shape in shapes]

    ours, theirs = two_of(make)
    # beside the plain loop: torch's fused kernel mixes up the elements of tensors that lie in different orders
    assert compare_with_torch(ours, theirs, foreach=False) < 5e-7
    kernel = ours[0]
    assert kernel.grad is not None and kernel.grad.stride() != kernel.stride()
    optimizer = HalfAdamW([kernel], lr=1e-3)
    optimizer.step()
    for name in ("exp_avg", "exp_avg_sq"):
        assert optimizer.state[kernel][name].dtype == BF16
        assert optimizer.state[kernel][name].stride() == kernel.stride()


@pytest.mark.parametrize("weights", [FP32, BF16])
@pytest.mark.parametrize("gradients", [FP32, BF16])
@pytest.mark.parametrize("moments", [FP32, BF16])
def test_every_mix_stays_near_float32(weights: torch.dtype, gradients: torch.dtype, moments: torch.dtype):
    # all weights in one binade, so that their rounding errors have one size
    start, gradient = (1.5 + 0.1 * normal(4096).tanh()).to(BF16), normal(4096, seed=1, std=1e-3).to(BF16)
    exact, mixed = parameter(start.float(), gradient.float()), parameter(start.to(weights), gradient.to(gradients))
    reference, half = (
        torch.optim.AdamW([exact], lr=1e-3),
        HalfAdamW([mixed], lr=1e-3, weight_decay=0.01, moments=moments),
    )
    for _ in range(10):
        reference.step()
        half.step()
    assert mixed.dtype == weights and half.state[mixed]["exp_avg"].dtype == moments
    difference = mixed.detach().double() - exact.detach().double()
    assert difference.abs().max() < (0.06 if weights == BF16 else 1e-3 if moments == BF16 else 1e-6)
    assert abs(difference.mean()) < 4 * difference.std() / 4096**0.5 + 1e-7


def nearest(values: Tensor) -> Tensor:
    return values.to(BF16).float()


@pytest.mark.parametrize(("beta2", "steps"), [pytest.param(0.999, 6000, marks=pytest.mark.slow), (0.98, 1000)])
def test_the_second_moment_is_unbiased(beta2: float, steps: int):
    """Gradients from N(0, 1e-3); rounded to the nearest, 0.999 * v is v again and the moment can but rise."""
    weight, count = parameter(torch.zeros(1024)), 1024
    optimizer = HalfAdamW([weight], lr=0.0, betas=(0.9, beta2))
    generator = torch.Generator().manual_seed(1)
    exact, rounded = torch.zeros(count), torch.zeros(count)
    for _ in range(steps):
        weight.grad = torch.randn(count, generator=generator) * 1e-3
        optimizer.step()
        square = weight.grad.square()
        exact, rounded = exact.lerp(square, 1 - beta2), nearest(rounded.lerp(square, 1 - beta2))
    ours = optimizer.state[weight]["exp_avg_sq"].float()
    assert ours.mean().item() == pytest.approx(exact.mean().item(), rel=0.01)
    if beta2 == 0.999:
        assert rounded.mean() > 1.5 * exact.mean()


def test_weights_move_where_the_nearest_would_stall():
    """A hundred steps of 1e-4 from one, where bfloat16's next value is 0.004 away."""
    count, steps, lr = 10_000, 100, 1e-4
    weight = parameter(torch.ones(count, dtype=BF16), torch.ones(count, dtype=BF16))
    stalled = torch.ones(count)
    optimizer = HalfAdamW([weight], lr=lr, moments=FP32)
    for _ in range(steps):
        optimizer.step()
        stalled = nearest(stalled - lr)
    values = weight.detach().double()
    assert torch.equal(stalled, torch.ones(count))
    assert abs(values.mean() - (1 - steps * lr)) < 4 * values.std() / count**0.5


# --- repeatable ------------------------------------------------------------------------------------------------------


def some_steps(weights: list[nn.Parameter], optimizer: HalfAdamW, steps: range) -> None:
    for step in steps:
        for index, weight in enumerate(weights):
            weight.grad = normal(*weight.shape, seed=100 * step + index).to(weight.dtype)
        optimizer.step()


def made(seed: int = 0) -> tuple[list[nn.Parameter], HalfAdamW]:
    weights = [parameter(normal(300, 5).to(BF16)), parameter(normal(700)), parameter(normal().to(BF16))]
    return weights, HalfAdamW(weights, lr=1e-2, seed=seed)


def same(ours: list[nn.Parameter], theirs: list[nn.Parameter]) -> bool:
    return all(torch.equal(our, their) for our, their in zip(ours, theirs, strict=True))


def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one():
    whole, optimizer = made()
    some_steps(whole, optimizer, range(10))

    first, optimizer = made()
    some_steps(first, optimizer, range(4))
    saved = optimizer.state_dict()
    then, optimizer = made()
    for weight, was in zip(then, first, strict=True):
        weight.data.copy_(was)
    optimizer.load_state_dict(saved)
    some_steps(then, optimizer, range(4, 10))
    assert same(whole, then)


def test_the_seed_is_all_that_the_noise_depends_on():
    (ours, optimizer), (theirs, other), (third, another) = made(), made(), made(seed=1)
    for weights, each in ((ours, optimizer), (theirs, other), (third, another)):
        some_steps(weights, each, range(3))
    assert same(ours, theirs) and not same(ours, third)


@pytest.mark.parametrize("moments", [FP32, BF16])
def test_loaded_moments_keep_their_dtype_and_bits(moments: torch.dtype):
    def make() -> tuple[list[nn.Parameter], HalfAdamW]:
        weights = [parameter(normal(50).to(BF16)), parameter(normal(50))]
        return weights, HalfAdamW(weights, lr=1e-2, moments=moments)

    weights, optimizer = make()
    some_steps(weights, optimizer, range(2))
    others, loaded = make()
    loaded.load_state_dict(optimizer.state_dict())
    for weight, other in zip(weights, others, strict=True):
        assert float(loaded.state[other]["step"]) == 2
        for name in ("exp_avg", "exp_avg_sq"):
            ours, theirs = optimizer.state[weight][name], loaded.state[other][name]
            assert theirs.dtype == moments and torch.equal(ours, theirs) and ours is not theirs


# --- steps that are left out -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["torch", "fp32", "bf16"])
def test_found_inf_leaves_a_step_out(kind: str):
    def fresh() -> tuple[list[nn.Parameter], Any]:
        weights = [parameter(normal(500)), parameter(normal(500).to(BF16 if kind == "bf16" else FP32))]
        if kind == "torch":
            return weights, torch.optim.AdamW(weights, lr=1e-2, fused=True)
        return weights, HalfAdamW(weights, lr=1e-2, moments=BF16 if kind == "bf16" else FP32)

    def step(weights: list[nn.Parameter], optimizer: Any, seed: int, *, finite: bool) -> None:
        for index, weight in enumerate(weights):
            weight.grad = normal(500, seed=10 * seed + index).to(weight.dtype)
        if not finite:
            weights[0].grad = torch.full((500,), float("nan"))
        optimizer.found_inf = torch.tensor(0.0 if finite else 1.0)
        optimizer.grad_scale = None
        optimizer.step()

    (with_faults, optimizer), (without, other) = fresh(), fresh()
    step(with_faults, optimizer, 9, finite=False)
    assert same(with_faults, without), "no weight moves in a first step that is left out"
    for seed in range(3):
        step(with_faults, optimizer, seed, finite=True)
        step(with_faults, optimizer, 9, finite=False)
        step(without, other, seed, finite=True)
    assert same(with_faults, without)
    for ours, theirs in zip(with_faults, without, strict=True):
        for name in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(optimizer.state[ours][name], other.state[theirs][name])


def test_a_fault_that_nobody_found_stays_visible():
    weight = parameter(torch.ones(100, dtype=BF16), bits(0x7FFFFFFF, 0xFFFFFFFF).repeat(50))
    optimizer = HalfAdamW([weight], lr=1e-2)
    optimizer.step()
    assert all(
        tensor.isnan().all() for tensor in (weight, *map(optimizer.state[weight].get, ("exp_avg", "exp_avg_sq")))
    )


def test_parameters_without_a_gradient_are_left_alone():
    frozen, moving = parameter(torch.ones(3)), parameter(torch.ones(3), torch.ones(3))
    optimizer = HalfAdamW([frozen, moving], lr=1e-2)
    assert optimizer.step(lambda: 3.0) == 3.0
    assert torch.equal(frozen, torch.ones(3)) and not torch.equal(moving, torch.ones(3))
    assert frozen not in optimizer.state
    optimizer.zero_grad()
    assert optimizer.step() is None


# --- models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ViT-mini", "RN-nano"])
def test_halved_are_matrices_kernels_and_token_embeddings(name: str, tokenizer: Tokenizer):
    model, whole = create(name, tokenizer=tokenizer), create(name, tokenizer=tokenizer)
    before = dict(model.named_parameters())
    halve_weights(model, ("image", "text"))
    after = dict(model.named_parameters())
    assert all(after[key] is before[key] for key in before)
    for key, exact in whole.named_parameters():
        half = exact.ndim > 1 and key.endswith("weight")
        assert after[key].dtype == (BF16 if half else FP32), key
        assert torch.equal(after[key], exact.to(after[key].dtype)) and after[key].stride() == exact.stride()
    halve_weights(whole, ("text",))
    assert all(weight.dtype == FP32 for weight in whole.image.parameters())


@pytest.mark.parametrize("name", [pytest.param("ViT-mini", marks=pytest.mark.slow), "RN-nano"])
def test_a_halved_model_learns_as_a_whole_one_does(name: str, tokenizer: Tokenizer):
    def losses(config: OptimConfig) -> list[float]:
        model = create(name, tokenizer=tokenizer)
        halve_weights(model, config.bf16_weights)
        optimizer = make_optimizer(model, config)
        size, generator = model.architecture.image_size, torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (8, 3, size, size), dtype=torch.uint8, generator=generator)
        tokens = model.tokenize([f"{index} dogs on a table" for index in range(8)])
        found = []
        for _ in range(12):
            with torch.autocast("cpu", BF16):
                image, text, scale = model(pixels, tokens)
            loss = nn.functional.cross_entropy(scale * image @ text.T, torch.arange(8))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    whole = losses(OptimConfig(lr=1e-3))
    half = losses(OptimConfig(lr=1e-3, moments="bf16", bf16_weights=("image", "text")))
    assert half[0] == pytest.approx(whole[0], abs=0.02)
    assert half[0] - half[-1] > 0.9 * (whole[0] - whole[-1]) > 0.2


def test_of_dtensors_each_rank_updates_its_shard():
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = dist.init_device_mesh("cpu", (1,))
        plain = parameter(normal(12, 5).to(BF16), normal(12, 5, seed=1).to(BF16))
        sharded = parameter(distribute_tensor(plain.detach().clone(), mesh, [Shard(0)]))
        assert plain.grad is not None
        sharded.grad = distribute_tensor(plain.grad, mesh, [Shard(0)])
        optimizer, other = HalfAdamW([plain], lr=1e-2), HalfAdamW([sharded], lr=1e-2)
        for _ in range(3):
            optimizer.step()
            other.step()
        assert isinstance(sharded, DTensor) and torch.equal(sharded.full_tensor(), plain)
        moment = other.state[sharded]["exp_avg_sq"]
        assert isinstance(moment, DTensor) and moment.dtype == BF16 and moment.placements == sharded.placements
        other.load_state_dict(other.state_dict())
        assert isinstance(other.state[sharded]["exp_avg"], DTensor)
    finally:
        dist.destroy_process_group()
