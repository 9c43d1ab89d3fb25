"""Contrastive and sigmoid loss beside their plain references, open_clip's and torch's chunked cross-entropy, as JSON.

Seconds are medians of forward and backward together; the sides take turns in one process. Peaks are what a process of
its own takes above its inputs, gradients included. Errors are norms of differences from the float64 reference relative
to its norms. Features have a width of 512; a caption's is as similar to its picture's (0.3) as in a trained CLIP.

    python benchmarks/loss.py [--pairs 2048 8192] [--most 32768] [--repeats 5] [--chunk-size 1024]

Needs open_clip_torch beside limner (make peers).
"""

import argparse
import importlib
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from limner.objectives.chunks import CHUNK_SIZE
from limner.objectives.contrastive import contrastive_loss, contrastive_loss_reference
from limner.objectives.sigmoid import sigmoid_loss, sigmoid_loss_reference
from limner.progress import say

WIDTH = 512
Loss = Callable[..., Tensor]


def open_clip() -> Any:
    """The peer, which is not installed where limner is developed."""
    return importlib.import_module("open_clip")


def torch_chunked(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """torch's cross-entropy that never holds all logits, once each way."""
    own, options = torch.arange(len(image)), torch.nn.LinearCrossEntropyOptions()
    of_pictures = F.linear_cross_entropy(scale * image, text, own, options=options)
    of_captions = F.linear_cross_entropy(scale * text, image, own, options=options)
    return (of_pictures + of_captions) / 2


def sides(objective: str, chunk_size: int) -> dict[str, Loss]:
    if objective == "sigmoid":
        return {
            "limner": partial(sigmoid_loss, chunk_size=chunk_size),
            "reference": sigmoid_loss_reference,
            "open_clip": open_clip().loss.SigLipLoss(),
        }
    return {
        "limner": partial(contrastive_loss, chunk_size=chunk_size),
        "reference": contrastive_loss_reference,
        "open_clip": open_clip().ClipLoss(),
        "linear_cross_entropy": torch_chunked,
    }


def inputs(objective: str, pairs: int) -> list[Tensor]:
    """Features, logit scale and, for the sigmoid loss, its bias: as trained, and as SigLIP begins."""
    generator = torch.Generator().manual_seed(0)
    image, noise = torch.randn(2, pairs, WIDTH, generator=generator)
    text = 0.315 * image + noise
    scalars = [100.0] if objective == "contrastive" else [10.0, -10.0]
    return [F.normalize(image, dim=1), F.normalize(text, dim=1), *map(torch.tensor, scalars)]


def step(loss: Loss, leaves: list[Tensor]) -> list[Tensor]:
    """Forward and backward: the loss, then the gradients."""
    leaves = [x.detach().requires_grad_() for x in leaves]
    value = loss(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def seconds(loss: Loss, leaves: list[Tensor]) -> float:
    start = time.perf_counter()
    step(loss, leaves)
    return time.perf_counter() - start


def in_turns(objective: str, pairs: int, args: argparse.Namespace) -> dict[str, float]:
    losses, leaves = sides(objective, args.chunk_size), inputs(objective, pairs)
    times: dict[str, list[float]] = {side: [] for side in losses}
    for repeat in range(1 + args.repeats):  # the first warms up
        for side, loss in losses.items():
            took = seconds(loss, leaves)
            if repeat:
                times[side].append(took)
    return {side: statistics.median(took) for side, took in times.items()}


def alone(objective: str, side: str, pairs: int, chunk_size: int) -> tuple[float, float]:
    """Seconds and the peak above the inputs in GB, where nothing else has run. Linux keeps the peak."""
    loss, leaves = sides(objective, chunk_size)[side], inputs(objective, pairs)
    step(loss, inputs(objective, 64))  # what is set up once
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory_gb("VmRSS")
    took = seconds(loss, leaves)
    return took, memory_gb("VmHWM") - before


def memory_gb(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name)) / 1e9


def in_its_own_process(*job: Any) -> tuple[float, float]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(alone, *job).result()


def measure(objective: str, pairs: int, args: argparse.Namespace) -> dict[str, Any]:
    times = in_turns(objective, pairs, args)
    peaks = {side: in_its_own_process(objective, side, pairs, args.chunk_size)[1] for side in times}
    say(f"{objective} {pairs}: " + ", ".join(f"{side} {times[side]:.2f} s {peaks[side]:.2f} GB" for side in times))
    return {"objective": objective, "pairs": pairs, "seconds": times, "peak_gb": peaks}


def errors(objective: str, pairs: int, args: argparse.Namespace) -> dict[str, Any]:
    """Of limner and of the float32 reference."""
    losses, leaves = sides(objective, args.chunk_size), inputs(objective, pairs)
    leaves[2] = torch.tensor(1 / 0.07)  # a loss of about 4: at 100 these pairs are all found, and nothing is left
    exact = step(losses["reference"], [x.double() for x in leaves])
    names = ["loss", "image_features", "text_features", "logit_scale", "logit_bias"][: len(exact)]
    row: dict[str, Any] = {"objective": objective, "pairs": pairs, "logit_scale": leaves[2].item()}
    for side in ("limner", "reference"):
        found = step(losses[side], leaves)
        differences = [((x - y).norm() / y.norm()).item() for x, y in zip(found, exact, strict=True)]
        row[side] = dict(zip(names, differences, strict=True))
    return row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--most", type=int, default=32768, help="pairs that limner takes alone")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--chunk-size", type=int, default=CHUNK_SIZE)
    args = parser.parse_args()
    if importlib.util.find_spec("open_clip") is None:
        sys.exit("benchmarks/loss.py measures beside open_clip: run it in the environment that `make peers` makes.")
    rows = [measure("contrastive", pairs, args) for pairs in args.pairs]
    rows.append(measure("sigmoid", max(args.pairs), args))
    for objective in ("contrastive", "sigmoid"):
        took, peak = in_its_own_process(objective, "limner", args.most, args.chunk_size)
        rows.append(
            {"objective": objective, "pairs": args.most, "seconds": {"limner": took}, "peak_gb": {"limner": peak}}
        )
        say(f"{objective} {args.most}: limner {took:.2f} s {peak:.2f} GB")
    wrong = [errors(objective, 4096, args) for objective in ("contrastive", "sigmoid")]
    machine = {"threads": torch.get_num_threads(), "torch": torch.__version__, "open_clip": open_clip().__version__}
    settings = {"width": WIDTH, "chunk_size": args.chunk_size}
    print(json.dumps(machine | settings | {"rows": rows, "errors": wrong}, indent=2))


if __name__ == "__main__":
    main()
