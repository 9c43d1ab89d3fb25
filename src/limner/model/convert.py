"""The same model in three conventions: limner's, OpenAI's (which is open_clip's) and Hugging Face's. Pure functions.

```
config of theirs  ─> architecture_from_*  ─> Architecture ─> *_config  ─> config of theirs
tensors of theirs ─> from_openai, from_hf ─> limner's names ─> to_openai, to_hf ─> tensors of theirs
```

A setting of theirs that limner's towers do not have is an error that names it: a model that would compute something
else is never loaded. Tensors without a counterpart keep their names, so that whoever loads them can list them.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from limner.config import Activation, Architecture, ResNetConfig, TextConfig, ViTConfig
from limner.data.tokenizer import EOS, OPENAI_VOCABULARY, SOS
from limner.errors import ModelError
from limner.model.tensors import Tensors

# --- tensor names ----------------------------------------------------------------------------------------------------

_BLOCK_OPENAI = {
    "norm_1.weight": "ln_1.weight",
    "norm_1.bias": "ln_1.bias",
    "attention.in_proj.weight": "attn.in_proj_weight",
    "attention.in_proj.bias": "attn.in_proj_bias",
    "attention.out_proj.weight": "attn.out_proj.weight",
    "attention.out_proj.bias": "attn.out_proj.bias",
    "norm_2.weight": "ln_2.weight",
    "norm_2.bias": "ln_2.bias",
    "mlp.inwards.weight": "mlp.c_fc.weight",
    "mlp.inwards.bias": "mlp.c_fc.bias",
    "mlp.outwards.weight": "mlp.c_proj.weight",
    "mlp.outwards.bias": "mlp.c_proj.bias",
}
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
TRANSPOSED = {"visual.proj", "text_projection"}
"""OpenAI multiplies from the right by these two; a linear layer keeps them the other way round."""


def openai_names(shape: Architecture) -> dict[str, str]:
    """OpenAI's name of each of limner's tensors."""
    names = {
        "log_logit_scale": "logit_scale",
        "text.token_embedding.weight": "token_embedding.weight",
        "text.positional_embedding": "positional_embedding",
        "text.norm.weight": "ln_final.weight",
        "text.norm.bias": "ln_final.bias",
        "text.projection.weight": "text_projection",
    }
    names |= _blocks("text.blocks", "transformer.resblocks", shape.text.layers)
    if isinstance(shape.image, ViTConfig):
        return names | {
            "image.patch_embedding.weight": "visual.conv1.weight",
            "image.class_embedding": "visual.class_embedding",
            "image.positional_embedding": "visual.positional_embedding",
            "image.norm_before.weight": "visual.ln_pre.weight",
            "image.norm_before.bias": "visual.ln_pre.bias",
            "image.norm_after.weight": "visual.ln_post.weight",
            "image.norm_after.bias": "visual.ln_post.bias",
            "image.projection.weight": "visual.proj",
            **_blocks("image.blocks", "visual.transformer.resblocks", shape.image.layers),
        }
    return names | dict(_resnet(shape.image))


def _blocks(ours: str, theirs: str, layers: int) -> dict[str, str]:
    return {f"{ours}.{layer}.{a}": f"{theirs}.{layer}.{b}" for layer in range(layers) for a, b in _BLOCK_OPENAI.items()}


def _resnet(config: ResNetConfig) -> Iterator[tuple[str, str]]:
    def unit(ours: str, theirs: str, conv: str, norm: str, ours_conv: str, ours_norm: str) -> Iterator[tuple[str, str]]:
        yield f"{ours}.{ours_conv}.weight", f"{theirs}.{conv}.weight"
        for part in _NORM:
            yield f"{ours}.{ours_norm}.{part}", f"{theirs}.{norm}.{part}"

    for i in (1, 2, 3):
        yield from unit("image", "visual", f"conv{i}", f"bn{i}", f"conv{i}", f"bn{i}")
    block = 0
    for stage, blocks in enumerate(config.layers):
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
    """Hugging Face's name of each of limner's tensors of a ViT model.

    `{}` in a name: query, key and value are three tensors there and one, in this order, here.
    """
    assert isinstance(shape.image, ViTConfig)
    names = {
        "log_logit_scale": "logit_scale",
        "text.token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "text.positional_embedding": "text_model.embeddings.position_embedding.weight",
        "text.norm.weight": "text_model.final_layer_norm.weight",
        "text.norm.bias": "text_model.final_layer_norm.bias",
        "text.projection.weight": "text_projection.weight",
        "image.patch_embedding.weight": "vision_model.embeddings.patch_embedding.weight",
        "image.class_embedding": "vision_model.embeddings.class_embedding",
        "image.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "image.norm_before.weight": "vision_model.pre_layrnorm.weight",  # sic
        "image.norm_before.bias": "vision_model.pre_layrnorm.bias",
        "image.norm_after.weight": "vision_model.post_layernorm.weight",
        "image.norm_after.bias": "vision_model.post_layernorm.bias",
        "image.projection.weight": "visual_projection.weight",
    }
    for ours, theirs, layers in (
        ("image.blocks", "vision_model.encoder.layers", shape.image.layers),
        ("text.blocks", "text_model.encoder.layers", shape.text.layers),
    ):
        for layer in range(layers):
            for a, b in (
                ("norm_1", "layer_norm1"),
                ("attention.in_proj", "self_attn.{}_proj"),
                ("attention.out_proj", "self_attn.out_proj"),
                ("norm_2", "layer_norm2"),
                ("mlp.inwards", "mlp.fc1"),
                ("mlp.outwards", "mlp.fc2"),
            ):
                for part in ("weight", "bias"):
                    names[f"{ours}.{layer}.{a}.{part}"] = f"{theirs}.{layer}.{b}.{part}"
    return names


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
    if "log_logit_scale" in renamed:  # some files keep it as a vector of one element
        renamed["log_logit_scale"] = renamed["log_logit_scale"].reshape(())
    return renamed


# --- configs ---------------------------------------------------------------------------------------------------------


def architecture_from_weights(weights: Tensors, activation: Activation) -> Architecture:
    """The architecture that tensors in OpenAI's names belong to; attention heads are 64 wide, as in all of OpenAI's."""
    try:
        text_width = weights["ln_final.weight"].shape[0]
        vocab_size, context_length = len(weights["token_embedding.weight"]), len(weights["positional_embedding"])
        text = TextConfig(
            layers=_count(weights, "transformer.resblocks."),
            width=text_width,
            heads=text_width // 64,
            vocab_size=vocab_size,
            context_length=context_length,
        )
        image: ViTConfig | ResNetConfig
        if "visual.proj" in weights:
            width, _, patch_size, _ = weights["visual.conv1.weight"].shape
            grid = round((len(weights["visual.positional_embedding"]) - 1) ** 0.5)
            layers = _count(weights, "visual.transformer.resblocks.")
            image = ViTConfig(layers=layers, width=width, heads=width // 64, patch_size=patch_size)
            image_size = grid * patch_size
        else:
            width = weights["visual.conv3.weight"].shape[0]
            stages = tuple(_count(weights, f"visual.layer{stage}.") for stage in (1, 2, 3, 4))
            image = ResNetConfig(layers=stages, width=width, heads=width // 2)
            image_size = 32 * round((len(weights["visual.attnpool.positional_embedding"]) - 1) ** 0.5)
        return Architecture(
            image=image,
            text=text,
            embed_dim=weights["text_projection"].shape[1],
            image_size=image_size,
            activation=activation,
        )
    except (KeyError, ValueError, IndexError) as error:
        raise ModelError(
            "The weights",
            must="be those of a CLIP in OpenAI's or open_clip's names",
            got=f"{len(weights)} tensors such as {', '.join(list(weights)[:3]) or 'none'}, without {error}",
            then="Pass the directory, with its config, instead of the file.",
        ) from error


def _count(weights: Tensors, prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in weights if name.startswith(prefix)})


def architecture_from_open_clip(config: dict[str, Any], *, where: str) -> Architecture:
    """The architecture in an open_clip_config.json."""
    faults: list[str] = []
    model, preprocess = dict(config.get("model_cfg", {})), dict(config.get("preprocess_cfg", {}))
    vision, text = dict(model.pop("vision_cfg", {})), dict(model.pop("text_cfg", {}))
    quick = model.pop("quick_gelu", False)
    embed_dim = model.pop("embed_dim", None)
    faults += _others("model_cfg", model, {"custom_text": False, "init_logit_bias": None, "multimodal_cfg": None})

    width, size = vision.pop("width", 768), vision.pop("image_size", 224)
    head_width, patch_size = vision.pop("head_width", 64), vision.pop("patch_size", 16)
    layers = vision.pop("layers", 12)
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
    _refuse(faults, where)
    image = (
        ResNetConfig(layers=tuple(layers), width=width, heads=width * 32 // head_width)
        if isinstance(layers, list)
        else ViTConfig(layers=layers, width=width, heads=width // head_width, patch_size=patch_size)
    )
    return Architecture(
        image=image,
        text=text_config,
        embed_dim=embed_dim,
        image_size=size,
        activation="quick_gelu" if quick else "gelu",
        image_mean=tuple(mean),
        image_std=tuple(std),
    )


_FLAGS = (
    *("attentional_pool", "no_ln_pre", "final_ln_after_pool", "output_tokens", "qk_norm", "scaled_cosine_attn"),
    *("scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"),
)


def open_clip_config(shape: Architecture, *, own_tokenizer: bool) -> dict[str, Any] | None:
    """The open_clip_config.json of an architecture; None where open_clip has no such tower (not four ResNet stages)."""
    image, text = shape.image, shape.text
    if isinstance(image, ResNetConfig):
        if len(image.layers) != 4:
            return None
        vision: dict[str, Any] = {"layers": list(image.layers), "head_width": image.width * 32 // image.heads}
        vision["patch_size"] = None
    else:
        vision = {"layers": image.layers, "head_width": image.width // image.heads, "patch_size": image.patch_size}
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
            "vision_cfg": {"image_size": shape.image_size, "width": image.width, **vision},
            "text_cfg": text_cfg,
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
    """Of a picture in a preprocessor_config.json, which has a number or a dictionary of them."""
    return size.get(key) if isinstance(size, dict) else size


def hf_config(shape: Architecture) -> dict[str, Any]:
    """The config.json of a Hugging Face CLIPModel; without a model where it has no such tower (ResNets)."""
    image, text = shape.image, shape.text
    if isinstance(image, ResNetConfig):
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
            "hidden_size": image.width,
            "intermediate_size": 4 * image.width,
            "num_hidden_layers": image.layers,
            "num_attention_heads": image.heads,
            "image_size": shape.image_size,
            "patch_size": image.patch_size,
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
