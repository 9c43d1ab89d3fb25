"""Models on disk: one directory that limn, transformers and open_clip read; safetensors, no pickles.

```
MODEL/config.json                     Hugging Face's config of a ViT, and limn's: architecture, model fingerprint
MODEL/open_clip_config.json           the same for open_clip
MODEL/model.safetensors               the weights, float32, in Hugging Face's names; of a ResNet in OpenAI's
MODEL/open_clip_model.safetensors     of a ViT only: the weights in OpenAI's names, which open_clip reads
MODEL/tokenizer.json                  as the `tokenizers` library writes it, with tokenizer_config.json
MODEL/preprocessor_config.json        resize, crop, mean and deviation
MODEL/golden.safetensors              inputs with the features that they gave when the model was saved (limn doctor)
MODEL/README.md                       the model card
```

`load` opens that, a finished run, the directories that open_clip and transformers write, and weight files of OpenAI
and open_clip. The fingerprint is a sha256 over architecture, tensors and tokenizer, whatever file they came from: two
models that could give different features have different fingerprints.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import torch
from jinja2 import Template
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from limn import __version__
from limn.config import Activation, Architecture, ResNetConfig, ViTConfig
from limn.data.tokenizer import EOS, SOS, Tokenizer
from limn.errors import ModelError
from limn.files import replacing, write_text
from limn.model import convert
from limn.model.clip import CLIP
from limn.model.convert import Tensors
from limn.model.golden import golden_vectors
from limn.model.pickles import OPENAI_FILES, read_pickle
from limn.progress import say
from limn.run import from_json, read_json, to_json, write_json

OPENAI_VOCABULARY = 49408
OPEN_CLIP_FILES = (
    *("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors"),
    *("open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth", "pytorch_model.bin"),
)
HF_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
PICKLES = {".pt", ".pth", ".bin"}

CARD = Template(
    """---
library_name: limn
pipeline_tag: zero-shot-image-classification
tags: [clip]
---
# A CLIP made with limn {{ version }}

{{ image }} and causal text transformer to {{ shape.embed_dim }} numbers, pictures of {{ shape.image_size }} pixels, \
{{ parameters }} parameters.
{% for name, value in card.items() %}
- {{ name.replace("_", " ") }}: {{ value }}
{%- endfor %}

```python
import limn

model = limn.load("{{ folder }}")
limn.ZeroShotClassifier(model, ["cat", "dog"], ["a picture of {}."]).predict(["picture.png"])
```
{% if readers %}
Also read by {{ readers | join(" and ") }}.
{% endif %}""",
    keep_trailing_newline=True,
)


# --- saving ----------------------------------------------------------------------------------------------------------


def save(model: CLIP, folder: Path, card: dict[str, Any]) -> None:
    """Write `model` to `folder`, config.json last: a directory without it is not a model."""
    shape, tokenizer = model.architecture, model.tokenizer
    for name in ("open_clip_config.json", "open_clip_model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)  # of a model that was here before
    weights = {name: t.detach().float().cpu().contiguous() for name, t in model.state_dict().items()}
    readers = []
    if isinstance(shape.image, ViTConfig):
        write_tensors(folder / "model.safetensors", convert.to_hf(weights, shape))
        write_tensors(folder / "open_clip_model.safetensors", convert.to_openai(weights, shape))
        readers.append('`transformers` (`CLIPModel.from_pretrained("FOLDER")`)')
    else:
        write_tensors(folder / "model.safetensors", convert.to_openai(weights, shape))
    own_tokenizer = tokenizer is not None and tokenizer.vocab_size != OPENAI_VOCABULARY
    if open_clip := convert.open_clip_config(shape, own_tokenizer=own_tokenizer):
        write_json(folder / "open_clip_config.json", open_clip)
        readers.append('`open_clip` (`create_model_and_transforms("local-dir:FOLDER")`)')
    if tokenizer is not None:
        tokenizer.save(folder / "tokenizer.json")
        write_json(folder / "tokenizer_config.json", tokenizer_config(shape.text.context_length))
    write_json(folder / "preprocessor_config.json", convert.preprocessor_config(shape))
    model.fingerprint = fingerprint(shape, weights, tokenizer)
    write_tensors(folder / "golden.safetensors", golden_vectors(model), made_with=f"torch {torch.__version__}")
    write_text(
        folder / "README.md",
        CARD.render(
            version=__version__,
            image="Modified ResNet" if isinstance(shape.image, ResNetConfig) else "Vision Transformer",
            shape=shape,
            parameters=f"{sum(p.numel() for p in model.parameters()):,}",
            card={**card, "fingerprint": model.fingerprint},
            folder=folder,
            readers=readers,
        ),
    )
    own = {"version": __version__, "architecture": to_json(shape), "fingerprint": model.fingerprint}
    write_json(folder / "config.json", {**convert.hf_config(shape), "limn": own})


def tokenizer_config(context_length: int) -> dict[str, Any]:
    """What transformers wants to know beside tokenizer.json."""
    return {
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": SOS,
        "eos_token": EOS,
        "unk_token": EOS,
        "pad_token": EOS,
        "model_max_length": context_length,
    }


def write_tensors(path: Path, tensors: Tensors, **metadata: str) -> None:
    """Write a safetensors file, whole or not at all."""
    with replacing(path) as file:
        save_file(tensors, file.name, metadata={"format": "pt", **metadata})


def fingerprint(shape: Architecture, weights: Tensors, tokenizer: Tokenizer | None) -> str:
    """The sha256 of what a model computes with: architecture, limn's float32 tensors by name, tokenizer."""
    digest = hashlib.sha256(json.dumps(to_json(shape), sort_keys=True).encode())
    for name in sorted(weights):
        tensor = weights[name].float().contiguous()
        digest.update(f"{name}{list(tensor.shape)}".encode())
        digest.update(tensor.view(-1).numpy().data)
    if tokenizer is not None:
        digest.update(tokenizer.to_json().encode())
    return digest.hexdigest()


# --- loading ---------------------------------------------------------------------------------------------------------


def load(
    path: str | Path,
    *,
    image_size: int | None = None,
    precision: Literal["fp32", "bf16"] = "fp32",
    activation: Activation | None = None,
    allow_pickle: bool = False,
    trust: bool = False,
) -> CLIP:
    """The model at `path`, ready for inference.

    Args:
        path: a model directory of limn, transformers or open_clip, a finished run, a weight file of OpenAI or
            open_clip, or `hf-hub:org/name`, which is downloaded.
        image_size: another size of pictures, in pixels: position embeddings are resized (bicubic), which is how
            further training at a higher resolution starts (paper section 2.5).
        precision: bf16 keeps the encoders' weights in bfloat16: half the memory, twice the speed where the machine
            computes in it, cosines to the float32 features of 0.9999 and more. The logit scale stays float32.
        activation: of a weight file in OpenAI's names that does not say: quick_gelu for OpenAI's own weights.
        allow_pickle: open .pt, .pth and .bin files too, by torch's restricted unpickler (weights only).
        trust: open a TorchScript archive although it is none of OpenAI's nine.

    Raises `ModelError` if a file is missing or changed, or if a tensor does not fit the architecture.
    """
    folder = model_folder(path, allow_pickle=allow_pickle)
    if folder.is_file():
        shape, weights, tokenizer = _read_file(folder, activation, allow_pickle=allow_pickle, trust=trust)
    elif (config := _config(folder)) and "limn" in config:
        shape, weights, tokenizer = _read_limn(folder, config["limn"])
    elif config.get("model_type") == "clip" and any((folder / name).is_file() for name in HF_FILES):
        shape, weights, tokenizer = _read_hf(folder, config, allow_pickle=allow_pickle)
    elif (folder / "open_clip_config.json").is_file():
        shape, weights, tokenizer = _read_open_clip(folder, allow_pickle=allow_pickle)
    else:
        raise ModelError(
            f"The model {path}",
            must="be a model directory of limn, transformers or open_clip, a finished run or a weight file",
            got=_what_is_there(folder, config),
            then="Train one with: limn train RECIPE --data PATH"
            if not config
            else "If its weights are a pickle that you trust: limn convert --allow-pickle",
        )
    model = _filled(shape, weights, tokenizer, where=str(folder))
    model.fingerprint = fingerprint(shape, model.state_dict(), tokenizer)
    if (stored := config_fingerprint(folder)) and stored != model.fingerprint:
        raise ModelError(
            f"The fingerprint of {folder}",
            must=f"be the one in its config.json, {stored[:12]}",
            got=f"{model.fingerprint[:12]}: weights, tokenizer or architecture were changed",
            then="Copy the directory again.",
        )
    if image_size is not None and image_size != shape.image_size:
        model.resize_pictures(image_size)
        model.fingerprint = fingerprint(model.architecture, model.state_dict(), tokenizer)
    if precision == "bf16":
        model.image.bfloat16()
        model.text.bfloat16()
    return model.eval()


def model_folder(path: str | Path, *, allow_pickle: bool = False) -> Path:
    """The directory or file that `path` means: of a finished run its model, of `hf-hub:org/name` its download."""
    if str(path).startswith("hf-hub:"):
        from limn.model.hub import download

        return download(str(path).removeprefix("hf-hub:"), allow_pickle=allow_pickle)
    folder = Path(path)
    return folder / "model" if (folder / "model" / "config.json").is_file() else folder


def _filled(shape: Architecture, weights: Tensors, tokenizer: Tokenizer | None, *, where: str) -> CLIP:
    with torch.device("meta"):  # no time for random weights that are overwritten
        model = CLIP(shape, tokenizer)
    integers = {name: tensor for name, tensor in weights.items() if not tensor.is_floating_point()}
    load_weights(model, {name: tensor.float() for name, tensor in weights.items()} | integers, where=where)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def config_fingerprint(folder: Path) -> str | None:
    """The fingerprint that limn wrote into a model directory."""
    config = _config(folder) if folder.is_dir() else {}
    return config.get("limn", {}).get("fingerprint")


def _config(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        return {}
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise ModelError(
            f"The file {folder / 'config.json'}",
            must="hold an object",
            got=type(config).__name__,
            then="Copy it again.",
        )
    if "auto_map" in config:
        say(f"{folder / 'config.json'} names code of its own (auto_map): ignored, limn never runs a model's code.")
    return config


def _what_is_there(folder: Path, config: dict[str, Any]) -> str:
    if not folder.exists():
        return "no such directory or file"
    if kind := config.get("model_type"):
        return f"a directory of another kind of model, {kind}" if kind != "clip" else "a clip config without weights"
    return "a directory without them"


def _read_limn(folder: Path, own: dict[str, Any]) -> tuple[Architecture, Tensors, Tokenizer | None]:
    shape = from_json(own["architecture"], Architecture, where=f"The architecture in {folder / 'config.json'}")
    weights = read_tensors(folder / "model.safetensors")
    convention = convert.from_hf if isinstance(shape.image, ViTConfig) else convert.from_openai
    return shape, convention(weights, shape), _tokenizer(folder, shape, wanted=False)


def _read_hf(
    folder: Path, config: dict[str, Any], *, allow_pickle: bool
) -> tuple[Architecture, Tensors, Tokenizer | None]:
    preprocessor = folder / "preprocessor_config.json"
    if not preprocessor.is_file():
        say(f"{folder} has no preprocessor_config.json: pictures are prepared as OpenAI's CLIP does.")
    shape = convert.architecture_from_hf(
        config, read_json(preprocessor) if preprocessor.is_file() else {}, where=str(folder / "config.json")
    )
    weights = _read_first(folder, HF_FILES, allow_pickle=allow_pickle)
    return shape, convert.from_hf(weights, shape), _tokenizer(folder, shape)


def _read_open_clip(folder: Path, *, allow_pickle: bool) -> tuple[Architecture, Tensors, Tokenizer | None]:
    config = folder / "open_clip_config.json"
    shape = convert.architecture_from_open_clip(read_json(config), where=str(config))
    weights = _read_first(folder, OPEN_CLIP_FILES, allow_pickle=allow_pickle)
    return shape, convert.from_openai(weights, shape), _tokenizer(folder, shape)


def _read_file(
    path: Path, activation: Activation | None, *, allow_pickle: bool, trust: bool
) -> tuple[Architecture, Tensors, Tokenizer | None]:
    weights, name = _read_weights(path, allow_pickle=allow_pickle, trust=trust)
    config = path.parent / "open_clip_config.json"
    if name is None and activation is None and config.is_file():
        shape = convert.architecture_from_open_clip(read_json(config), where=str(config))
        return shape, convert.from_openai(weights, shape), _tokenizer(path.parent, shape)
    if name in OPENAI_FILES.values():
        activation = "quick_gelu"
    if activation is None:
        raise ModelError(
            f"The activation of {path}",
            must="be known: weights do not say it, and the wrong one gives wrong features without an error",
            got="a file without a config",
            then="Pass activation='quick_gelu' (limn convert --activation) for OpenAI's weights, 'gelu' for most.",
        )
    shape = convert.architecture_from_weights(weights, activation)
    return shape, convert.from_openai(weights, shape), _tokenizer(path.parent, shape)


def _tokenizer(folder: Path, shape: Architecture, *, wanted: bool = True) -> Tokenizer | None:
    """The directory's own tokenizer; without one, OpenAI's for a vocabulary of its size."""
    if (folder / "tokenizer.json").is_file():
        return Tokenizer.load(folder / "tokenizer.json", context_length=shape.text.context_length)
    if wanted and shape.text.vocab_size == OPENAI_VOCABULARY:
        return Tokenizer.openai(context_length=shape.text.context_length)
    if wanted:
        say(f"{folder} has no tokenizer.json: the model reads token ids only.")
    return None


# --- files of tensors ------------------------------------------------------------------------------------------------


def _read_first(folder: Path, names: tuple[str, ...], *, allow_pickle: bool) -> Tensors:
    for name in names:
        path = folder / name
        if path.is_file() and (allow_pickle or path.suffix not in PICKLES):
            return _read_index(path) if path.suffix == ".json" else _read_weights(path, allow_pickle=allow_pickle)[0]
    pickles = [name for name in names if (folder / name).is_file()]
    raise ModelError(
        f"The weights in {folder}",
        must=f"be one of {', '.join(names)}",
        got=f"only the pickle {pickles[0]}, which could run code" if pickles else "none of them",
        then="Pass allow_pickle=True (limn convert --allow-pickle) if you trust it."
        if pickles
        else "Copy the weights there.",
    )


def _read_index(path: Path) -> Tensors:
    """A checkpoint in several files; the index names the file of each tensor, and may name no other place."""
    files = sorted(set(read_json(path).get("weight_map", {}).values()))
    for name in files:
        if not isinstance(name, str) or Path(name).name != name or not (path.parent / name).is_file():
            raise ModelError(
                f"The file names in {path}",
                must="be files beside it",
                got=repr(name),
                then="A file elsewhere is never opened: copy the whole checkpoint again.",
            )
    return {name: tensor for file in files for name, tensor in read_tensors(path.parent / file).items()}


def _read_weights(path: Path, *, allow_pickle: bool, trust: bool = False) -> tuple[Tensors, str | None]:
    """(tensors, the name of the model if it is one of OpenAI's nine files)."""
    if path.suffix in PICKLES:
        return read_pickle(path, allow_pickle=allow_pickle, trust=trust)
    return read_tensors(path), None


def read_tensors(path: Path) -> Tensors:
    """The tensors of a safetensors file."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"The file {path}", must="be a whole safetensors file", got=error, then="Copy or save it again."
        ) from error


def load_weights(model: CLIP, weights: Tensors, *, where: str) -> None:
    """Put `weights` into `model`; a missing, unknown or differently shaped tensor is an error that lists them all."""
    own = model.state_dict()
    faults = [f"{name} is missing" for name in own if name not in weights]
    faults += [f"{name} is unknown" for name in weights if name not in own]
    faults += [
        f"{name} has the shape {list(weights[name].shape)}, not {list(own[name].shape)}"
        for name in own
        if name in weights and own[name].shape != weights[name].shape
    ]
    if faults:
        raise ModelError(
            f"The weights of {where}",
            must="fit the architecture tensor by tensor",
            got=f"{len(faults)} that do not: {'; '.join(faults)}",
            then="Use the config that the weights were trained with.",
        )
    model.load_state_dict(weights, assign=any(tensor.is_meta for tensor in own.values()))
