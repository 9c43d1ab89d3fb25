"""What a model is, and the models that have a name, as data: the standard library only.

An `Architecture` fixes the shape of a CLIP and the function that it computes. A run and a model directory store theirs
whole; `ZOO` holds the paper's nine (section 2.4, tables 19 and 20) and the small ones of the recipes by name.

An image encoder is a config here and a module in `model/` (`model.clip.ENCODERS`). Whatever the rest of limner needs to
know about it, from Adam's betas to the names of its tensors in other people's files, is a fact of its config.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

from limner.errors import ConfigError, did_you_mean, named, require

Activation = Literal["gelu", "quick_gelu"]
OPENAI_VOCABULARY = 49_408
"""Tokens of the paper's vocabulary."""

Names = dict[str, str]
"""Somebody else's name of each of limner's tensors."""
Shapes = Mapping[str, tuple[int, ...]]
"""The shapes of tensors by name."""


# --- image encoders --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(ABC):
    """What every image encoder has to say about itself. One that leaves something out cannot be defined or made."""

    kind: ClassVar[str]
    """Its name in config files, and in `model.clip.ENCODERS`."""
    title: ClassVar[str]
    """Its name for people."""
    beta2: ClassVar[float]
    eps: ClassVar[float]
    """Adam's, in the paper (table 18)."""

    kinds: ClassVar[dict[str, type["EncoderConfig"]]] = {}
    """All of them by kind."""

    def __init_subclass__(cls) -> None:
        missing = [fact for fact in ("kind", "title", "beta2", "eps") if fact not in vars(cls)]
        what = f"The encoder {cls.__name__}"
        require(not missing, what, f"say its {', '.join(missing)}", "no value of its own", "Set it in the class.")
        other = cls.kinds.get(cls.kind, cls).__qualname__
        got = f"{cls.kind!r}, which is {other}'s"
        require(other == cls.__qualname__, what, "have a kind of its own", got, "Rename it.")
        cls.kinds[cls.kind] = cls

    @property
    @abstractmethod
    def stride(self) -> int:
        """Pixels between positions of the grid that it ends with; an image's side is a multiple of it."""

    @abstractmethod
    def openai_names(self) -> Names:
        """OpenAI's and open_clip's names of the encoder's tensors (`image.` in limner's)."""

    @abstractmethod
    def hf_names(self) -> Names | None:
        """The names in transformers' CLIPModel; None: it has no such encoder."""

    @abstractmethod
    def hf_vision(self) -> dict[str, Any] | None:
        """What is its own in the vision_config of transformers' CLIPModel; None: it has no such encoder."""

    @abstractmethod
    def open_clip_vision(self) -> dict[str, Any] | None:
        """What is its own in the vision_cfg of an open_clip_config.json; None: open_clip has no such encoder."""

    @classmethod
    @abstractmethod
    def from_open_clip(cls, vision: dict[str, Any]) -> "EncoderConfig | None":
        """The encoder that a vision_cfg describes, whose fields are taken out of it; None if it is another kind."""

    @classmethod
    @abstractmethod
    def from_openai(cls, shapes: Shapes) -> "tuple[EncoderConfig, int] | None":
        """The encoder that tensors in OpenAI's names belong to, and the side of its images in pixels; None if it is
        another kind. Heads, which do not show, are those of OpenAI's models. Raises `KeyError` if some are missing."""


@dataclass(frozen=True, kw_only=True)
class ResNetConfig(EncoderConfig):
    """A modified ResNet (paper section 2.4): ResNet-D stem, anti-aliased strides, attention pooling."""

    kind: ClassVar[str] = "resnet"
    title: ClassVar[str] = "Modified ResNet"
    beta2: ClassVar[float] = 0.999
    eps: ClassVar[float] = 1e-8

    layers: tuple[int, ...]
    """Bottleneck blocks in each stage."""
    width: int
    """Channels after the stem; stage k has `width * 2**k` inside its blocks and four times that between them."""
    heads: int
    """Heads of the attention pooling."""

    def __post_init__(self) -> None:
        require_heads("the attention pooling", self.grid_width, self.heads)

    @property
    def grid_width(self) -> int:
        """Channels of the last grid."""
        return 4 * self.width * 2 ** (len(self.layers) - 1)

    @property
    def stride(self) -> int:
        """Pixels between positions of the last grid."""
        return 4 * 2 ** (len(self.layers) - 1)

    def openai_names(self) -> Names:
        """OpenAI's: stages of blocks, where limner counts the blocks through."""
        return dict(self._openai_names())

    def _openai_names(self) -> Iterator[tuple[str, str]]:
        norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

        def unit(ours: str, theirs: str, conv: str, norms: str, our_conv: str, our_norm: str) -> Iterator[Any]:
            yield f"{ours}.{our_conv}.weight", f"{theirs}.{conv}.weight"
            for part in norm:
                yield f"{ours}.{our_norm}.{part}", f"{theirs}.{norms}.{part}"

        for i in (1, 2, 3):
            yield from unit("image", "visual", f"conv{i}", f"bn{i}", f"conv{i}", f"bn{i}")
        block = 0
        for stage, blocks in enumerate(self.layers):
            for position in range(blocks):
                ours, theirs = f"image.blocks.{block}", f"visual.layer{stage + 1}.{position}"
                for i in (1, 2, 3):
                    yield from unit(ours, theirs, f"conv{i}", f"bn{i}", f"conv{i}", f"bn{i}")
                if position == 0:  # the width always changes here
                    yield from unit(ours, theirs, "downsample.0", "downsample.1", "shortcut.1", "shortcut.2")
                block += 1
        yield "image.attention_pool.positional_embedding", "visual.attnpool.positional_embedding"
        for linear in ("q_proj", "k_proj", "v_proj", "c_proj"):
            for part in ("weight", "bias"):
                yield f"image.attention_pool.{linear}.{part}", f"visual.attnpool.{linear}.{part}"

    def hf_names(self) -> None:
        """transformers has no modified ResNet."""

    def hf_vision(self) -> None:
        """transformers has no modified ResNet."""

    def open_clip_vision(self) -> dict[str, Any] | None:
        """open_clip's has four stages."""
        if len(self.layers) != 4:
            return None
        head_width = self.width * 32 // self.heads
        return {"layers": list(self.layers), "width": self.width, "head_width": head_width, "patch_size": None}

    @classmethod
    def from_open_clip(cls, vision: dict[str, Any]) -> "EncoderConfig | None":
        """A ResNet's layers are a list there."""
        if not isinstance(vision.get("layers"), list):
            return None
        width, head_width = vision.pop("width", 768), vision.pop("head_width", 64)
        vision.pop("patch_size", None)
        return cls(layers=tuple(vision.pop("layers")), width=width, heads=width * 32 // head_width)

    @classmethod
    def from_openai(cls, shapes: Shapes) -> "tuple[EncoderConfig, int] | None":
        """Four stages with heads of 64."""
        if "visual.attnpool.positional_embedding" not in shapes:
            return None
        width = shapes["visual.conv3.weight"][0]
        config = cls(
            layers=tuple(count_layers(shapes, f"visual.layer{stage}.") for stage in (1, 2, 3, 4)),
            width=width,
            heads=width // 2,
        )
        side = round((shapes["visual.attnpool.positional_embedding"][0] - 1) ** 0.5)
        return config, config.stride * side


@dataclass(frozen=True, kw_only=True)
class ViTConfig(EncoderConfig):
    """A Vision Transformer (paper section 2.4) with a LayerNorm before the first block."""

    kind: ClassVar[str] = "vit"
    title: ClassVar[str] = "Vision Transformer"
    beta2: ClassVar[float] = 0.98
    eps: ClassVar[float] = 1e-6

    layers: int
    width: int
    heads: int
    patch_size: int

    def __post_init__(self) -> None:
        require_heads("the ViT", self.width, self.heads)

    @property
    def stride(self) -> int:
        """Pixels between positions of the grid."""
        return self.patch_size

    def openai_names(self) -> Names:
        """OpenAI's."""
        return {
            "image.patch_embedding.weight": "visual.conv1.weight",
            "image.class_embedding": "visual.class_embedding",
            "image.positional_embedding": "visual.positional_embedding",
            "image.norm_before.weight": "visual.ln_pre.weight",
            "image.norm_before.bias": "visual.ln_pre.bias",
            "image.norm_after.weight": "visual.ln_post.weight",
            "image.norm_after.bias": "visual.ln_post.bias",
            "image.projection.weight": "visual.proj",
            **openai_blocks("image.blocks", "visual.transformer.resblocks", self.layers),
        }

    def hf_names(self) -> Names:
        """CLIPVisionModel's."""
        return {
            "image.patch_embedding.weight": "vision_model.embeddings.patch_embedding.weight",
            "image.class_embedding": "vision_model.embeddings.class_embedding",
            "image.positional_embedding": "vision_model.embeddings.position_embedding.weight",
            "image.norm_before.weight": "vision_model.pre_layrnorm.weight",  # sic
            "image.norm_before.bias": "vision_model.pre_layrnorm.bias",
            "image.norm_after.weight": "vision_model.post_layernorm.weight",
            "image.norm_after.bias": "vision_model.post_layernorm.bias",
            "image.projection.weight": "visual_projection.weight",
            **hf_blocks("image.blocks", "vision_model.encoder.layers", self.layers),
        }

    def hf_vision(self) -> dict[str, Any]:
        """CLIPVisionConfig's fields."""
        return {
            "hidden_size": self.width,
            "intermediate_size": 4 * self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "patch_size": self.patch_size,
        }

    def open_clip_vision(self) -> dict[str, Any]:
        """open_clip gives the width of a head, not their number."""
        head_width = self.width // self.heads
        return {
            "layers": self.layers,
            "width": self.width,
            "head_width": head_width,
            "patch_size": self.patch_size,
        }

    @classmethod
    def from_open_clip(cls, vision: dict[str, Any]) -> "EncoderConfig | None":
        """What is left out has open_clip's defaults."""
        if isinstance(vision.get("layers"), list):
            return None
        width, head_width = vision.pop("width", 768), vision.pop("head_width", 64)
        patch_size, layers = vision.pop("patch_size", 16), vision.pop("layers", 12)
        return cls(layers=layers, width=width, heads=width // head_width, patch_size=patch_size)

    @classmethod
    def from_openai(cls, shapes: Shapes) -> "tuple[EncoderConfig, int] | None":
        """Heads of 64."""
        if "visual.proj" not in shapes:
            return None
        width, _, patch_size, _ = shapes["visual.conv1.weight"]
        layers = count_layers(shapes, "visual.transformer.resblocks.")
        grid = round((shapes["visual.positional_embedding"][0] - 1) ** 0.5)
        return cls(layers=layers, width=width, heads=width // 64, patch_size=patch_size), grid * patch_size


def require_heads(what: str, width: int, heads: int) -> None:
    """Raise `ConfigError` unless `heads` divide `width`."""
    fine = heads >= 1 and width % heads == 0
    require(fine, f"The heads of {what}", f"divide its width {width}", heads, "Most models have heads of 64.")


def count_layers(shapes: Shapes, prefix: str) -> int:
    """How many numbers come after `prefix` in the names."""
    return len({name.removeprefix(prefix).split(".")[0] for name in shapes if name.startswith(prefix)})


def openai_blocks(ours: str, theirs: str, layers: int) -> Names:
    """OpenAI's names of the tensors of `layers` transformer blocks."""
    block = {
        "norm_1": "ln_1.",
        "attention.in_proj": "attn.in_proj_",
        "attention.out_proj": "attn.out_proj.",
        "norm_2": "ln_2.",
        "mlp.inwards": "mlp.c_fc.",
        "mlp.outwards": "mlp.c_proj.",
    }
    return {
        f"{ours}.{layer}.{a}.{part}": f"{theirs}.{layer}.{b}{part}"
        for layer in range(layers)
        for a, b in block.items()
        for part in ("weight", "bias")
    }


def hf_blocks(ours: str, theirs: str, layers: int) -> Names:
    """transformers' names of the tensors of `layers` transformer blocks.

    `{}` in a name: query, key and value are three tensors there and one, in this order, here.
    """
    block = {
        "norm_1": "layer_norm1",
        "attention.in_proj": "self_attn.{}_proj",
        "attention.out_proj": "self_attn.out_proj",
        "norm_2": "layer_norm2",
        "mlp.inwards": "mlp.fc1",
        "mlp.outwards": "mlp.fc2",
    }
    return {
        f"{ours}.{layer}.{a}.{part}": f"{theirs}.{layer}.{b}.{part}"
        for layer in range(layers)
        for a, b in block.items()
        for part in ("weight", "bias")
    }


# --- the whole -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The causal text transformer (paper section 2.4)."""

    layers: int
    width: int
    heads: int
    vocab_size: int
    context_length: int = 77
    """Positions, [SOS] and [EOS] included."""

    def __post_init__(self) -> None:
        require_heads("the text encoder", self.width, self.heads)
        require(
            self.context_length >= 3,
            "The context length of the text encoder",
            "be at least 3",
            self.context_length,
            "[SOS] and [EOS] take two of it.",
        )


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Everything that fixes the shape of a CLIP and the function that it computes."""

    image: EncoderConfig
    text: TextConfig
    embed_dim: int
    image_size: int
    """Pixels on each side of the square image."""
    activation: Activation = "quick_gelu"
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    objective: str = "contrastive"
    """What it is trained for, a name in `limner.objectives.table.OBJECTIVES`: it says how similarities become
    probabilities."""
    initial_logit_scale: float = 1 / 0.07
    """The logit scale of random weights (paper section 2.5)."""
    initial_logit_bias: float | None = None
    """The logit bias of random weights; None: the model has none."""

    def __post_init__(self) -> None:
        stride = self.image.stride
        require(
            self.image_size >= stride and self.image_size % stride == 0,
            "The size of images",
            f"be a multiple of {stride} pixels, the image encoder's patch or stride",
            self.image_size,
            f"Take {max(1, round(self.image_size / stride)) * stride}.",
        )
        require(
            self.activation in get_args(Activation),
            "The activation",
            f"be one of {', '.join(get_args(Activation))}",
            repr(self.activation),
            "OpenAI's weights have quick_gelu.",
        )
        for what, values, least in (("mean", self.image_mean, -math.inf), ("deviation", self.image_std, 0)):
            several = list(values) if isinstance(values, Iterable) else []
            are_numbers = len(several) == 3 and all(isinstance(value, int | float) for value in several)
            require(
                are_numbers and all(abs(value) < 1e30 and value > least for value in several),
                f"The {what} of the pixels",
                "be three finite numbers, one for each colour" + (", above 0" if least == 0 else ""),
                ", ".join(map(named, several[:4])) or named(values),
                "Correct image_mean and image_std in the model's config.",
            )


# --- by name ---------------------------------------------------------------------------------------------------------


SCALED_STAGES = {4: (4, 6, 10, 6), 16: (6, 8, 18, 8), 64: (3, 15, 36, 10)}
"""Blocks in each stage of the paper's scaled ResNets. The totals follow the rule; how they are spread over the stages
does not: the further, the more of them the paper puts into the third stage."""


def _text(width: int) -> TextConfig:
    return TextConfig(layers=12, width=width, heads=width // 64, vocab_size=OPENAI_VOCABULARY)


def _vit(*, layers: int, width: int, patch_size: int, text_width: int, image_size: int = 224) -> Architecture:
    return Architecture(
        image=ViTConfig(layers=layers, width=width, heads=width // 64, patch_size=patch_size),
        text=_text(text_width),
        embed_dim=text_width,
        image_size=image_size,
    )


def _resnet(*, layers: tuple[int, ...], width: int, embed_dim: int, image_size: int, text_width: int) -> Architecture:
    return Architecture(
        image=ResNetConfig(layers=layers, width=width, heads=width // 2),
        text=_text(text_width),
        embed_dim=embed_dim,
        image_size=image_size,
    )


def scale_resnet(compute: int) -> Architecture:
    """RN50 scaled to about `compute` times its compute (paper section 2.4): equally in width, depth and resolution.

    A network's compute is proportional to its depth and to the squares of its width and resolution, so depth grows by
    compute^(1/3), width and resolution by compute^(1/6). (About: RN50x64 takes 45 times the FLOPs of RN50, for stem and
    pooling do not grow in depth.) Widths are rounded to multiples of 16, resolutions up to multiples of 32; the text
    encoder grows in width alone, and so does the embedding with it. 4, 16 and 64 are the paper's RN50x4, x16 and x64,
    whose blocks are spread by `SCALED_STAGES`; for another number every stage grows by the same factor.
    """
    if compute < 1:
        raise ConfigError("compute of scale_resnet", must="be at least 1", got=compute, then="The paper: 4, 16, 64.")
    factor = compute ** (1 / 3)
    width = 16 * round(64 * factor**0.5 / 16)
    return _resnet(
        layers=SCALED_STAGES.get(compute) or tuple(round(factor * blocks) for blocks in (3, 4, 6, 3)),
        width=width,
        embed_dim=8 * width,
        image_size=32 * math.ceil(round(224 * factor**0.5 / 32, 6)),
        text_width=8 * width,
    )


ZOO: dict[str, Architecture] = {
    "RN50": _resnet(layers=(3, 4, 6, 3), width=64, embed_dim=1024, image_size=224, text_width=512),
    "RN101": _resnet(layers=(3, 4, 23, 3), width=64, embed_dim=512, image_size=224, text_width=512),
    "RN50x4": scale_resnet(4),
    "RN50x16": scale_resnet(16),
    "RN50x64": scale_resnet(64),
    "ViT-B/32": _vit(layers=12, width=768, patch_size=32, text_width=512),
    "ViT-B/16": _vit(layers=12, width=768, patch_size=16, text_width=512),
    "ViT-L/14": _vit(layers=24, width=1024, patch_size=14, text_width=768),
    "ViT-L/14@336px": _vit(layers=24, width=1024, patch_size=14, text_width=768, image_size=336),
    "RN-nano": Architecture(  # handwritten digits, tests
        image=ResNetConfig(layers=(1, 1), width=16, heads=4),
        text=TextConfig(layers=1, width=64, heads=2, vocab_size=OPENAI_VOCABULARY),
        embed_dim=64,
        image_size=32,
    ),
    "RN-mini": Architecture(  # emoji, logos, icons
        image=ResNetConfig(layers=(1, 1, 2), width=32, heads=16),
        text=TextConfig(layers=2, width=128, heads=4, vocab_size=OPENAI_VOCABULARY),
        embed_dim=128,
        image_size=48,
    ),
    "ViT-mini": Architecture(
        image=ViTConfig(layers=6, width=192, heads=6, patch_size=8),
        text=TextConfig(layers=2, width=128, heads=4, vocab_size=OPENAI_VOCABULARY),
        embed_dim=128,
        image_size=48,
    ),
    "RN-small": Architecture(  # photographs, some ten thousand pairs
        image=ResNetConfig(layers=(1, 2, 2, 1), width=32, heads=16),
        text=TextConfig(layers=4, width=256, heads=4, vocab_size=OPENAI_VOCABULARY),
        embed_dim=256,
        image_size=96,
    ),
    "ViT-small": Architecture(
        image=ViTConfig(layers=8, width=256, heads=8, patch_size=12),
        text=TextConfig(layers=4, width=256, heads=4, vocab_size=OPENAI_VOCABULARY),
        embed_dim=256,
        image_size=96,
    ),
}

PAPER = tuple(ZOO)[:9]
"""The paper's nine, in its order."""


def architecture(model: str | Architecture) -> Architecture:
    """The architecture called `model`; one of your own as it is. Raises `ConfigError` for an unknown name."""
    if isinstance(model, Architecture):
        return model
    if model not in ZOO:
        raise ConfigError(
            "The model name",
            must=f"be one of {', '.join(ZOO)}",
            got=repr(model),
            then=did_you_mean(model, ZOO, "limner models lists them."),
        )
    return ZOO[model]


def name_of(model: str | Architecture) -> str:
    """The zoo's name of an architecture, whatever its vocabulary and objective; else what it is made of."""
    if isinstance(model, str):
        return model
    for name, known in ZOO.items():
        text = replace(known.text, vocab_size=model.text.vocab_size, context_length=model.text.context_length)
        same = ("objective", "initial_logit_scale", "initial_logit_bias")
        if replace(known, text=text, **{field: getattr(model, field) for field in same}) == model:
            return name
    return f"{model.image.title}, embedding of {model.embed_dim}"
