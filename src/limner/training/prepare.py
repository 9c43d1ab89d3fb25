"""From a config to everything that a training loop needs."""

import ctypes
import shlex
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from limner.architecture import architecture
from limner.config import RunConfig
from limner.data.order import quality
from limner.data.pairs import Source, describe, order_of
from limner.data.sources.index import load
from limner.data.sources.read import absolute as absolute_data
from limner.data.sources.read import training_pairs
from limner.data.tokenizer import Tokenizer
from limner.errors import ConfigError, DataError
from limner.model.clip import CLIP
from limner.run import RunDirectory
from limner.training.world import World


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


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Ask glibc to reuse freed memory instead of giving it back. False where there is no glibc."""
    if not sys.platform.startswith("linux"):
        return False
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))
    return False
