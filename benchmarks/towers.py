"""limner's encoders beside open_clip's on the same machine, in the same run, as JSON.

Both sides have random weights of the same architecture and get the same pixels and token ids. Each runs in a process
of its own, as its users run it (training: limner with the allocator setting and the fused AdamW of `limner train`,
open_clip with the AdamW of its training script; encoding: both as they are), and the two take turns, so that a busy
machine slows both alike. The speed-up is the ratio of the medians. Captions have lengths as in web text, log-normal,
18 tokens on average; open_clip runs its own code path: 77 tokens, its own loss.

    python benchmarks/towers.py [--models ViT-B/32 RN50] [--precision fp32 bf16] [--batch 32] [--repeats 5]

Needs open_clip_torch beside limner (make peers).
"""

import argparse
import importlib
import importlib.util
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from limner.architecture import ZOO
from limner.config import OptimConfig
from limner.model.clip import create
from limner.objectives.contrastive import contrastive_loss
from limner.progress import say
from limner.training.optimizer import make_optimizer
from limner.training.prepare import keep_freed_memory

NAMES = {"ViT-B/32": "ViT-B-32-quickgelu", "RN50": "RN50-quickgelu", "ViT-B/16": "ViT-B-16-quickgelu"}
PROMPTS_AT_ONCE = 256
WARM_UP = 3
"""Training steps until the allocator has what it needs."""


def made_up_captions(number: int, *, mean: float = 2.6, spread: float = 0.65) -> Tensor:
    """Token ids: start, words, end, zeros."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.empty(number).log_normal_(mean, spread, generator=generator).round().clamp(1, 75).long() + 2
    tokens = torch.randint(1, 49406, (number, 77), generator=generator)
    places = torch.arange(77)
    tokens[:, 0] = 49406
    tokens[places == lengths[:, None] - 1] = 49407
    return tokens.masked_fill(places >= lengths[:, None], 0)


def imagenet_prompts(number: int) -> Tensor:
    """Token ids of `number` of the 1,000 names x 80 templates, evenly spaced."""
    peer = open_clip()
    prompts = [template(name) for name in peer.IMAGENET_CLASSNAMES for template in peer.OPENAI_IMAGENET_TEMPLATES]
    return peer.get_tokenizer("ViT-B-32")(prompts[:: len(prompts) // number][:number])


def open_clip() -> Any:
    """The peer, which is not installed where limner is developed."""
    return importlib.import_module("open_clip")


def serve(side: str, training: bool, name: str, precision: str, batch: int, prompts: int, pipe: Connection) -> None:
    """One side in its own process: runs what it is asked to, answers with the seconds."""
    if side == "limner" and training:
        keep_freed_memory()
    work = (limner_work if side == "limner" else open_clip_work)(name, precision, batch, prompts)
    pipe.send("ready")
    while (task := pipe.recv()) != "end":
        start = time.perf_counter()
        work[task]()
        pipe.send(time.perf_counter() - start)


def limner_work(name: str, precision: str, batch: int, prompts: int) -> dict[str, Callable[[], Any]]:
    model = create(name)
    optimizer = make_optimizer(model, OptimConfig(lr=1e-6))

    def loss(pixels: Tensor, tokens: Tensor) -> Tensor:
        with autocast(precision):
            image, text, scale = model(pixels, tokens)
        return contrastive_loss(image, text, scale)

    return tasks(model, optimizer, loss, precision, ZOO[name].image_size, batch, prompts)


def open_clip_work(name: str, precision: str, batch: int, prompts: int) -> dict[str, Callable[[], Any]]:
    model = open_clip().create_model(NAMES[name])
    criterion = open_clip().ClipLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def loss(pixels: Tensor, tokens: Tensor) -> Tensor:
        with autocast(precision):
            return criterion(*model(pixels, tokens))

    return tasks(model, optimizer, loss, precision, ZOO[name].image_size, batch, prompts)


def tasks(
    model: Any,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Tensor, Tensor], Tensor],
    precision: str,
    size: int,
    batch: int,
    prompts: int,
) -> dict[str, Callable[[], Any]]:
    pixels = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    tokens = made_up_captions(batch)
    sentences = imagenet_prompts(prompts)

    def train() -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        loss(pixels, tokens).backward()
        optimizer.step()

    def encode_image() -> None:
        model.eval()
        with torch.inference_mode(), autocast(precision):
            model.encode_image(pixels)

    def encode_text() -> None:
        model.eval()
        with torch.inference_mode(), autocast(precision):
            for part in sentences.split(PROMPTS_AT_ONCE):
                model.encode_text(part)

    return {"training step": train, "encode_image": encode_image, "encode_text": encode_text}


def autocast(precision: str) -> Any:
    return torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()


def in_turns(task: str, pipes: dict[str, Connection], repeats: int, warm_up: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {side: [] for side in pipes}
    for repeat in range(warm_up + repeats):
        for side, pipe in pipes.items():
            pipe.send(task)
            took = pipe.recv()
            if repeat >= warm_up:
                seconds[side].append(took)
    medians = {f"{side}_s": statistics.median(took) for side, took in seconds.items()}
    ratios = sorted(theirs / ours for ours, theirs in zip(seconds["limner"], seconds["open_clip"], strict=True))
    speedup = medians["open_clip_s"] / medians["limner_s"]
    return medians | {"speedup": speedup, "least": ratios[0], "most": ratios[-1]}


def measure(name: str, precision: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    tokens, sentences = made_up_captions(args.batch), imagenet_prompts(args.prompts)
    facts = {
        "training step": {"pairs": args.batch, "mean_tokens": (tokens.argmax(1) + 1).float().mean().item()},
        "encode_image": {"pictures": args.batch},
        "encode_text": {"prompts": args.prompts, "mean_tokens": (sentences.argmax(1) + 1).float().mean().item()},
    }
    rows = []
    for training in (True, False):
        with two_sides(training, name, precision, args.batch, args.prompts) as pipes:
            for task in [task for task in facts if (task == "training step") == training]:
                long = task == "encode_text" and args.prompts > 5000  # open_clip takes a quarter of an hour
                warm_up = WARM_UP if training else 1 - long
                times = in_turns(task, pipes, 1 if long else args.repeats, warm_up)
                rows.append({"model": name, "precision": precision, "what": task, **facts[task], **times})
                say(f"{name} {precision} {task}: {times['speedup']:.2f}x")
    return rows


@contextmanager
def two_sides(training: bool, *job: Any) -> Iterator[dict[str, Connection]]:
    """Both sides in their processes, ready, for as long as the block runs."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    processes = []
    for side in ("limner", "open_clip"):
        pipes[side], end = context.Pipe()
        processes.append(context.Process(target=serve, args=(side, training, *job, end)))
        processes[-1].start()
        end.close()  # so that a side that fails ends the wait
    for pipe in pipes.values():
        pipe.recv()
    yield pipes
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send("end")
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", default=["ViT-B/32", "RN50"], choices=NAMES)
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=1000)
    args = parser.parse_args()
    if importlib.util.find_spec("open_clip") is None:
        sys.exit("benchmarks/towers.py measures beside open_clip: run it in the environment that `make peers` makes.")
    rows = [row for name in args.models for precision in args.precision for row in measure(name, precision, args)]
    machine = {"threads": torch.get_num_threads(), "torch": torch.__version__, "open_clip": open_clip().__version__}
    print(json.dumps(machine | {"rows": rows}, indent=2))


if __name__ == "__main__":
    main()
