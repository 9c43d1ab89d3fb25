"""AdamW's forms side by side: seconds of a step, bytes of each parameter, bias of the second moment, as JSON.

All step on the parameters of one architecture in this process, with random gradients, in turns, so that a busy machine
slows all alike. Bytes are those of the tensors that are there after a step: in the step weights, gradients and moments,
between steps no gradients. The bias is that of the mean of `exp_avg_sq`, beside the same in float32, of gradients from
N(0, 1e-3); "nearest" is what bfloat16 moments would be without stochastic rounding.

    python benchmarks/optimizer.py [--model ViT-B/32] [--repeats 9] [--bias-steps 10000]
"""

import argparse
import json
import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn

from limner.architecture import ZOO
from limner.config import OptimConfig
from limner.model.clip import CLIP, create
from limner.progress import say
from limner.training.half_adamw import MOMENTS, HalfAdamW
from limner.training.optimizer import halve_weights, make_optimizer
from limner.training.prepare import keep_freed_memory

LR = 1e-6
TORCH: dict[str, dict[str, Any]] = {
    "torch fused": {"fused": True},
    "torch foreach": {"foreach": True},
    "torch plain": {"foreach": False},
}
HALF: dict[str, OptimConfig] = {
    "bf16 moments": OptimConfig(lr=LR, moments="bf16"),
    "bf16 moments, bf16 text weights": OptimConfig(lr=LR, moments="bf16", bf16_weights=("text",)),
    "bf16 moments, bf16 weights": OptimConfig(lr=LR, moments="bf16", bf16_weights=("image", "text")),
}
WARM_UP = 1


def forms(name: str) -> dict[str, tuple[nn.Module, torch.optim.Optimizer]]:
    """Each form with a model whose gradients are set; those with float32 weights share one."""
    model = with_gradients(name, ())
    made: dict[str, tuple[nn.Module, torch.optim.Optimizer]] = {
        key: (model, torch.optim.AdamW(model.parameters(), lr=LR, **how)) for key, how in TORCH.items()
    }
    made["HalfAdamW, all float32"] = model, HalfAdamW(model.parameters(), lr=LR, moments=torch.float32)
    for key, config in HALF.items():
        own = with_gradients(name, config.bf16_weights) if config.bf16_weights else model
        made[f"HalfAdamW, {key}"] = own, make_optimizer(own, config)
    return made


def with_gradients(name: str, halved: tuple[str, ...]) -> CLIP:
    model, generator = create(name), torch.Generator().manual_seed(0)
    halve_weights(model, halved)
    for parameter in model.parameters():
        parameter.grad = 1e-3 * torch.randn(parameter.shape, generator=generator).to(parameter)
    return model


def in_turns(made: dict[str, tuple[nn.Module, torch.optim.Optimizer]], repeats: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {key: [] for key in made}
    for repeat in range(WARM_UP + repeats):
        for key, (_, optimizer) in made.items():
            start = time.perf_counter()
            optimizer.step()
            if repeat >= WARM_UP:
                seconds[key].append(time.perf_counter() - start)
    return seconds


def bytes_per_parameter(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    parameters = list(model.parameters())
    count = sum(parameter.numel() for parameter in parameters)
    weights = sum(parameter.nbytes for parameter in parameters)
    gradients = sum(parameter.grad.nbytes for parameter in parameters if parameter.grad is not None)
    moments = sum(optimizer.state[parameter][name].nbytes for parameter in parameters for name in MOMENTS)
    return {
        "bytes_in_step": round((weights + gradients + moments) / count, 3),
        "bytes_between": round((weights + moments) / count, 3),
    }


def bias(beta2: float, steps: int, *, count: int = 4096) -> dict[str, float]:
    """Of the second moment after `steps`, relative to float32's."""
    weight = nn.Parameter(torch.zeros(count))
    optimizer, generator = HalfAdamW([weight], lr=0.0, betas=(0.9, beta2)), torch.Generator().manual_seed(0)
    exact, nearest = torch.zeros(count), torch.zeros(count)
    for _ in range(steps):
        weight.grad = 1e-3 * torch.randn(count, generator=generator)
        optimizer.step()
        square = weight.grad.square()
        exact = exact.lerp(square, 1 - beta2)
        nearest = nearest.lerp(square, 1 - beta2).bfloat16().float()

    def relative(moment: Tensor) -> float:
        return round((moment.double().mean() / exact.double().mean() - 1).item(), 5)

    return {"beta2": beta2, "nearest": relative(nearest), "stochastic": relative(optimizer.state[weight]["exp_avg_sq"])}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="ViT-B/32", choices=ZOO)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--bias-steps", type=int, default=10_000)
    args = parser.parse_args()

    keep_freed_memory()
    made = forms(args.model)
    rows: list[dict[str, Any]] = []
    for key, seconds in in_turns(made, args.repeats).items():
        times = {"step_s": statistics.median(seconds), "least_s": min(seconds), "most_s": max(seconds)}
        rows.append({"form": key, **times, **bytes_per_parameter(*made[key])})
        say(f"{key}: {times['step_s']:.3f} s")
    result = {
        "model": args.model,
        "parameters": sum(parameter.numel() for parameter in made["torch fused"][0].parameters()),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "steps": rows,
        "second_moment_bias": [bias(beta2, args.bias_steps) for beta2 in (0.98, 0.999)],
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
