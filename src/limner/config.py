"""What a run is: frozen dataclasses, and their JSON.

A run flows `recipe -> command line -> RunConfig -> resolve() -> Plan`. Nothing changes a config after it was made;
what depends on the data (how many steps, how many of them warm-up) is worked out by `resolve`, a pure function.
"""

import math
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from limner.architecture import Architecture, EncoderConfig
from limner.errors import ConfigError, require

DEFAULT_TEMPLATES = ("{}", "a picture of {}.")
"""Prompts for class names that come without templates of their own."""


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """How a picture becomes pixels."""

    resize: int
    """Length in pixels that the shorter side is resized to, before the crop."""
    crop_min_area: float = 1.0
    """Training takes a random square crop: its side is drawn so that its area is at least this share of the largest
    square, then it is resized to the model's input. 1.0: only the place is drawn, not the size."""

    def __post_init__(self) -> None:
        require(self.resize > 0, "resize of images", "be positive", self.resize, "Give a length in pixels.")
        require(
            0 < self.crop_min_area <= 1,
            "crop-min-area of images",
            "lie in (0, 1]",
            self.crop_min_area,
            "0.5 draws crops of at least half of the picture's largest square.",
        )


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with decoupled weight decay on everything but gains and biases, warm-up, then cosine to zero per step."""

    lr: float
    """Peak learning rate."""
    weight_decay: float = 0.2
    beta1: float = 0.9
    beta2: float | None = None
    """None: the paper's for the image encoder's kind, 0.98 for ViTs and 0.999 for ResNets."""
    eps: float | None = None
    """None: the paper's for the image encoder's kind, 1e-6 for ViTs and 1e-8 for ResNets."""
    warmup_share: float = 0.05
    """Share of all steps in which the learning rate rises linearly from zero."""
    warmup_steps: int | None = None
    """The same as a number of steps; it goes before the share."""
    clip_norm: float | None = None
    """Gradients are scaled down to this global norm where theirs is larger."""
    moments: Literal["fp32", "bf16"] = "fp32"
    """bf16: Adam's two moments take half the memory; they are rounded stochastically, so their means are unbiased."""
    bf16_weights: tuple[Literal["image", "text"], ...] = ()
    """Encoders whose matrices are kept in bf16, rounded stochastically; the paper: text. Needs train.precision bf16."""
    ema_decay: float | None = None
    """Also keep an exponential moving average of the weights, with this decay per step; it goes into RUN/model-ema."""

    def __post_init__(self) -> None:
        require(self.lr > 0, "lr of optim", "be positive", self.lr, "Recipes use 5e-4 to 3e-3.")
        require(
            self.weight_decay >= 0, "weight-decay of optim", "not be negative", self.weight_decay, "The paper: 0.2."
        )
        for name, value, usual in (
            ("eps", self.eps, "1e-6 for ViTs, 1e-8 for ResNets"),
            ("clip-norm", self.clip_norm, "1.0"),
        ):
            require(value is None or value > 0, f"{name} of optim", "be positive", value, f"Usual: {usual}.")
        for name, decay in (("beta1", self.beta1), ("beta2", self.beta2), ("ema-decay", self.ema_decay)):
            fine = decay is None or 0 <= decay < 1
            require(fine, f"{name} of optim", "lie in [0, 1)", decay, "The paper: beta1 0.9, beta2 0.98 or 0.999.")
        require(
            0 <= self.warmup_share < 1,
            "warmup-share of optim",
            "lie in [0, 1)",
            self.warmup_share,
            "It is a share of all steps, such as 0.05.",
        )
        fine = self.warmup_steps is None or self.warmup_steps >= 0
        require(fine, "warmup-steps of optim", "not be negative", self.warmup_steps, "The paper: 2000.")

    def for_encoder(self, image: EncoderConfig) -> "OptimConfig":
        """The same with beta2 and eps filled in by the kind of the image encoder (paper table 18)."""
        beta2 = image.beta2 if self.beta2 is None else self.beta2
        return replace(self, beta2=beta2, eps=image.eps if self.eps is None else self.eps)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, how many at once, how precise, on how many machines."""

    batch_size: int
    """Pairs in one step, over all ranks: each picture meets every caption of the batch."""
    epochs: float
    """Times that the pairs are seen."""
    objective: str = "contrastive"
    """What is learnt from a batch: contrastive (the paper's) or sigmoid (SigLIP's)."""
    micro_batch: int | None = None
    """Pairs whose activations are in memory at once, on each rank; all of its pairs by default. The gradient is that
    of the whole batch; a ResNet's BatchNorm takes its statistics over micro-batches."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 where the machine computes in it, float32 otherwise. Features, loss and weights stay float32."""
    recompute_blocks: bool = False
    """Keep only the inputs of the encoders' blocks and compute the rest again in the backward pass: less memory, a
    third more work, the same bits."""
    duplicates: Literal["negatives", "positives"] = "negatives"
    """What other pairs of the batch with the same caption or the same picture count as."""
    non_finite: Literal["stop", "skip", "rewind"] = "stop"
    """What follows a loss or gradient that is not finite: stop; leave out that step's update; or go back to the last
    checkpoint and leave out the pairs since. The weights are never touched by such a step."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """With several ranks: every rank holds the whole model (ddp), or a share of each block's weights (fsdp)."""
    patience_seconds: float = 45.0
    """The job ends and says so when a rank stands still and another one has waited for it this long."""
    checkpoint_minutes: float = 5.0
    """A checkpoint is written at least this often, at Ctrl-C and at the end."""

    def __post_init__(self) -> None:
        require(
            self.batch_size >= 2,
            "batch-size of train",
            "be at least 2",
            self.batch_size,
            "Contrastive learning needs other captions to tell a picture's own from.",
        )
        require(
            self.micro_batch is None or self.micro_batch >= 1,
            "micro-batch of train",
            "be at least 1",
            self.micro_batch,
            "64 suits a small machine.",
        )
        require(self.epochs > 0, "epochs of train", "be positive", self.epochs, "Fractions are fine: 0.5.")
        for name, value in (
            ("patience-seconds", self.patience_seconds),
            ("checkpoint-minutes", self.checkpoint_minutes),
        ):
            require(value > 0, f"{name} of train", "be positive", value, "Fractions are fine: 0.5.")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run, whole. Recipes return it; every field can be overridden on the command line."""

    data: str | None = None
    """Training pairs: a folder of pictures with .txt captions beside them, a list (csv, tsv, jsonl, parquet) with path
    and caption columns, a Hugging Face datasets directory, WebDataset shards (a folder, a.tar, a/{00000..00099}.tar,
    or an address such as s3://bucket/a); several of these with :: between them."""
    data_weights: tuple[float, ...] = ()
    """How often an epoch sees each pair of each source, where there are several; 1 by default."""
    test: str | None = None
    """Pairs or labelled pictures to measure on. Without it `holdout` of the training pairs are kept back."""
    evaluate_every: int = 0
    """Steps between two evaluations on the way, on `evaluate_data`; 0: none. They change nothing of the run."""
    evaluate_data: str | None = None
    """Pairs or labelled pictures to measure on, on the way. Without it `test`, or the pairs that are kept back."""
    out: Path | None = None
    """The run directory. Default: runs/RECIPE."""
    model: str | Architecture
    """An architecture by its name in the zoo, or, from Python, one of your own."""
    init: Path | None = None
    """A model directory or finished run to start from instead of random weights; its position embeddings are resized
    to the model's pictures, its tokenizer is used."""
    tokenizer: str | None = None
    """A tokenizer.json, or openai for the paper's vocabulary. Without it one is trained on the captions."""
    vocab_size: int = 4096
    """Size of a tokenizer trained on the captions."""
    holdout: float = 0.05
    """Share of the pairs kept out of training when there is no `test`."""
    cache_mb: int = 2048
    """Decoded pictures are kept in memory up to this much; the others are decoded each time they are due."""
    workers: int | None = None
    """Threads that read and decode pictures on each rank; one per core by default. The batches are the same."""
    max_dropped: float = 0.05
    """Training ends with a message when a larger share of the pairs cannot be used."""
    seed: int = 0
    images: ImageConfig
    train: TrainConfig
    optim: OptimConfig

    def __post_init__(self) -> None:
        require(self.cache_mb >= 0, "cache-mb", "not be negative", self.cache_mb, "0 keeps no picture in memory.")
        fine = self.workers is None or self.workers >= 1
        require(fine, "workers", "be at least 1", self.workers, "Leave it out for one per core.")
        fine = self.evaluate_every >= 0
        require(fine, "evaluate-every", "be 0 or more", self.evaluate_every, "It counts steps; 0 measures nothing.")
        fine = self.evaluate_data is None or self.evaluate_every > 0
        require(fine, "evaluate-data", "come with --evaluate-every", "it alone", "Add --evaluate-every 100.")
        fine = 0 <= self.max_dropped <= 1
        require(fine, "max-dropped", "lie in [0, 1]", self.max_dropped, "It is a share of the pairs, such as 0.05.")
        require(0 <= self.holdout < 1, "holdout", "lie in [0, 1)", self.holdout, "0.05 keeps one pair in twenty back.")
        half = self.optim.bf16_weights
        require(
            not half or self.train.precision != "fp32",
            "train.precision with optim.bf16-weights",
            "be bf16: weights in bf16 are computed with in bf16",
            self.train.precision,
            "Give --train.precision bf16, or --optim.bf16-weights without a value.",
        )
        require(
            not half or self.train.parallel != "fsdp",
            "optim.bf16-weights with train.parallel fsdp",
            "be empty, for FSDP shards weights of one dtype",
            " ".join(half),
            "Give --optim.bf16-weights without a value; fsdp divides the memory of weights by the ranks already.",
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `resolve` works out once the data is known."""

    steps: int
    warmup_steps: int
    total_pairs: int


def resolve(config: RunConfig, *, pairs: int) -> Plan:
    """The plan of `config` on `pairs` training pairs."""
    batch_size = config.train.batch_size
    require(
        pairs >= batch_size,
        "The number of training pairs",
        f"be at least the batch size {batch_size}",
        pairs,
        "Lower --train.batch-size or add pairs.",
    )
    steps = max(1, math.ceil(config.train.epochs * pairs / batch_size))
    warmup = config.optim.warmup_steps
    return Plan(
        steps=steps,
        warmup_steps=round(config.optim.warmup_share * steps) if warmup is None else min(warmup, steps),
        total_pairs=steps * batch_size,
    )


# --- configs as JSON -------------------------------------------------------------------------------------------------

T = TypeVar("T", RunConfig, Architecture)

SCHEMAS = {RunConfig: (2, 1), Architecture: (1,)}
"""The versions of the JSON of each kind: the first is written, all are read. A new one comes with fields that the code
of before could not read; a run of version 1 names an architecture of the zoo, one of version 2 holds its own."""


def to_json(config: RunConfig | Architecture) -> dict[str, Any]:
    """`config` as plain JSON values, defaults included."""
    return {"schema": SCHEMAS[type(config)][0], **_converter().unstructure(config)}


def from_json(values: dict[str, Any], kind: type[T], *, where: str) -> T:
    """The config that `to_json` wrote; every field that does not fit is named in the error."""
    import cattrs

    values = dict(values)
    schema = values.pop("schema", None)
    if schema not in SCHEMAS[kind]:
        raise ConfigError(
            f"The schema of {where}",
            must=f"be {' or '.join(map(str, SCHEMAS[kind]))}",
            got=schema,
            then="It was written by another version of limner.",
        )
    try:
        return _converter().structure(values, kind)
    except cattrs.BaseValidationError as error:
        faults = "; ".join(cattrs.transform_error(error, path="config", format_exception=_described))
        raise ConfigError(
            where, must=f"hold a {kind.__name__}", got=faults, then="Correct these fields or write the file anew."
        ) from error


def _described(error: BaseException, kind: Any) -> str:
    """What is wrong with a field, in the words of the error where it has some of its own."""
    from cattrs.v import format_exception

    return str(error) if type(error) is ValueError else format_exception(error, kind)


@cache
def _converter() -> Any:
    import cattrs  # when it is needed: the command line's --help is not kept waiting
    from cattrs.gen import make_dict_unstructure_fn, override

    converter = cattrs.Converter(forbid_extra_keys=True)
    converter.register_unstructure_hook(Path, str)
    converter.register_structure_hook(Path, lambda value, _: Path(value))
    converter.register_unstructure_hook(EncoderConfig, lambda encoder: {"kind": encoder.kind, **asdict(encoder)})
    # what an architecture is without is not written, so that its fingerprint is the one of before these fields
    later = dict.fromkeys(("objective", "initial_logit_scale", "initial_logit_bias"), override(omit_if_default=True))
    converter.register_unstructure_hook(Architecture, make_dict_unstructure_fn(Architecture, converter, **later))

    def encoder(values: dict[str, Any], _: Any) -> EncoderConfig:
        kind = EncoderConfig.kinds.get(values["kind"])
        if kind is None:
            raise ValueError(f"{values['kind']!r} is no kind of encoder; there are {', '.join(EncoderConfig.kinds)}")
        return converter.structure({name: value for name, value in values.items() if name != "kind"}, kind)

    def model(value: str | dict[str, Any], _: Any) -> str | Architecture:
        return value if isinstance(value, str) else converter.structure(value, Architecture)

    def model_values(model: str | Architecture) -> str | dict[str, Any]:
        return model if isinstance(model, str) else converter.unstructure(model, Architecture)

    converter.register_structure_hook_func(lambda kind: kind is EncoderConfig, encoder)
    converter.register_structure_hook_func(lambda kind: kind == str | Architecture, model)
    converter.register_unstructure_hook_func(lambda kind: kind == str | Architecture, model_values)
    return converter
