"""The same model in three conventions: limner's, OpenAI's (which is open_clip's) and Hugging Face's. Pure functions.

```
config of theirs  ─> architecture_from_*  ─> Architecture ─> *_config  ─> config of theirs
tensors of theirs ─> from_openai, from_hf ─> limner's names ─> to_openai, to_hf ─> tensors of theirs
```

A setting of theirs that limner's towers do not have is an error that names it: a model that would compute something
else is never loaded. Tensors without a counterpart keep their names, so that whoever loads them can list them.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from limner.architecture import (
    OPENAI_VOCABULARY,
    Activation,
    Architecture,
    EncoderConfig,
    TextConfig,
    ViTConfig,
    count_layers,
    hf_blocks,
    openai_blocks,
)
from limner.data.tokenizer import EOS, SOS
from limner.errors import ModelError
from limner.store.tensors import Tensors

# --- tensor names ----------------------------------------------------------------------------------------------------

TRANSPOSED = {"visual.proj", "text_projection"}
"""OpenAI multiplies from the right by these two; a linear layer keeps them the other way round."""


def openai_names(shape: Architecture) -> dict[str, str]:
    """OpenAI's name of each of limner's tensors."""
    return {
        **_scalar_names(shape),
        "text.token_embedding.weight": "token_embedding.weight",
        "text.positional_embedding": "positional_embedding",
        "text.norm.weight": "ln_final.weight",
        "text.norm.bias": "ln_final.bias",
        "text.projection.weight": "text_projection",
        **openai_blocks("text.blocks", "transformer.resblocks", shape.text.layers),
        **shape.image.openai_names(),
    }


def _scalar_names(shape: Architecture) -> dict[str, str]:
    return {"log_logit_scale": "logit_scale"} | (
        {} if shape.initial_logit_bias is None else {"logit_bias": "logit_bias"}
    )


def to_openai(weights: Tensors, shape: Architecture) -> Tensors:
    """limner's tensors under OpenAI's names."""
    return {
        theirs: (weights[ours].T if theirs in TRANSPOSED else weights[ours]).contiguous()
        for ours, theirs in openai_names(shape).items()
    }


def from_openai(weights: Tensors, shape: Architecture) -> Tensors:
    """OpenAI's tensors under limner's names."""
    return _renamed(
        weights,
        {theirs: ours for ours, theirs in openai_names(shape).items()},
        lambda name, tensor: tensor.T.contiguous() if name in TRANSPOSED and tensor.ndim == 2 else tensor,
    )


def hf_names(shape: Architecture) -> dict[str, str]:
    """Hugging Face's name of each of limner's tensors; `{}` in one stands for three (`architecture.hf_blocks`).

    transformers' CLIPModel has no logit bias: it says that it does not know the one in the file, and goes on.
    """
    image = shape.image.hf_names()
    assert image is not None, "asked for an encoder that transformers has"
    return {
        **_scalar_names(shape),
        "text.token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "text.positional_embedding": "text_model.embeddings.position_embedding.weight",
        "text.norm.weight": "text_model.final_layer_norm.weight",
        "text.norm.bias": "text_model.final_layer_norm.bias",
        "text.projection.weight": "text_projection.weight",
        **hf_blocks("text.blocks", "text_model.encoder.layers", shape.text.layers),
        **image,
    }


def to_hf(weights: Tensors, shape: Architecture) -> Tensors:
    """limner's tensors of a ViT model under Hugging Face's names."""
    out: Tensors = {}
    for ours, theirs in hf_names(shape).items():
        parts = weights[ours].chunk(3) if "{}" in theirs else (weights[ours],)
        for letter, part in zip("qkv", parts, strict=False):
            out[theirs.format(letter)] = part.contiguous()
    return out


def from_hf(weights: Tensors, shape: Architecture) -> Tensors:
    """Hugging Face's tensors of a ViT model under limner's names. Old files' position_ids are counters, not weights."""
    weights = {name: tensor for name, tensor in weights.items() if not name.endswith("position_ids")}
    names = hf_names(shape)
    packed: Tensors = {}
    for ours, theirs in names.items():
        three = [theirs.format(letter) for letter in "qkv"]
        if "{}" in theirs and all(name in weights for name in three):
            packed[ours] = torch.cat([weights.pop(name) for name in three])
    return packed | _renamed(weights, {theirs: ours for ours, theirs in names.items()}, lambda _, tensor: tensor)


def _renamed(weights: Tensors, names: dict[str, str], change: Callable[[str, Tensor], Tensor]) -> Tensors:
    renamed = {names.get(name, name): change(name, tensor) for name, tensor in weights.items()}
    for name in ("log_logit_scale", "logit_bias"):
        if name in renamed:  # some files keep it as a vector of one element
            renamed[name] = renamed[name].reshape(())
    return renamed


# --- configs ---------------------------------------------------------------------------------------------------------


def architecture_from_weights(weights: Tensors, activation: Activation) -> Architecture:
    """The architecture that tensors in OpenAI's names belong to; attention heads are 64 wide, as in all of OpenAI's."""
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    try:
        text_width = shapes["ln_final.weight"][0]
        text = TextConfig(
            layers=count_layers(shapes, "transformer.resblocks."),
            width=text_width,
            heads=text_width // 64,
            vocab_size=shapes["token_embedding.weight"][0],
            context_length=shapes["positional_embedding"][0],
        )
        found = next(filter(None, (kind.from_openai(shapes) for kind in EncoderConfig.kinds.values())), None)
        if found is None:
            raise KeyError("visual.proj or visual.attnpool.positional_embedding")
        image, image_size = found
        return Architecture(
            image=image,
            text=text,
            embed_dim=shapes["text_projection"][1],
            image_size=image_size,
            activation=activation,
            **_objective(has_bias="logit_bias" in shapes),
        )
    except (KeyError, ValueError, IndexError) as error:
        raise ModelError(
            "The weights",
            must="be those of a CLIP in OpenAI's or open_clip's names",
            got=f"{len(weights)} tensors such as {', '.join(list(weights)[:3]) or 'none'}, without {error}",
            then="Pass the directory, with its config, instead of the file.",
        ) from error


def _objective(*, has_bias: bool) -> dict[str, Any]:
    """What a logit bias means for an architecture: open_clip has one for the sigmoid objective alone."""
    return {"objective": "sigmoid", "initial_logit_scale": 10.0, "initial_logit_bias": -10.0} if has_bias else {}


def architecture_from_open_clip(config: dict[str, Any], *, where: str) -> Architecture:
    """The architecture in an open_clip_config.json."""
    faults: list[str] = []
    model, preprocess = dict(config.get("model_cfg", {})), dict(config.get("preprocess_cfg", {}))
    vision, text = dict(model.pop("vision_cfg", {})), dict(model.pop("text_cfg", {}))
    quick = model.pop("quick_gelu", False)
    embed_dim, bias = model.pop("embed_dim", None), model.pop("init_logit_bias", None)
    model.pop("init_logit_scale", None)  # the weights have what came of it
    faults += _others("model_cfg", model, {"custom_text": False, "multimodal_cfg": None})

    size = vision.pop("image_size", 224)
    image = next(filter(None, (kind.from_open_clip(vision) for kind in EncoderConfig.kinds.values())), None)
    faults += _others(
        "vision_cfg",
        vision,
        {"mlp_ratio": 4.0, "pool_type": "tok", "pos_embed_type": "learnable", "patch_dropout": 0.0}
        | dict.fromkeys(_FLAGS, False)
        | {"ls_init_value": None, "act_kwargs": None, "norm_kwargs": None, "timm_model_name": None},
    )
    text_width = text.pop("width", 512)
    text_config = TextConfig(
        layers=text.pop("layers", 12),
        width=text_width,
        heads=text.pop("heads", 8),
        vocab_size=text.pop("vocab_size", OPENAI_VOCABULARY),
        context_length=text.pop("context_length", 77),
    )
    text.pop("hf_tokenizer_name", None)  # the directory's own tokenizer.json is read
    faults += _others(
        "text_cfg",
        text,
        {"mlp_ratio": 4.0, "pool_type": "argmax", "proj_type": "linear", "pad_id": 0, "eos_id": text.get("eos_id")}
        | dict.fromkeys(("embed_cls", "no_causal_mask", "proj_bias", *_FLAGS), False)
        | dict.fromkeys(("ls_init_value", "act_kwargs", "norm_kwargs", "hf_model_name", "tokenizer_kwargs"), None),
    )
    mean, std = preprocess.pop("mean", OPENAI.image_mean), preprocess.pop("std", OPENAI.image_std)
    of_no_effect = {name: preprocess[name] for name in ("size", "fill_color", "mode") if name in preprocess}
    shortest = {"interpolation": "bicubic", "resize_mode": "shortest"}
    faults += _others("preprocess_cfg", preprocess, shortest | of_no_effect)
    if not isinstance(embed_dim, int):
        faults.append("model_cfg.embed_dim is missing")
    if not isinstance(size, int):
        faults.append(f"vision_cfg.image_size is {size}, not one number")
    if image is None:
        faults.append("vision_cfg is of no encoder that limner has")
    _refuse(faults, where)
    assert image is not None and embed_dim is not None
    return Architecture(
        image=image,
        text=text_config,
        embed_dim=embed_dim,
        image_size=size,
        activation="quick_gelu" if quick else "gelu",
        image_mean=tuple(mean),
        image_std=tuple(std),
        **_objective(has_bias=bias is not None),
    )


_FLAGS = (
    *("attentional_pool", "no_ln_pre", "final_ln_after_pool", "output_tokens", "qk_norm", "scaled_cosine_attn"),
    *("scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"),
)


def open_clip_config(shape: Architecture, *, own_tokenizer: bool) -> dict[str, Any] | None:
    """The open_clip_config.json of an architecture; None where open_clip has no such encoder."""
    text, vision = shape.text, shape.image.open_clip_vision()
    if vision is None:
        return None
    bias = shape.initial_logit_bias
    scalars = {} if bias is None else {"init_logit_scale": math.log(shape.initial_logit_scale), "init_logit_bias": bias}
    text_cfg: dict[str, Any] = {
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
        "width": text.width,
        "heads": text.heads,
        "layers": text.layers,
    }
    if own_tokenizer:
        text_cfg["hf_tokenizer_name"] = "."  # any name: open_clip then reads the directory's own tokenizer.json
    return {
        "model_cfg": {
            "embed_dim": shape.embed_dim,
            "quick_gelu": shape.activation == "quick_gelu",
            "vision_cfg": {"image_size": shape.image_size, **vision},
            "text_cfg": text_cfg,
            **scalars,
        },
        "preprocess_cfg": {
            "mean": list(shape.image_mean),
            "std": list(shape.image_std),
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }


def architecture_from_hf(config: dict[str, Any], preprocessor: dict[str, Any], *, where: str) -> Architecture:
    """The architecture in the config.json of a Hugging Face CLIPModel and its preprocessor_config.json.

    What an old config leaves out has Hugging Face's default, which is ViT-B/32.
    """
    text = {**(config.get("text_config") or {}), **(config.get("text_config_dict") or {})}
    vision = {**(config.get("vision_config") or {}), **(config.get("vision_config_dict") or {})}
    text_width, width = text.get("hidden_size", 512), vision.get("hidden_size", 768)
    vocab_size = text.get("vocab_size", OPENAI_VOCABULARY)
    activations = {text.get("hidden_act", "quick_gelu"), vision.get("hidden_act", "quick_gelu")}
    image_size = vision.get("image_size", 224)
    faults = [
        f"{name} is {got!r}, not {wanted!r}"
        for name, got, wanted in (
            ("text_config.intermediate_size", text.get("intermediate_size", 2048), 4 * text_width),
            ("vision_config.intermediate_size", vision.get("intermediate_size", 3072), 4 * width),
            ("text_config.layer_norm_eps", text.get("layer_norm_eps", 1e-5), 1e-5),
            ("vision_config.layer_norm_eps", vision.get("layer_norm_eps", 1e-5), 1e-5),
            ("vision_config.num_channels", vision.get("num_channels", 3), 3),
            ("preprocessor resample", preprocessor.get("resample", 3), 3),
            ("preprocessor rescale_factor", preprocessor.get("rescale_factor", 1 / 255), 1 / 255),
            ("preprocessor size", _side(preprocessor.get("size", image_size), "shortest_edge"), image_size),
            ("preprocessor crop_size", _side(preprocessor.get("crop_size", image_size), "height"), image_size),
            *(
                (f"preprocessor {step}", preprocessor.get(step, True), True)
                for step in ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
            ),
        )
        if got != wanted
    ]
    # 2 is what old configs say whatever the tokenizer; transformers then looks for the highest id, as limner does
    if (end := text.get("eos_token_id", OPENAI_VOCABULARY - 1)) not in (2, vocab_size - 1):
        faults.append(f"text_config.eos_token_id is {end}, not the highest id {vocab_size - 1}")
    if not activations <= {"quick_gelu", "gelu"} or len(activations) > 1:
        faults.append(f"hidden_act is {' and '.join(sorted(activations))}, not quick_gelu or gelu")
    _refuse(faults, where)
    return Architecture(
        image=ViTConfig(
            layers=vision.get("num_hidden_layers", 12),
            width=width,
            heads=vision.get("num_attention_heads", 12),
            patch_size=vision.get("patch_size", 32),
        ),
        text=TextConfig(
            layers=text.get("num_hidden_layers", 12),
            width=text_width,
            heads=text.get("num_attention_heads", 8),
            vocab_size=vocab_size,
            context_length=text.get("max_position_embeddings", 77),
        ),
        embed_dim=config.get("projection_dim", 512),
        image_size=image_size,
        activation=activations.pop(),
        image_mean=tuple(preprocessor.get("image_mean", OPENAI.image_mean)),
        image_std=tuple(preprocessor.get("image_std", OPENAI.image_std)),
    )


def _side(size: int | dict[str, int], key: str) -> int | None:
    """The side of an image in a preprocessor_config.json, which has a number or a dictionary of them."""
    return size.get(key) if isinstance(size, dict) else size


def hf_config(shape: Architecture) -> dict[str, Any]:
    """The config.json of a Hugging Face CLIPModel; without a model where it has no such tower (ResNets)."""
    text, vision = shape.text, shape.image.hf_vision()
    if vision is None:
        return {}
    both = {"hidden_act": shape.activation, "layer_norm_eps": 1e-5, "projection_dim": shape.embed_dim}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": shape.embed_dim,
        "logit_scale_init_value": 2.6592,
        "torch_dtype": "float32",
        "text_config": {
            "model_type": "clip_text_model",
            "hidden_size": text.width,
            "intermediate_size": 4 * text.width,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "max_position_embeddings": text.context_length,
            "vocab_size": text.vocab_size,
            "bos_token_id": text.vocab_size - 2,
            "eos_token_id": text.vocab_size - 1,
            "pad_token_id": text.vocab_size - 1,
            **both,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "image_size": shape.image_size,
            **vision,
            "num_channels": 3,
            **both,
        },
    }


def tokenizer_config(shape: Architecture) -> dict[str, Any]:
    """The tokenizer_config.json: what transformers wants to know beside tokenizer.json."""
    return {
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": SOS,
        "eos_token": EOS,
        "unk_token": EOS,
        "pad_token": EOS,
        "model_max_length": shape.text.context_length,
    }


def preprocessor_config(shape: Architecture) -> dict[str, Any]:
    """The preprocessor_config.json of Hugging Face's CLIPImageProcessor."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": shape.image_size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": shape.image_size, "width": shape.image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(shape.image_mean),
        "image_std": list(shape.image_std),
    }


OPENAI = Architecture(
    image=ViTConfig(layers=12, width=768, heads=12, patch_size=32),
    text=TextConfig(layers=12, width=512, heads=8, vocab_size=OPENAI_VOCABULARY),
    embed_dim=512,
    image_size=224,
)
"""Whose mean and deviation of the pixels hold where a config says nothing."""


def _others(section: str, settings: dict[str, Any], neutral: dict[str, Any]) -> list[str]:
    """What is left of `settings` and is not the value that changes nothing."""
    return [
        f"{section}.{name} is {value!r}"
        for name, value in settings.items()
        if value is not None and (name not in neutral or value != neutral[name])
    ]


def _refuse(faults: list[str], where: str) -> None:
    if faults:
        raise ModelError(
            f"The settings in {where}",
            must="be those of a CLIP as in the paper",
            got=f"{len(faults)} that limner's encoders do not have: {'; '.join(faults)}",
            then="Only models of the paper's kind can be loaded.",
        )
