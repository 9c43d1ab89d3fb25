"""Memory and time of one training step, whole and in the ways that make it smaller, beside open_clip, as JSON.

`rows`: one step (features, loss, backward, update) of a batch of random pixels and captions, each in a process of its
own: seconds of the last step, and the peak of the process above what it held before the first. open_clip runs its own
model, loss and, where it says so, its gradient checkpointing.

`batch_32768`: `limner train` itself on 32,768 made-up pairs: one step of them all, 64 in memory at a time.

    python benchmarks/step_memory.py [--model ViT-B/32] [--batch 64] [--steps 3]

Needs open_clip_torch beside limner (make peers).
"""

import argparse
import importlib.util
import io
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from limner.architecture import ZOO
from limner.config import OptimConfig
from limner.data.loader import Batch
from limner.data.write import Sample, write_shards
from limner.model.clip import create
from limner.objectives.contrastive import Contrastive
from limner.objectives.objective import Trainee
from limner.progress import say
from limner.run import RunDirectory
from limner.training.optimizer import halve_weights, make_optimizer
from limner.training.prepare import keep_freed_memory
from limner.training.step import backward
from limner.training.world import World
from towers import NAMES, made_up_captions, open_clip

VARIANTS: dict[str, dict[str, Any]] = {
    "whole": {},
    "blocks recomputed": {"recompute": True},
    "in 8 micro-batches": {"pieces": 8},
    "in 8 micro-batches, blocks recomputed": {"pieces": 8, "recompute": True},
    "whole, bf16 moments, bf16 text weights": {"half": True},
    "in 8 micro-batches, blocks recomputed, bf16 moments, bf16 text weights": {
        "pieces": 8,
        "recompute": True,
        "half": True,
    },
}
PAIRS = 32768
WORDS = ["red", "green", "blue", "large", "small", "round", "square", "bright", "dark", "old", "wooden", "metal"]


def memory_gb(what: str) -> float:
    """VmRSS, or VmHWM, its peak, of this process."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(what)) * 1024 / 1e9


def measure(step: Callable[[], Any], steps: int) -> dict[str, float]:
    held, seconds = memory_gb("VmRSS"), 0.0
    for _ in range(steps):
        start = time.perf_counter()
        step()
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_gb": memory_gb("VmHWM") - held}


def made_up(batch: int, size: int) -> tuple[Tensor, Tensor]:
    """Pixels and captions."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (batch, 3, size, size), generator=generator, dtype=torch.uint8)
    return pixels, made_up_captions(batch)


def limner_step(
    name: str, batch: int, steps: int, *, pieces: int = 1, recompute: bool = False, half: bool = False
) -> dict[str, float]:
    keep_freed_memory()
    alone = World(rank=0, size=1, device=torch.device("cpu"), at=lambda _step, _stage: None)
    model = create(name).train()
    model.recompute_blocks(recompute)
    halve_weights(model, ("text",) if half else ())
    trainee = Trainee(model, Contrastive())
    optimizer = make_optimizer(model, OptimConfig(lr=1e-6, moments="bf16" if half else "fp32"))
    pixels, tokens = made_up(batch, ZOO[name].image_size)
    pairs = Batch(pixels, tokens, (), torch.zeros(batch, 2, dtype=torch.int64))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        backward(trainee, pairs, pieces=pieces, dtype=torch.bfloat16, world=alone)
        optimizer.step()

    return measure(step, steps)


def open_clip_step(name: str, batch: int, steps: int, *, recompute: bool = False) -> dict[str, float]:
    model, criterion = open_clip().create_model(NAMES[name]).train(), open_clip().ClipLoss()
    model.set_grad_checkpointing(recompute)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    pixels, tokens = made_up(batch, ZOO[name].image_size)
    pixels = pixels.float() / 255

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            loss = criterion(*model(pixels, tokens))
        loss.backward()
        optimizer.step()

    return measure(step, steps)


def in_its_own_process(work: Callable[..., Any], *args: Any, **settings: Any) -> Any:
    with multiprocessing.get_context("spawn").Pool(1) as process:
        return process.apply(work, args, settings)


def one_step_of_32768(recipe: str, model: str) -> dict[str, Any]:
    """`limner train` on as many pairs as one batch takes."""
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)

        def pair() -> Sample:
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((64, 64)).save(buffer, "JPEG")
            caption = " ".join(rng.choice(WORDS, 6))
            return Sample(image=buffer.getvalue(), extension="jpg", width=64, height=64, captions=(caption,), record={})

        write_shards([pair() for _ in range(PAIRS)], Path(folder) / "pairs", origin={"source": "made up"})
        run = RunDirectory(Path(folder) / "run")
        flags = [
            *("--data", f"{folder}/pairs", "--test", f"{folder}/pairs", "--out", str(run.path), "--model", model),
            *("--train.batch-size", str(PAIRS), "--train.micro-batch", "64", "--train.epochs", "1"),
        ]
        subprocess.run([sys.executable, "-m", "limner", "train", recipe, *flags], check=True)
        (line,) = run.read_metrics()
    return {
        "command": f"limner train {recipe} --model {model} --train.batch-size {PAIRS} --train.micro-batch 64",
        "seconds_of_the_step": line["seconds"],
        "peak_memory_gb": line["peak_memory_gb"],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="ViT-B/32", choices=NAMES)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3)
    args = parser.parse_args()
    if importlib.util.find_spec("open_clip") is None:
        sys.exit("benchmarks/step_memory.py measures beside open_clip: run it in the environment of `make peers`.")
    job = (args.model, args.batch, args.steps)
    rows = {f"limner, {name}": in_its_own_process(limner_step, *job, **settings) for name, settings in VARIANTS.items()}
    for name, settings in {"whole": {}, "gradient checkpointing": {"recompute": True}}.items():
        rows[f"open_clip, {name}"] = in_its_own_process(open_clip_step, *job, **settings)
    for name, row in rows.items():
        say(f"{name}: {row['seconds']:.1f} s, {row['peak_gb']:.2f} GB")
    whole = [one_step_of_32768("demo", "RN-mini"), one_step_of_32768("demo", "ViT-mini")]
    facts = {"model": args.model, "batch": args.batch, "precision": "bf16", "torch": torch.__version__}
    print(json.dumps({**facts, "rows": rows, "batch_32768": whole}, indent=2))


if __name__ == "__main__":
    main()
