"""From a config to everything that a training loop needs: `RunConfig -> settled -> prepare -> Setup`.

Whatever can be wrong with a run (its data, its settings, the directory) is found out here, before the first step.
"""

import ctypes
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from limner.architecture import Architecture, architecture, name_of
from limner.config import Plan, RunConfig, resolve, to_json
from limner.data.loader import Batch, Loader
from limner.data.order import quality
from limner.data.pairs import Source, describe, notes, order_of
from limner.data.reading import PATIENCE_SECONDS
from limner.data.sources.read import absolute as absolute_data
from limner.data.sources.read import read_images, split_pairs, write_manifest
from limner.data.tokenizer import Tokenizer
from limner.errors import ConfigError, DataError
from limner.evaluation.metrics import Row
from limner.evaluation.tasks import Task
from limner.files import read_json, write_json
from limner.model.clip import CLIP, create
from limner.objectives.objective import Trainee
from limner.objectives.table import objective
from limner.run import RunDirectory
from limner.store.store import load
from limner.training.checkpoint import Progress, State, checkpoints, continue_from, save_checkpoint
from limner.training.guard import Guard, Trouble
from limner.training.measure import measure, task_on_the_way
from limner.training.optimizer import Average, halve_weights, make_optimizer
from limner.training.step import Step
from limner.training.world import World, parallelise, share_of_rank


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A run that is ready to take its steps."""

    config: RunConfig
    """Settled."""
    run: RunDirectory
    world: World
    plan: Plan
    source: Source
    facts: dict[str, Any]
    """About the data, as data.json has them."""
    before: dict[str, Any]
    """What data.json said before a run was resumed."""
    expected: str | None
    """The data's fingerprint that a checkpoint must have; None: it may have any."""
    loader: Loader
    state: State
    step: Step
    start: Progress
    """How far the run is."""
    is_new: bool
    """There is no checkpoint yet."""
    task: Task | None
    """What it is measured on, on the way."""

    def batches(self, at: Progress) -> Iterator[Batch]:
        """The batches from `at` to the end."""
        return self.loader.batches(at.step + at.left_out, self.plan.steps + at.left_out)

    def measure(self, at: Progress) -> list[Row]:
        """What the weights of the moment are worth, where that is due; nothing where it is not."""
        if self.task is None or (at.step % self.config.evaluate_every and at.step < self.plan.steps):
            return []
        self.world.at(at.step, "measuring")
        return measure(self.state.model, self.task, self.world)

    def save(self, at: Progress) -> Path:
        """Write a checkpoint."""
        self.world.at(at.step, "saving")
        return save_checkpoint(self.run.checkpoints, self.state, at, self.world)

    def go_back(self, at: Progress, trouble: Trouble) -> Progress:
        """Load the last checkpoint again; the batches since, up to the one that was trouble, are left out."""
        there = continue_from(self.run, self.state, self.world, data=self.expected)
        assert there is not None, "one was saved before the first step"
        self.step.guard.forget()
        return replace(there, data=at.data, left_out=trouble.step + at.left_out + 1 - there.step)


def prepare(config: RunConfig, run: RunDirectory, world: World, *, resume: bool, other_data: bool) -> Setup:
    """Make everything ready for the settled `config` on this rank, and write what the run directory begins with."""
    assert isinstance(config.model, Architecture)
    source, facts = pairs_of(config, world)
    plan = resolve(config, pairs=facts["order"]["pairs"])
    share = share_of_rank(config.train.batch_size, world)
    dtype, reason = choose_precision(config, world.device)
    task = task_on_the_way(config)
    if config.test is not None:
        read_images(config.test)  # so that a wrong path is not found out after the training
    started = resume and bool(checkpoints(run.checkpoints))
    base = None if config.init is None or started else starting_model(config)
    tokenizer = run_tokenizer(config, run, source, base, world, resume=resume)

    if world.device.type == "cpu":
        keep_freed_memory()
    model = create(config.model, tokenizer=tokenizer, seed=config.seed) if base is None else base
    model = model.to(world.device).train()
    model.recompute_blocks(config.train.recompute_blocks)
    halve_weights(model, config.optim.bf16_weights)
    replica = parallelise(
        Trainee(model, objective(config.train.objective, config.train.duplicates)), config.train.parallel, world
    )
    optimizer = make_optimizer(model, config.optim, seed=config.seed)
    average = None if config.optim.ema_decay is None else Average(model, config.optim.ema_decay)
    state = State(model, optimizer, average)
    expected = None if other_data else source.fingerprint
    saved = continue_from(run, state, world, data=expected) if resume else None
    at = replace(saved or Progress(step=0, left_out=0, data="", dropped={}), data=source.fingerprint)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    ranks = f"{world.size} ranks of {share} pairs, " if world.size > 1 else ""
    world.say(
        f"{name_of(config.model)}, {parameters / 1e6:.1f} M parameters, {reason}, {ranks}{plan.steps} steps from "
        f"step {at.step}."
    )
    before: dict[str, Any] = read_json(run.data) if saved is not None and run.data.exists() else {}
    facts |= trained_before(before, source)
    if world.rank == 0:
        # of a model to start from, the vocabulary that it has, whatever was asked for
        write_json(run.config, to_json(config if base is None else replace(config, vocab_size=tokenizer.vocab_size)))
        run.describe_environment()
        reported = {name: before[name] for name in ("unreadable", "captions_cut") if name in before}
        write_json(run.data, {**facts, "dropped": at.dropped, **reported})
        write_manifest(run.manifest, source)
    world.barrier()

    loader = Loader(
        source,
        tokenizer,
        images=config.images,
        image_size=config.model.image_size,
        batch_size=config.train.batch_size,
        seed=config.seed,
        cache_mb=config.cache_mb,
        rank=world.rank,
        ranks=world.size,
        workers=config.workers,
        # before the watch over ranks ends the job, for this message says more
        patience_seconds=min(PATIENCE_SECONDS, 0.75 * config.train.patience_seconds if world.size > 1 else 1e9),
    )
    step = Step(
        replica=replica,
        optimizer=optimizer,
        guard=Guard(model, world),
        optim=config.optim,
        plan=plan,
        dtype=dtype,
        pieces=-(-share // (config.train.micro_batch or share)),  # rounded up
        world=world,
    )
    return Setup(
        config=config,
        run=run,
        world=world,
        plan=plan,
        source=source,
        facts=facts,
        before=before,
        expected=expected,
        loader=loader,
        state=state,
        step=step,
        start=at,
        is_new=saved is None,
        task=task,
    )


def pairs_of(config: RunConfig, world: World) -> tuple[Source, dict[str, Any]]:
    """The pairs to train on, and what data.json says about them. Raises `DataError` if too many cannot be used."""
    assert config.data is not None
    holdout = config.holdout if config.test is None else 0.0
    source, kept_back = split_pairs(config.data, config.data_weights, holdout=holdout)
    if fault := too_many_dropped(source.skipped, source.skipped.total() + len(source), config):
        raise fault
    order = quality(order_of(source, config.seed))
    world.say(f"Training on {len(source):,} pairs of {source.path} ({describe(source.skipped)}).")
    if config.test is None and len(kept_back) == 0:
        world.say(
            "No pair is kept back and there is no test set: limner eval will have nothing of this run's own to measure "
            "on. Give --test PATH, or a larger --holdout."
        )
    if source.noted:
        world.say(notes(source))
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


def trained_before(before: dict[str, Any], source: Source) -> dict[str, list[str]]:
    """What data.json says of other data that a run was trained on before it went on with `source`: fingerprints.

    Pairs of it may be among those that would be kept back now.
    """
    earlier = [*before.get("trained_before", []), before.get("fingerprint", source.fingerprint)]
    others = [one for one in dict.fromkeys(earlier) if one != source.fingerprint]
    return {"trained_before": others} if others else {}


def settled(config: RunConfig) -> RunConfig:
    """`config` as a run keeps it, whole: its paths mean the same wherever the next command is run, its model is an
    architecture with what the objective adds, and what depends on the kind of encoder is filled in."""
    paths = {name: getattr(config, name) for name in ("out", "init")}
    absolute = {name: path.resolve() for name, path in paths.items() if path is not None}
    absolute |= {
        name: absolute_data(path)
        for name in ("data", "test", "evaluate_data")
        if (path := getattr(config, name)) is not None
    }
    if config.tokenizer not in (None, "openai"):
        absolute["tokenizer"] = str(Path(config.tokenizer).resolve())
    model = objective(config.train.objective).adapt(architecture(config.model))
    return replace(config, **absolute, model=model, optim=config.optim.for_encoder(model.image))


def run_tokenizer(
    config: RunConfig, run: RunDirectory, source: Source, base: CLIP | None, world: World, *, resume: bool
) -> Tokenizer:
    """The run's tokenizer: when resuming the one that is there, else that of the model to start from, else the
    config's, else one trained on the captions. Rank 0 writes it, the others read it."""
    assert isinstance(config.model, Architecture)
    context = {"context_length": config.model.text.context_length}
    if world.rank == 0 and not (resume and run.tokenizer.exists()):
        if base is not None:
            assert base.tokenizer is not None
            tokenizer = base.tokenizer
        elif config.tokenizer is not None:
            tokenizer = _named_tokenizer(config)
        else:
            tokenizer = Tokenizer.train(source.captions(), vocab_size=config.vocab_size, **context)
        tokenizer.save(run.tokenizer)
    world.barrier()
    return Tokenizer.load(run.tokenizer, **context)


def starting_model(config: RunConfig) -> CLIP:
    """The model that `config.init` names, for the pictures that the run is about."""
    assert config.init is not None and isinstance(config.model, Architecture)
    wanted = config.model
    base = load(config.init, image_size=wanted.image_size)
    got = base.architecture
    if base.tokenizer is None or replace(wanted, text=replace(wanted.text, vocab_size=got.text.vocab_size)) != got:
        raise ConfigError(
            f"The model {config.init} to start from",
            must=f"be a {name_of(wanted)} for the {wanted.objective} objective, with a tokenizer; pictures and "
            "vocabulary may be of another size",
            got=f"{got}, tokenizer: {base.tokenizer is not None}",
            then="Set --model to its architecture, or leave --init out.",
        )
    if config.tokenizer is not None and not _named_tokenizer(config).is_like(base.tokenizer):
        raise ConfigError(
            f"The tokenizer {config.tokenizer} beside --init {config.init}",
            must="be the one that the model has: its text encoder knows no other",
            got=f"another one, of {_named_tokenizer(config).vocab_size} tokens instead of {base.tokenizer.vocab_size}",
            then="Leave --tokenizer out (of a paper's recipe: --tokenizer None).",
        )
    return base


def _named_tokenizer(config: RunConfig) -> Tokenizer:
    """The tokenizer that a config names."""
    assert config.tokenizer is not None and isinstance(config.model, Architecture)
    context = {"context_length": config.model.text.context_length}
    if config.tokenizer == "openai":
        return Tokenizer.openai(**context)
    return Tokenizer.load(Path(config.tokenizer), **context)


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


def too_many_dropped(dropped: Mapping[str, int], seen: int, config: RunConfig) -> DataError | None:
    """What to raise when more of the `seen` pairs could not be used than the config allows, if so."""
    count = sum(dropped.values())
    if count <= config.max_dropped * seen:
        return None
    run = RunDirectory(config.out or Path())
    command = f"limner resume {shlex.quote(str(run.path))} " if run.config.exists() else ""
    return DataError(
        f"The pairs of {config.data}",
        must=f"be usable but for {config.max_dropped:.1%} of them",
        got=f"{count:,} of {seen:,} that are not ({describe(Counter(dropped))})",
        then=f"See which with: limner data check {shlex.quote(str(config.data))}. To go on without them: {command}"
        f"--max-dropped {min(1.0, 1.5 * count / seen):.2f}.",
    )


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Ask glibc to reuse freed memory instead of giving it back. False where there is no glibc."""
    if not sys.platform.startswith("linux"):
        return False
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))
    return False
