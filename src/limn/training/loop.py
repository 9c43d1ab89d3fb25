"""Training: `pairs -> batches -> features -> loss -> weights`, read from top to bottom.

A run can be stopped at any moment (Ctrl-C writes a checkpoint first) and resumed to the bit: batches are functions of
the step, so the step, the weights and AdamW's moments are the whole state.
"""

import json
import math
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from tensorboardX import SummaryWriter
from torch import Tensor

from limn.config import Plan, RunConfig, resolve
from limn.data.loader import Batch, Loader, describe_unreadable
from limn.data.sources import Source, describe, read_pictures, training_pairs
from limn.data.tokenizer import Tokenizer
from limn.errors import ConfigError, StorageError, TrainingError
from limn.files import write_text
from limn.model.clip import CLIP
from limn.model.zoo import architecture, create
from limn.objectives.contrastive import contrastive_loss
from limn.progress import progress, say
from limn.run import RunDirectory, to_json, write_json
from limn.training.allocator import keep_freed_memory
from limn.training.checkpoint import checkpoints, is_readable, load_checkpoint, save_checkpoint
from limn.training.optimizer import make_optimizer
from limn.training.schedule import lr_share

LOG_EVERY = 10
"""Steps between two lines of metrics.jsonl."""


def train(config: RunConfig, *, resume: bool = False) -> Path:
    """Train as `config` says in `config.out` and return that run directory; its model/ is what `limn.load` reads.

    With `resume` the newest checkpoint there is continued. Raises `ConfigError` for a config that cannot work,
    `DataError` for unusable pairs and `TrainingError` when the run cannot go on.
    """
    if config.data is None or config.out is None:
        raise ConfigError(
            "data and out of the run",
            must="be set",
            got=f"data={config.data}, out={config.out}",
            then="Give --data PATH; the command line sets --out to runs/RECIPE.",
        )
    config = with_absolute_paths(config)
    assert config.out is not None
    run = RunDirectory(config.out)
    if run.config.exists() and not resume:
        raise ConfigError(
            f"The run directory {run.path}",
            must="be new",
            got="one that holds a run",
            then=f"Continue it with: limn train --resume {run.path}, or choose another --out.",
        )

    # --- data ---------------------------------------------------------------------------------------------------------
    source = training_pairs(config)
    plan = resolve(config, pairs=len(source))
    architecture(config.model)  # an unknown name is said before anything is written
    if config.test is not None:
        read_pictures(config.test)  # so that a wrong path is not found out after the training
    tokenizer = run_tokenizer(config, run, source, resume=resume)
    say(f"Training on {len(source):,} pairs of {source.path} ({describe(source.skipped)}).")

    # --- model --------------------------------------------------------------------------------------------------------
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype, reason = choose_precision(config.train.precision, device)
    if device.type == "cpu":
        keep_freed_memory()
    model = create(config.model, tokenizer=tokenizer, seed=config.seed).to(device).train()
    optimizer = make_optimizer(model, config.optim)
    first = continue_from(run, model, optimizer, data=source.fingerprint) if resume else 0
    parameters = sum(parameter.numel() for parameter in model.parameters())
    say(f"{config.model}, {parameters / 1e6:.1f} M parameters, {reason}, {plan.steps} steps from step {first}.")

    # --- the run directory --------------------------------------------------------------------------------------------
    write_json(run.config, to_json(config))
    run.describe_environment()
    data = {"path": str(source.path), "fingerprint": source.fingerprint, "pairs": len(source)}
    write_json(run.data, {**data, "skipped": source.skipped})

    # --- steps --------------------------------------------------------------------------------------------------------
    loader = Loader(
        source,
        tokenizer,
        images=config.images,
        image_size=model.architecture.image_size,
        batch_size=config.train.batch_size,
        seed=config.seed,
        cache_mb=config.cache_mb,
    )

    def save(step: int) -> Path:
        return save_checkpoint(run.checkpoints, model, optimizer, step=step, data=source.fingerprint)

    with metrics_log(run, first) as log, stop_at_signals() as asked_to_stop:
        seconds, saved_at = log.seconds, time.monotonic()
        with progress("Training", plan.steps, start=first) as advance:
            start = time.monotonic()
            for step, batch in enumerate(loader.batches(first, plan.steps), start=first):
                metrics = train_step(model, optimizer, batch, step=step, config=config, plan=plan, dtype=dtype)
                seconds += time.monotonic() - start
                start = time.monotonic()
                done, last = step + 1, step + 1 == plan.steps
                pairs = done * config.train.batch_size
                speed = (done - first) * config.train.batch_size / max(1e-9, seconds - log.seconds)
                advance(done, describe_metrics(metrics, speed))
                stopping = asked_to_stop()
                saving = stopping or last or time.monotonic() - saved_at > 60 * config.train.checkpoint_minutes
                if saving or done % LOG_EVERY == 0:
                    so_far = {"step": done, "pairs": pairs, "seconds": seconds, "pairs_per_second": speed}
                    log.write({**so_far, **metrics, "peak_memory_gb": peak_memory_gb()})
                if saving:
                    path = save(done)
                    saved_at = start = time.monotonic()  # time spent writing is not time spent training
                    if stopping and not last:
                        say(f"Stopped after step {done}; saved {path}.\nContinue with: limn train --resume {run.path}")
                        raise KeyboardInterrupt

    # --- the model ----------------------------------------------------------------------------------------------------
    if loader.unreadable:
        say(f"Left out of training: {describe_unreadable(loader.unreadable)}.")
    if tokenizer.cut:
        say(f"Captions longer than the context, cut to {tokenizer.context_length} tokens: {tokenizer.cut:,} times.")
    write_json(
        run.data, {**data, "skipped": source.skipped, "unreadable": loader.unreadable, "captions_cut": tokenizer.cut}
    )
    model.eval().cpu().save(
        run.model,
        trained_on=f"{len(source):,} pairs, data fingerprint {source.fingerprint[:12]}",
        pairs_seen=f"{plan.total_pairs:,}",
        recipe=config.model,
    )
    return run.path


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """`config` as a run keeps it: its paths mean the same wherever the next command is run."""
    paths = {name: getattr(config, name) for name in ("data", "test", "out", "tokenizer")}
    return replace(config, **{name: path.resolve() for name, path in paths.items() if path is not None})


def continue_from(run: RunDirectory, model: CLIP, optimizer: torch.optim.AdamW, *, data: str) -> int:
    """Load the newest whole checkpoint of a run, if there is one; returns the steps already done."""
    for checkpoint in checkpoints(run.checkpoints):
        if is_readable(checkpoint):
            return load_checkpoint(checkpoint, model, optimizer, data=data)
        say(f"{checkpoint} is damaged; the one before it is used.")
    return 0


def run_tokenizer(config: RunConfig, run: RunDirectory, source: Source, *, resume: bool) -> Tokenizer:
    """The run's tokenizer: when resuming the one that is there, else the config's, else one trained on the captions."""
    if resume and run.tokenizer.exists():
        return Tokenizer.load(run.tokenizer)
    if config.tokenizer is not None:
        tokenizer = Tokenizer.load(config.tokenizer)
    else:
        tokenizer = Tokenizer.train(source.captions(), vocab_size=config.vocab_size)
    tokenizer.save(run.tokenizer)
    return tokenizer


def choose_precision(precision: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype that the encoders compute in, and why."""
    if precision == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return (torch.bfloat16, f"bf16 on {device}") if fast else (torch.float32, f"float32 on {device}, no fast bf16")
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[precision], f"{precision} on {device}, as asked"


def train_step(
    model: CLIP,
    optimizer: torch.optim.AdamW,
    batch: Batch,
    *,
    step: int,
    config: RunConfig,
    plan: Plan,
    dtype: torch.dtype,
) -> dict[str, float]:
    """One step: forward, loss, backward, update. Returns what is worth a line in the log.

    Raises `TrainingError`, before the weights are touched, when the loss or a gradient is not finite.
    """
    device = model.log_logit_scale.device
    lr = config.optim.lr * lr_share(step, plan)
    for group in optimizer.param_groups:
        group["lr"] = lr
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        image_features, text_features, logit_scale = model(batch.pixels, batch.tokens)
    loss = contrastive_loss(image_features, text_features, logit_scale)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norms = {tower: gradient_norm(getattr(model, tower)) for tower in ("image", "text")}
    assert model.log_logit_scale.grad is not None
    if not all(map(math.isfinite, (loss.item(), *norms.values(), model.log_logit_scale.grad.item()))):
        raise TrainingError(
            f"The loss and gradients of step {step}",
            must="be finite",
            got=f"loss {loss.item()}, {blame(model, image_features, text_features)}",
            then="Lower --optim.lr, lengthen --optim.warmup-share or use --train.precision fp32; "
            f"the last checkpoint stays, so limn train --resume {config.out} starts from there.",
        )
    optimizer.step()
    model.clip_logit_scale()
    with torch.no_grad():
        nearest = (image_features @ text_features.T).argmax(dim=1)
        accuracy = (nearest == torch.arange(len(nearest), device=device)).float().mean().item()
    return {
        "loss": loss.item(),
        "accuracy": accuracy,
        "grad_norm": math.hypot(*norms.values()),
        "grad_norm_image": norms["image"],
        "grad_norm_text": norms["text"],
        "logit_scale": logit_scale.item(),
        "lr": lr,
        "batch": len(batch.keys),
    }


def gradient_norm(module: torch.nn.Module) -> float:
    """The L2 norm over all gradients of `module`."""
    return torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None]).item()


def blame(model: CLIP, image_features: Tensor, text_features: Tensor) -> str:
    """Where the trouble starts: in a parameter, else in a tower's features, else in a gradient."""

    def place(name: str) -> str:
        tower = name.split(".")[0]
        return f"the {tower} encoder, {name}" if tower in ("image", "text") else f"the logit scale, {name}"

    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            return f"first in the weights of {place(name)}"
    for tower, features in (("image", image_features), ("text", text_features)):
        if not features.isfinite().all():
            return f"first in the features of the {tower} encoder"
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            return f"first in the gradient of {place(name)}"
    return "first in the loss itself"


def describe_metrics(metrics: dict[str, float], speed: float) -> str:
    """The facts beside the progress bar."""
    return (
        f"{speed:,.0f} pairs/s loss {metrics['loss']:.2f} acc {metrics['accuracy']:.0%} |g| {metrics['grad_norm']:.1f}"
    )


class MetricsLog:
    """metrics.jsonl and TensorBoard, side by side. `seconds` is the time trained before this process."""

    def __init__(self, run: RunDirectory, first: int) -> None:
        kept = [line for line in run.read_metrics() if line["step"] <= first]
        write_text(run.metrics, "".join(json.dumps(line) + "\n" for line in kept))
        self.seconds: float = kept[-1]["seconds"] if kept else 0.0
        self._file = run.metrics.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run.tensorboard), purge_step=first + 1 if first else None)

    def write(self, metrics: dict[str, Any]) -> None:
        """One logged step."""
        try:
            self._file.write(json.dumps(metrics) + "\n")
            self._file.flush()
        except OSError as error:
            raise StorageError(
                f"A line of {self._file.name}",
                must="be written",
                got=error.strerror or error,
                then="Make room; the last checkpoint stays, and limn train --resume continues from it.",
            ) from error
        for name, value in metrics.items():
            if name != "step":
                self._board.add_scalar(f"train/{name}", value, metrics["step"])

    def close(self) -> None:
        """Write what is buffered."""
        self._file.close()
        self._board.close()


@contextmanager
def metrics_log(run: RunDirectory, first: int) -> Iterator[MetricsLog]:
    """The log of a run that continues after step `first`; lines of later steps, which are done again, are dropped."""
    log = MetricsLog(run, first)
    try:
        yield log
    finally:
        log.close()


@contextmanager
def stop_at_signals() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C and SIGTERM into a question asked between steps; a second one interrupts at once."""
    asked = threading.Event()

    def ask(_number: int, _frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def peak_memory_gb() -> float:
    """The most memory that this process has held so far, in GB (10**9 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9
