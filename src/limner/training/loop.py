"""Training: `pairs -> batches -> features -> loss -> weights`, read from top to bottom.

A run can be stopped at any moment (Ctrl-C writes a checkpoint first) and resumed to the bit: batches are functions of
the step, so the step, the weights and AdamW's moments are the whole state. Started by torchrun, the same program runs
on every rank (training/distributed.py).
"""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limner.architecture import architecture
from limner.config import Plan, RunConfig, resolve, to_json
from limner.data.loader import Batch, Loader
from limner.data.reading import PATIENCE_SECONDS
from limner.data.sources.read import read_pictures, write_manifest
from limner.errors import ConfigError, DataError
from limner.files import read_json, write_json
from limner.model.clip import create
from limner.objectives.contrastive import contrastive_loss_and_accuracy
from limner.progress import progress, silent
from limner.run import RunDirectory
from limner.store.store import filled
from limner.training.checkpoint import (
    Progress,
    State,
    checkpoints,
    continue_from,
    gathered,
    save_checkpoint,
)
from limner.training.guard import Guard, check_policy, clip_gradients
from limner.training.log import LOG_EVERY, count_of, describe_metrics, metrics_log, peak_memory_gb
from limner.training.optimizer import Average, halve_weights, lr_share, make_optimizer
from limner.training.prepare import (
    choose_precision,
    keep_freed_memory,
    pairs_of,
    run_tokenizer,
    settled,
    starting_model,
    too_many_dropped,
)
from limner.training.step import backward
from limner.training.watch import Stopped
from limner.training.world import World, check_share, is_restart, parallelise, stop_at_signals, world


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
