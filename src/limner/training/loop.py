"""Training: `pairs -> batches -> features -> loss -> weights`, read from top to bottom.

A run can be stopped at any moment (Ctrl-C writes a checkpoint first) and resumed to the bit: batches are functions of
the step, so the step, the weights and AdamW's moments are the whole state. Started by torchrun, the same program runs
on every rank (training/world.py).
"""

import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch

from limner.architecture import name_of
from limner.config import RunConfig
from limner.errors import ConfigError
from limner.files import write_json
from limner.progress import progress, silent
from limner.run import RunDirectory
from limner.store.store import filled, save
from limner.training import log as logs
from limner.training.checkpoint import Progress, gathered
from limner.training.guard import Patience
from limner.training.log import Ledger, describe_metrics, metrics_log
from limner.training.prepare import Setup, prepare, settled, too_many_dropped
from limner.training.watch import Stopped
from limner.training.world import is_restart, stop_at_signals, world


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
                then=f"Continue it with: limner resume {run.path}, or choose another --out.",
            )
        setup = prepare(config, run, ranks, resume=resume, other_data=other_data)
        write_model(setup, take_steps(setup))
    return run.path


def take_steps(setup: Setup) -> Progress:
    """All steps that are left. Returns how far the run is: at the end, unless it raises."""
    config, run, world, plan, state = setup.config, setup.run, setup.world, setup.plan, setup.state
    at, patience, rewinds = setup.start, Patience(config), config.train.non_finite == "rewind"
    bar = progress("Training", plan.steps, start=at.step) if world.rank == 0 else silent()
    with (
        metrics_log(run, at.step, world) as log,
        closing(setup.loader),
        stop_at_signals() as asked_to_stop,
        bar as advance,
    ):
        if rewinds and setup.is_new:
            setup.save(at)  # something to go back to
        saved_at, coming = time.monotonic(), setup.batches(at)
        log.write_rows(at.step, setup.measure(at) if at.step else [])
        ledger = Ledger(log, at.step, config.train.batch_size)
        while at.step < plan.steps:
            world.at(at.step, "reading pairs")
            metrics = setup.step(ledger.take(coming), at.step)
            if state.average is not None:
                state.average.update(torch.as_tensor(metrics["skipped"]))
            at = replace(at, step=at.step + 1)
            ledger.step_done()

            # --- what the ranks decide alike
            world.at(at.step, "agreeing")
            due = world.rank == 0 and time.monotonic() - saved_at > 60 * config.train.checkpoint_minutes
            stopping, saving = world.any(asked_to_stop(), due)
            last = at.step == plan.steps
            saving = saving or stopping or last

            # --- what is not finite
            if trouble := setup.step.guard.trouble(wait=saving):
                patience.spend(trouble)
                world.say(f"Step {trouble.step} was not finite: {trouble.where}. Its update was left out.")
                if rewinds:
                    at = setup.go_back(at, trouble)
                    world.say(f"Back at step {at.step}; {at.left_out} batches in all are left out.")
                    log.drop_after(at.step)
                    ledger.dropped.clear()
                    coming = setup.batches(at)
                    continue
            else:
                patience.renew("skip")

            # --- the log
            logging, fault = saving or at.step % logs.LOG_EVERY == 0, None
            if logging:
                at = replace(at, dropped=ledger.dropped_so_far(at.dropped, world))
                # bad luck at first is no end; and at the end the work is done
                seen = max((at.step + at.left_out) * config.train.batch_size, min(1000, len(setup.source)))
                fault = None if last else too_many_dropped(at.dropped, seen, config)
            if world.device.type == "cpu" or logging:  # reading waits for a GPU
                numbers = {name: float(value) for name, value in metrics.items()}
                speed = ledger.pairs_per_second(at.step)
                advance(at.step, describe_metrics(numbers, speed, sum(at.dropped.values())))
                if logging:
                    ledger.write(at.step, numbers, at.dropped)

            # --- a checkpoint
            if saving or fault is not None:
                path = setup.save(at)
                patience.renew("rewind")
                saved_at = time.monotonic()
                ledger.skip_time()
                if stopping and not last:
                    world.say(f"Stopped after step {at.step}; saved {path}.\nContinue with: limner resume {run.path}")
                    raise Stopped
            if fault is not None:
                raise fault

            # --- what it is worth so far
            if rows := setup.measure(at):
                log.write_rows(at.step, rows)
                ledger.skip_time()
    return at


def write_model(setup: Setup, at: Progress) -> None:
    """Write the trained model, and what became of the data, into the run directory."""
    config, run, world, loader, model = setup.config, setup.run, setup.world, setup.loader, setup.state.model
    tokenizer = loader.tokenizer
    world.at(at.step, "saving")
    unreadable = {key: why for each in world.collect(loader.unreadable) for key, why in each.items()}
    cut = sum(world.collect(tokenizer.cut))
    if at.dropped:
        times = ", ".join(f"{count:,} times {reason}" for reason, count in at.dropped.items())
        world.say(f"Left out of training: {times}.")
    if cut:
        world.say(f"Captions longer than the context, cut to {tokenizer.context_length} tokens: {cut:,} times.")
    weights = gathered(model.state_dict(), world)
    averaged = {} if setup.state.average is None else gathered(setup.state.average.weights, world)
    if world.rank > 0:
        return
    unreadable = {**setup.before.get("unreadable", {}), **unreadable}
    cut += setup.before.get("captions_cut", 0)
    write_json(run.data, {**setup.facts, "dropped": at.dropped, "unreadable": unreadable, "captions_cut": cut})
    card = {
        "trained_on": f"{len(setup.source):,} pairs, data fingerprint {setup.source.fingerprint[:12]}",
        "pairs_seen": f"{setup.plan.total_pairs:,}",
        "recipe": name_of(config.model),
    }
    where = f"the run {run.path}"
    if averaged:
        model_ema = filled(model.architecture, {**weights, **averaged}, tokenizer, where=where)
        save(model_ema, run.model_ema, **card, averaged=f"exponentially, decay {config.optim.ema_decay}")
    save(filled(model.architecture, weights, tokenizer, where=where), run.model, **card)
