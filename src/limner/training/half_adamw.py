"""AdamW whose moments and weights may be bfloat16, rounded stochastically.

The paper keeps Adam's statistics in half precision, and the text encoder's weights in half precision, rounded
stochastically (section 2.5). A bfloat16 has 8 bits of precision: rounded to the nearest, a change of less than half a
unit in the last place is lost each time, so weights stall and a second moment with beta2 0.999 never falls. Rounded up
or down at random, with the odds that make the mean right, nothing is lost on average.

`HalfAdamW` goes through the parameters in packs of a fixed number of elements: `bfloat16 -> float32 -> torch's own
fused AdamW -> stochastic rounding -> bfloat16`. So the arithmetic is torch's; what is float32 is worked on in place.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import BFloat16, Float32, Int32, Int64
from torch import Tensor

from limner.seeds import seed_for

aten = torch.ops.aten
"""What torch.optim itself is made of: kernels that work on lists of tensors, and have no public names."""


MOMENTS = ("exp_avg", "exp_avg_sq")


PACK = {"cpu": 2**18, "cuda": 2**22}
"""Elements that are worked on at once: on a CPU what stays in its caches, on a GPU what outweighs the launches."""


ROW = 2**15
"""Random words that are drawn for a step, and combined with others for the rest of its elements."""


class HalfAdamW(torch.optim.Optimizer):
    """torch's fused AdamW for parameters, gradients and moments that are float32 or bfloat16, in any mix.

    All arithmetic is float32; what is stored as bfloat16 is rounded stochastically. The state has torch's names:
    "step" float32[] on the parameter's device, "exp_avg" and "exp_avg_sq" of the dtype `moments` in the parameter's
    shape and memory order. The noise is a function of `seed` and the step: runs that are resumed, and ranks that hold
    the same parameters, round alike. Of DTensors each rank updates its shard.
    """

    found_inf: Tensor | None = None
    """float32[]; one: the next steps change nothing, zero or None: they are taken."""

    def __init__(
        self,
        params: Any,
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        moments: torch.dtype = torch.bfloat16,
        seed: int = 0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.moments, self.seed = moments, seed_for("rounding", seed)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step for all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        updated = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not updated:
            return loss
        steps = [self.state_of(parameter)["step"] for parameter in updated]
        aten._foreach_add_(steps, 1)

        device = updated[0].device
        size = min(PACK[device.type], sum(parameter.numel() for parameter in updated))
        work = [(group, pack) for group in self.param_groups for pack in self.packs(group["params"], size)]
        rounding = Rounding(self.seed, steps[0], 3 * size, times=len(work))
        buffer, gradient_buffer = torch.empty(3 * size, device=device), torch.empty(size, device=device)
        for group, pack in work:
            weights, gradients, first, second, pack_steps = map(list, zip(*pack, strict=True))
            kept = Wide([*weights, *first, *second], buffer)
            count = len(pack)
            aten._fused_adamw_(
                kept.tensors[:count],
                Wide(gradients, gradient_buffer).tensors,
                kept.tensors[count : 2 * count],
                kept.tensors[2 * count :],
                [],
                pack_steps,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
                found_inf=self.found_inf,
            )
            kept.store(rounding)  # of a step that is left out these are still bfloat16's own values: they stay
        if self.found_inf is not None:
            aten._foreach_sub_(steps, [self.found_inf] * len(steps))
        return loss

    def state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        """The state of `parameter`, made before its first step."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            # one number saves nothing, and FSDP, which leaves it whole, wants the same on every rank: without noise
            dtype = torch.float32 if parameter.ndim == 0 else self.moments
            state |= {name: torch.zeros_like(parameter, dtype=dtype) for name in MOMENTS}
        return state

    def packs(self, parameters: list[Tensor], size: int) -> Iterator[list[tuple[Tensor, ...]]]:
        """Lists of pieces that have `size` elements together, the last list maybe fewer.

        A piece is a part of a parameter, of its gradient and of its two moments, flat, and its step.
        """
        pack, room = [], size
        for parameter in parameters:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            four = flat(parameter, parameter.grad, *(state[name] for name in MOMENTS))
            start, end = 0, four[0].numel()
            while start < end:
                stop = min(end, start + room)
                pack.append((*(tensor[start:stop] for tensor in four), state["step"]))
                start, room = stop, room - (stop - start)
                if room == 0:
                    yield pack
                    pack, room = [], size
        if pack:
            yield pack

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """torch's, but for the moments, which keep their dtype; torch casts them to the parameters'."""
        super().load_state_dict(state_dict)
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for index, saved in state_dict["state"].items():
            self.state[parameters[index]] |= {
                name: torch.empty_like(parameters[index], dtype=saved[name].dtype).copy_(saved[name])
                for name in MOMENTS
            }


def flat(parameter: Tensor, gradient: Tensor, *moments: Tensor) -> list[Tensor]:
    """All in one dimension, in the parameter's memory order; views, but for a gradient that lies in another order."""
    shards = [getattr(tensor, "_local_tensor", tensor) for tensor in (parameter, gradient, *moments)]
    order = sorted(range(parameter.ndim), key=shards[0].stride, reverse=True)
    weights, gradient, *rest = (shard.permute(order) for shard in shards)
    return [weights.view(-1), gradient.reshape(-1), *(tensor.view(-1) for tensor in rest)]


class Wide:
    """Tensors in float32: those that are, themselves; of those that are bfloat16 copies, side by side in `buffer`."""

    def __init__(self, stored: list[Tensor], buffer: Float32[Tensor, " size"]) -> None:
        self.narrow = [tensor for tensor in stored if tensor.dtype != torch.float32]
        sizes = [tensor.numel() for tensor in self.narrow]
        self.buffer = buffer[: sum(sizes)]
        self.copies = self.buffer.split(sizes)
        copies = iter(self.copies)
        self.tensors = [tensor if tensor.dtype == torch.float32 else next(copies) for tensor in stored]
        if self.narrow:
            aten._foreach_copy_(self.copies, self.narrow)

    def store(self, rounding: "Rounding") -> None:
        """Round the copies, and put them where they are from."""
        if self.narrow:
            cut_(self.buffer, rounding.noise(len(self.buffer)))
            aten._foreach_copy_(self.narrow, self.copies)


def stochastic_round(x: Float32[Tensor, "*shape"], noise: Int32[Tensor, "*shape"]) -> BFloat16[Tensor, "*shape"]:
    """`x` rounded to one of its two neighbours in bfloat16: over uniform `noise` in [0, 65536) its mean is `x`.

    Values that bfloat16 has, infinities and NaN stay (Gupta et al. 2015, arXiv:1502.02551, section 3).
    """
    return cut_(x.clone(), noise).bfloat16()


def cut_(x: Float32[Tensor, "*shape"], noise: Int32[Tensor, "*shape"]) -> Float32[Tensor, "*shape"]:
    """`stochastic_round` in place, the result in float32.

    A bfloat16 is the upper half of a float32. Uniform noise added to the lower half carries into the upper with the
    odds that rounding away from zero should have; then the lower half is cut off.
    """
    # one NaN for all: in others, such as CUDA's 0x7fffffff, the carry would run through to the sign and leave a zero
    x.nan_to_num_(nan=math.nan, posinf=math.inf, neginf=-math.inf)
    x.view(torch.int32).add_(noise).bitwise_and_(-65536)
    return x


class Rounding:
    """The noise of one step for `times` roundings of up to `size` elements: a function of `seed` and `step`.

    One row of noise serves all others, each xor a number of its own. So the noise of each element is uniform and that
    of any two is independent, as the variance of a sum asks, for one pass in the caches instead of a generator's ten.
    """

    def __init__(self, seed: int, step: Float32[Tensor, ""], size: int, *, times: int) -> None:
        rows = -(-size // ROW)
        words = random_words(seed, step, ROW + times * rows)
        self.row, self.others = words[:ROW], words[ROW:, None]
        self.buffer = torch.empty(rows, ROW, dtype=torch.int32, device=step.device)

    def noise(self, count: int) -> Int32[Tensor, " count"]:
        """The next rounding's noise, in [0, 65536); it is overwritten by the one after."""
        rows = -(-count // ROW)
        others, self.others = self.others.tensor_split([rows])
        return torch.bitwise_xor(self.row, others, out=self.buffer[:rows]).view(-1)[:count]


def random_words(seed: int, step: Float32[Tensor, ""], count: int) -> Int32[Tensor, " count"]:
    """Uniform in [0, 65536), on the device of `step`: splitmix64 (Steele, Lea and Flood 2014) of a counter.

    Not torch's generators: to seed one with the step, the host would have to wait for the device to tell it.
    """
    start = mix(step.long() + seed)
    return (mix(start + GAMMA * torch.arange(count, device=step.device)) & 0xFFFF).int()


def mix(x: Int64[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
    """splitmix64's permutation of 64 bits."""
    x = (x ^ shift(x, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ shift(x, 27)) * (0x94D049BB133111EB - 2**64)
    return x ^ shift(x, 31)


def shift(x: Int64[Tensor, "*shape"], bits: int) -> Int64[Tensor, "*shape"]:
    """`x >> bits` with zeros from above, whatever the sign."""
    return (x >> bits) & (2 ** (64 - bits) - 1)


GAMMA = 0x9E3779B97F4A7C15 - 2**64
"""2**64 over the golden ratio, as int64: the distance of splitmix64's counters."""
