"""Training: `pairs -> batches -> features -> loss -> weights`, read from top to bottom.

A run can be stopped at any moment (Ctrl-C writes a checkpoint first) and resumed to the bit: batches are functions of
the step, so the step, the weights and AdamW's moments are the whole state. Started by torchrun, the same program runs
on every rank (training/distributed.py).
"""

import json
import resource
import shlex
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from tensorboardX import SummaryWriter
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from limner.config import Plan, RunConfig, resolve
from limner.data.loader import PATIENCE_SECONDS, Batch, Loader, order_of
from limner.data.order import quality
from limner.data.pairs import Source, describe
from limner.data.sources import absolute as absolute_data
from limner.data.sources import read_pictures, training_pairs, write_manifest
from limner.data.tokenizer import Tokenizer
from limner.errors import ConfigError, DataError, StorageError, TrainingError
from limner.files import write_text
from limner.model.clip import CLIP
from limner.model.store import filled, load
from limner.model.zoo import architecture, create
from limner.objectives.contrastive import contrastive_loss_and_accuracy
from limner.progress import progress, silent
from limner.run import RunDirectory, read_json, to_json, write_json
from limner.training.allocator import keep_freed_memory
from limner.training.average import Average
from limner.training.checkpoint import Progress, State, checkpoints, is_readable, load_checkpoint, save_checkpoint
from limner.training.distributed import Stopped, World, check_share, is_restart, parallelise, world
from limner.training.guard import Guard, Trouble, clip_gradients
from limner.training.optimizer import halve_weights, make_optimizer
from limner.training.schedule import lr_share
from limner.training.step import backward

LOG_EVERY = 10
"""Steps between two lines of metrics.jsonl."""
TROUBLES = 20
"""A run gives up after so many steps in a row that were not finite, or as many ways back to the same checkpoint."""


def train(config: RunConfig, *, resume: bool = False, other_data: bool = False) -> Path:
    """Train as `config` says in `config.out` and return that run directory; its model/ is what `limner.load` reads.

    With `resume` the newest checkpoint there is continued; not on other data than it was trained on, unless
    `other_data` says that this is meant. Under torchrun every rank calls this; the run directory is
    on a disk that all of them see, and a job that torchrun restarts continues by itself. Raises `ConfigError` for a
    config that cannot work, `DataError` for unusable pairs and `TrainingError` when the run cannot go on.
    """
    if config.data is None or config.out is None:
        raise ConfigError(
            "data and out of the run",
            must="be set",
            got=f"data={config.data}, out={config.out}",
            then="Give --data PATH; the command line sets --out to runs/RECIPE.",
        )
    config = settled(config)
    assert config.out is not None
    run = RunDirectory(config.out)
    with world(config.train.patience_seconds) as ranks:
        # a job that torchrun starts again finds its own run, not somebody else's
        resume = resume or (is_restart() and run.config.exists() and run.read_config() == config)
        if run.config.exists() and not resume:
            raise ConfigError(
                f"The run directory {run.path}",
                must="be new",
                got="one that holds a run",
                then=f"Continue it with: limner train --resume {run.path}, or choose another --out.",
            )
        train_on(ranks, config, run, resume=resume, other_data=other_data)
    return run.path


def train_on(world: World, config: RunConfig, run: RunDirectory, *, resume: bool, other_data: bool) -> None:
    """`train` on this rank."""
    # --- data ---------------------------------------------------------------------------------------------------------
    source, facts = pairs_of(config, world)
    plan = resolve(config, pairs=facts["order"]["pairs"])
    share = check_share(config.train.batch_size, world)
    shape = architecture(config.model)
    dtype, reason = choose_precision(config, world.device)
    if config.test is not None:
        read_pictures(config.test)  # so that a wrong path is not found out after the training
    started = resume and bool(checkpoints(run.checkpoints))
    base = None if config.init is None or started else starting_model(config)
    tokenizer = run_tokenizer(config, run, source, base, world, resume=resume)

    # --- model --------------------------------------------------------------------------------------------------------
    if world.device.type == "cpu":
        keep_freed_memory()
    model = create(config.model, tokenizer=tokenizer, seed=config.seed) if base is None else base
    model = model.to(world.device).train()
    model.recompute_blocks(config.train.recompute_blocks)
    halve_weights(model, config.optim.bf16_weights)
    replica = parallelise(model, config.train.parallel, world)
    optimizer = make_optimizer(model, config.optim, seed=config.seed)
    average = None if config.optim.ema_decay is None else Average(model, config.optim.ema_decay)
    state = State(model, optimizer, average)
    expected = None if other_data else source.fingerprint
    saved = continue_from(run, state, world, data=expected) if resume else None
    at = replace(saved or Progress(step=0, left_out=0, data="", dropped={}), data=source.fingerprint)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    ranks = f"{world.size} ranks of {share} pairs, " if world.size > 1 else ""
    world.say(
        f"{config.model}, {parameters / 1e6:.1f} M parameters, {reason}, {ranks}{plan.steps} steps from step {at.step}."
    )

    # --- the run directory --------------------------------------------------------------------------------------------
    before: dict[str, Any] = read_json(run.data) if saved is not None and run.data.exists() else {}
    if world.rank == 0:
        write_json(run.config, to_json(config))
        run.describe_environment()
        told = {name: before[name] for name in ("unreadable", "captions_cut") if name in before}
        write_json(run.data, {**facts, "dropped": at.dropped, **told})
        write_manifest(run.manifest, source)
    world.barrier()

    # --- steps --------------------------------------------------------------------------------------------------------
    loader = Loader(
        source,
        tokenizer,
        images=config.images,
        image_size=shape.image_size,
        batch_size=config.train.batch_size,
        seed=config.seed,
        cache_mb=config.cache_mb,
        rank=world.rank,
        ranks=world.size,
        workers=config.workers,
        # before the watch over ranks ends the job, for this message says more
        patience_seconds=min(PATIENCE_SECONDS, 0.75 * config.train.patience_seconds if world.size > 1 else 1e9),
    )
    pieces = -(-share // (config.train.micro_batch or share))  # rounded up
    guard, troubles = Guard(model, world), 0

    def save() -> Path:
        world.at(at.step, "saving")
        return save_checkpoint(run.checkpoints, state, at, world)

    def batches() -> Iterator[Batch]:
        return loader.batches(at.step + at.left_out, plan.steps + at.left_out)

    with metrics_log(run, at.step, world) as log, closing(loader), stop_at_signals() as asked_to_stop:
        if config.train.non_finite == "rewind" and saved is None:
            save()  # something to go back to
        first, seconds, saved_at, coming = at.step, log.seconds, time.monotonic(), batches()
        waited, dropped = 0.0, Counter[str]()  # seconds, for batches; this rank's pairs since the last line of the log
        fault: DataError | None = None
        with progress("Training", plan.steps, start=at.step) if world.rank == 0 else silent() as advance:
            start = time.monotonic()
            while at.step < plan.steps:
                world.at(at.step, "reading pairs")
                asked = time.monotonic()
                batch = next(coming)
                waited += time.monotonic() - asked
                dropped += batch.dropped
                metrics = train_step(
                    replica,
                    optimizer,
                    guard,
                    batch,
                    step=at.step,
                    config=config,
                    plan=plan,
                    dtype=dtype,
                    pieces=pieces,
                    world=world,
                )
                if average is not None:
                    average.update(torch.as_tensor(metrics["skipped"]))
                at = replace(at, step=at.step + 1)
                last = at.step == plan.steps
                seconds += time.monotonic() - start
                start = time.monotonic()
                world.at(at.step, "agreeing")
                due = world.rank == 0 and time.monotonic() - saved_at > 60 * config.train.checkpoint_minutes
                stopping, saving = world.any(asked_to_stop(), due)
                saving = saving or stopping or last

                # --- what is not finite
                trouble = guard.trouble(wait=saving)
                if trouble is None and config.train.non_finite == "skip":
                    troubles = 0
                if trouble:
                    troubles += 1
                    check_policy(trouble, troubles, config)
                    world.say(f"Step {trouble.step} was not finite: {trouble.where}. Its update was left out.")
                if trouble and config.train.non_finite == "rewind":
                    there = continue_from(run, state, world, data=expected)
                    dropped.clear()
                    assert there is not None  # one was saved before the first step
                    at = replace(there, data=at.data, left_out=trouble.step + at.left_out + 1 - there.step)
                    guard.forget()
                    world.say(f"Back at step {at.step}; {at.left_out} batches in all are left out.")
                    log.drop_after(at.step)
                    coming = batches()
                    continue

                # --- the log
                logging = saving or at.step % LOG_EVERY == 0
                if logging:
                    at = replace(at, dropped=dict(sum(world.collect(dropped), Counter(at.dropped))))
                    dropped.clear()
                    seen = (at.step + at.left_out) * config.train.batch_size
                    # bad luck at first is no end; and at the end the work is done
                    fault = None if last else too_many_dropped(at.dropped, max(seen, min(1000, len(source))), config)
                    saving = saving or fault is not None
                pairs_per_second = max(0, at.step - first) * config.train.batch_size / max(1e-9, seconds - log.seconds)
                if world.device.type == "cpu" or logging:  # reading waits for a GPU
                    numbers = {name: float(value) for name, value in metrics.items()}
                    advance(at.step, describe_metrics(numbers, pairs_per_second, sum(at.dropped.values())))
                    if logging:
                        so_far = {"step": at.step, "pairs": at.step * config.train.batch_size, "seconds": seconds}
                        speed = {"pairs_per_second": pairs_per_second, "peak_memory_gb": peak_memory_gb()}
                        read = {"loader_wait": waited / max(1e-9, seconds - log.seconds), **count_of(at.dropped)}
                        log.write({**so_far, **speed, **numbers, **read})
                if saving:
                    path = save()
                    troubles = 0 if config.train.non_finite == "rewind" else troubles
                    saved_at = start = time.monotonic()  # time spent writing is not time spent training
                    if stopping and not last:
                        world.say(
                            f"Stopped after step {at.step}; saved {path}.\n"
                            f"Continue with: limner train --resume {run.path}"
                        )
                        raise Stopped
                if fault is not None:
                    raise fault

    # --- the model ----------------------------------------------------------------------------------------------------
    world.at(at.step, "saving")
    unreadable = {key: why for each in world.collect(loader.unreadable) for key, why in each.items()}
    cut = sum(world.collect(tokenizer.cut))
    if at.dropped:
        times = ", ".join(f"{count:,} times {reason}" for reason, count in at.dropped.items())
        world.say(f"Left out of training: {times}.")
    if cut:
        world.say(f"Captions longer than the context, cut to {tokenizer.context_length} tokens: {cut:,} times.")
    card = {
        "trained_on": f"{len(source):,} pairs, data fingerprint {source.fingerprint[:12]}",
        "pairs_seen": f"{plan.total_pairs:,}",
        "recipe": config.model,
    }
    weights = gathered(model.state_dict(), world)
    averaged = {} if average is None else gathered(average.weights, world)
    if world.rank == 0:
        unreadable = {**before.get("unreadable", {}), **unreadable}
        cut += before.get("captions_cut", 0)
        write_json(run.data, {**facts, "dropped": at.dropped, "unreadable": unreadable, "captions_cut": cut})
        if averaged:
            model_ema = filled(model.architecture, {**weights, **averaged}, tokenizer, where=f"the run {run.path}")
            model_ema.save(run.model_ema, **card, averaged=f"exponentially, decay {config.optim.ema_decay}")
        filled(model.architecture, weights, tokenizer, where=f"the run {run.path}").save(run.model, **card)


def pairs_of(config: RunConfig, world: World) -> tuple[Source, dict[str, Any]]:
    """The pairs to train on, and what data.json says about them. Raises `DataError` if too many cannot be used."""
    source = training_pairs(config)
    if fault := too_many_dropped(source.skipped, source.skipped.total() + len(source), config):
        raise fault
    order = quality(order_of(source, config.seed))
    world.say(f"Training on {len(source):,} pairs of {source.path} ({describe(source.skipped)}).")
    for reason, count in source.noted.most_common():
        world.say(f"Noted {count:,} times: {reason}.")
    world.say(
        f"Order: windows of about {order['window_pairs']:,} pairs; correlation of a pair's place in the epoch with its "
        f"place on disk {order['position_correlation']:+.4f}, by chance up to {order['by_chance']:.4f}."
    )
    return source, {
        "path": str(source.path),
        "fingerprint": source.fingerprint,
        "pairs": len(source),
        "skipped": source.skipped,
        "noted": source.noted,
        "order": order,
    }


def settled(config: RunConfig) -> RunConfig:
    """`config` as a run keeps it: its paths mean the same wherever the next command is run, and what depends on the
    encoder's family is filled in."""
    paths = {name: getattr(config, name) for name in ("out", "init")}
    absolute = {name: path.resolve() for name, path in paths.items() if path is not None}
    absolute |= {name: absolute_data(path) for name in ("data", "test") if (path := getattr(config, name)) is not None}
    if config.tokenizer not in (None, "openai"):
        absolute["tokenizer"] = str(Path(config.tokenizer).resolve())
    optim = config.optim.for_encoder(architecture(config.model).image)
    return replace(config, **absolute, optim=optim)


def continue_from(run: RunDirectory, state: State, world: World, *, data: str | None) -> Progress | None:
    """Load the newest whole checkpoint of a run, if there is one, which was trained on `data` (None: whatever it was);
    returns how far it is. Rank 0 chooses for all."""
    world.at(-1, "preparing")
    chosen = None
    for checkpoint in checkpoints(run.checkpoints) if world.rank == 0 else ():
        if is_readable(checkpoint):
            chosen = checkpoint.name
            break
        world.say(f"{checkpoint} is damaged; the one before it is used.")
    chosen = world.collect(chosen)[0]
    there = None if chosen is None else load_checkpoint(run.checkpoints / chosen, state, data=data)
    world.barrier()
    return there


def run_tokenizer(
    config: RunConfig, run: RunDirectory, source: Source, base: CLIP | None, world: World, *, resume: bool
) -> Tokenizer:
    """The run's tokenizer: when resuming the one that is there, else that of the model to start from, else the
    config's, else one trained on the captions. Rank 0 writes it, the others read it."""
    if world.rank == 0 and not (resume and run.tokenizer.exists()):
        if base is not None:
            assert base.tokenizer is not None
            tokenizer = base.tokenizer
        elif config.tokenizer == "openai":
            tokenizer = Tokenizer.openai()
        elif config.tokenizer is not None:
            tokenizer = Tokenizer.load(Path(config.tokenizer))
        else:
            tokenizer = Tokenizer.train(source.captions(), vocab_size=config.vocab_size)
        tokenizer.save(run.tokenizer)
    world.barrier()
    return Tokenizer.load(run.tokenizer)


def starting_model(config: RunConfig) -> CLIP:
    """The model that `config.init` names, for the pictures that the run is about."""
    assert config.init is not None
    wanted = architecture(config.model)
    base = load(config.init, image_size=wanted.image_size)
    got = base.architecture
    if base.tokenizer is None or replace(wanted, text=replace(wanted.text, vocab_size=got.text.vocab_size)) != got:
        raise ConfigError(
            f"The model {config.init} to start from",
            must=f"be a {config.model} with a tokenizer; pictures and vocabulary may be of another size",
            got=f"{got}, tokenizer: {base.tokenizer is not None}",
            then="Set --model to its architecture, or leave --init out.",
        )
    return base


def choose_precision(config: RunConfig, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype that the encoders compute in, and why. Raises `ConfigError` for bf16 weights where that is float32."""
    precision = config.train.precision
    if precision == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()
        dtype, reason = (
            (torch.bfloat16, f"bf16 on {device}") if fast else (torch.float32, f"float32 on {device}, no fast bf16")
        )
    else:
        dtype, reason = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision], f"{precision} on {device}, as asked"
    if config.optim.bf16_weights and dtype != torch.bfloat16:
        raise ConfigError(
            "train.precision with optim.bf16-weights",
            must="be bf16: weights in bf16 are computed with in bf16",
            got=reason,
            then="Give --train.precision bf16, or leave --optim.bf16-weights out.",
        )
    return dtype, reason


def train_step(
    replica: nn.Module,
    optimizer: torch.optim.Optimizer,
    guard: Guard,
    batch: Batch,
    *,
    step: int,
    config: RunConfig,
    plan: Plan,
    dtype: torch.dtype,
    pieces: int,
    world: World,
) -> dict[str, float | Tensor]:
    """One step: features, loss, gradients, update. Returns what is worth a line in the log, still on the device.

    The weights stay as they are when the loss or a gradient is not finite; the guard knows.
    """
    lr = config.optim.lr * lr_share(step, plan)
    for group in optimizer.param_groups:
        group["lr"] = lr
    positives = batch.identities.to(world.device) if config.train.duplicates == "positives" else None

    def loss(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> tuple[Tensor, Tensor]:
        return contrastive_loss_and_accuracy(
            image_features, text_features, logit_scale, group=world.group, positives=positives
        )

    optimizer.zero_grad(set_to_none=True)
    outcome = backward(replica, batch, loss, pieces=pieces, dtype=dtype, world=world, step=step)
    world.at(step, "update")
    found, norms = guard.look(outcome, step)
    if config.optim.clip_norm is not None:
        clip_gradients(guard.model, norms["all"], config.optim.clip_norm)
    # what torch's GradScaler sets: the optimizers look at it on the device and leave everything as it is
    optimizer.found_inf, optimizer.grad_scale = found, None  # type: ignore[attr-defined]
    optimizer.step()
    outcome.statistics.advance(world, found)
    guard.model.clip_logit_scale()
    return {
        "loss": outcome.loss,
        "accuracy": outcome.accuracy,
        "grad_norm": norms["all"],
        "grad_norm_image": norms["image"],
        "grad_norm_text": norms["text"],
        "logit_scale": outcome.logit_scale,
        "lr": lr,
        "batch": len(batch.keys),
        "skipped": found,
    }


def check_policy(trouble: Trouble, troubles: int, config: RunConfig) -> None:
    """Raise `TrainingError` when a step that was not finite ends the run."""
    if config.train.non_finite != "stop" and troubles < TROUBLES:
        return
    again = f", {troubles} times without getting on" if troubles > 1 else ""
    raise TrainingError(
        f"The loss and gradients of step {trouble.step}",
        must="be finite",
        got=trouble.where + again,
        then="Lower --optim.lr, lengthen --optim.warmup-share, set --optim.clip-norm 1 or use --train.precision fp32; "
        f"the last checkpoint stays, so limner train --resume {config.out} starts from there. "
        "--train.non-finite skip or rewind goes on by itself.",
    )


def too_many_dropped(dropped: Mapping[str, int], seen: int, config: RunConfig) -> DataError | None:
    """What to raise when more of the `seen` pairs could not be used than the config allows, if so."""
    count = sum(dropped.values())
    if count <= config.max_dropped * seen:
        return None
    run = RunDirectory(config.out or Path())
    command = f"limner train --resume {shlex.quote(str(run.path))} " if run.config.exists() else ""
    return DataError(
        f"The pairs of {config.data}",
        must=f"be usable but for {config.max_dropped:.1%} of them",
        got=f"{count:,} of {seen:,} that are not ({describe(Counter(dropped))})",
        then=f"See which with: limner data check {shlex.quote(str(config.data))}. To go on without them: {command}"
        f"--max-dropped {min(1.0, 1.5 * count / seen):.2f}.",
    )


def count_of(dropped: Mapping[str, int]) -> dict[str, Any]:
    """Dropped pairs as a line of the log has them: their number, and by reason if there are any."""
    return {"dropped": sum(dropped.values()), **({"dropped_for": dict(dropped)} if dropped else {})}


def gathered(tensors: dict[str, Tensor], world: World) -> dict[str, Tensor]:
    """Weights as a model directory keeps them, whole and on the CPU, on rank 0; nothing on the others."""
    whole = {}
    for name, tensor in tensors.items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()
        if world.rank == 0:
            whole[name] = full.cpu()
    return whole


def describe_metrics(metrics: dict[str, float], speed: float, dropped: int) -> str:
    """The facts beside the progress bar."""
    facts = (
        f"{speed:,.0f} pairs/s loss {metrics['loss']:.2f} acc {metrics['accuracy']:.0%} |g| {metrics['grad_norm']:.1f}"
    )
    return f"{facts} dropped {dropped:,}" if dropped else facts


class MetricsLog:
    """metrics.jsonl and TensorBoard, side by side. `seconds` is the time trained before this process."""

    def __init__(self, run: RunDirectory, first: int) -> None:
        self._run = run
        kept = self._keep(first)
        self.seconds: float = kept[-1]["seconds"] if kept else 0.0
        self._board = SummaryWriter(str(run.tensorboard), purge_step=first + 1 if first else None)

    def drop_after(self, step: int) -> None:
        """Forget the lines of later steps: they are done again."""
        self._file.close()
        self._keep(step)

    def _keep(self, step: int) -> list[dict[str, Any]]:
        kept = [line for line in self._run.read_metrics() if line["step"] <= step]
        write_text(self._run.metrics, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = self._run.metrics.open("a", encoding="utf-8")
        return kept

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
                then="Make room; the last checkpoint stays, and limner train --resume continues from it.",
            ) from error
        for name, value in metrics.items():
            if name != "step" and isinstance(value, int | float):
                self._board.add_scalar(f"train/{name}", value, metrics["step"])

    def close(self) -> None:
        """Write what is buffered."""
        self._file.close()
        self._board.close()


class NoLog:
    """The log of every rank but the first, which writes for all."""

    seconds = 0.0

    def write(self, metrics: dict[str, Any]) -> None:
        """Nothing."""

    def drop_after(self, step: int) -> None:
        """Nothing."""


@contextmanager
def metrics_log(run: RunDirectory, first: int, world: World) -> Iterator[MetricsLog | NoLog]:
    """The log of a run that continues after step `first`; lines of later steps, which are done again, are dropped."""
    if world.rank > 0:
        yield NoLog()
        return
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
