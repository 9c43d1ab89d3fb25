"""Models on disk: one directory that limner, open_clip and, for ViTs, transformers read; safetensors, no pickles.

```
MODEL/config.json                     Hugging Face's config of a ViT, and limner's: architecture, model fingerprint
MODEL/open_clip_config.json           the same for open_clip
MODEL/model.safetensors               the weights, float32, in Hugging Face's names; of a ResNet in OpenAI's
MODEL/open_clip_model.safetensors     of a ViT only: the weights in OpenAI's names, which open_clip reads
MODEL/tokenizer.json                  as the `tokenizers` library writes it, with tokenizer_config.json
MODEL/preprocessor_config.json        resize, crop, mean and deviation
MODEL/golden.safetensors              inputs with the features that they gave when the model was saved (limner doctor)
MODEL/README.md                       the model card
```

`load` opens that, a finished run, and what others wrote (`foreign`). The fingerprint is a sha256 over architecture,
tensors and tokenizer, whatever file they came from: two models that could give different features have different ones.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jinja2 import Template

from limner.architecture import Activation, Architecture
from limner.config import to_json
from limner.data.tokenizer import Tokenizer, path_of
from limner.errors import ConfigError, ModelError, StorageError, named, require
from limner.files import write_json, write_text
from limner.model.clip import CLIP, nonfinite
from limner.progress import say
from limner.store import convert
from limner.store.foreign import own_facts, read, read_config
from limner.store.golden import golden_vectors
from limner.store.tensors import Tensors, write_tensors
from limner.version import __version__

OWN_FILES = {
    *("config.json", "open_clip_config.json", "model.safetensors", "open_clip_model.safetensors", "tokenizer.json"),
    *("tokenizer_config.json", "preprocessor_config.json", "golden.safetensors", "README.md", "onnx"),
}
"""What `save` and the export to ONNX write."""

CARD = Template(
    """---
library_name: limner
pipeline_tag: zero-shot-image-classification
tags: [clip]
---
# A CLIP made with limner {{ version }}

{{ image }} and causal text transformer to {{ shape.embed_dim }} numbers, pictures of {{ shape.image_size }} pixels, \
{{ parameters }} parameters.
{% for name, value in card.items() %}
- {{ name.replace("_", " ") }}: {{ value }}
{%- endfor %}

```python
import limner

model = limner.load("MODEL")
limner.ZeroShotClassifier(model, ["cat", "dog"], ["a picture of {}."]).predict(["picture.png"])
```

Read by {{ readers | join(", ") }}.
""",
    keep_trailing_newline=True,
)


# --- saving ----------------------------------------------------------------------------------------------------------


def save(model: Any, folder: Any, **card: Any) -> None:
    """Write the CLIP `model` to `folder`, all of it or nothing: beside it, and it takes its name when it is whole.

    `folder`, a str or a Path, may be new, empty or a model of limner's, which is replaced; anything else is left alone.
    `card` are facts for its README. A model with numbers that are not finite is kept, for it may be all that is left of
    a run, and that is said: without golden vectors, and `load` refuses it unless asked.
    """
    require(isinstance(model, CLIP), "The model to save", "be a limner.CLIP", named(model), "Save a model.")
    folder = path_of(folder, "The folder for the model").resolve()
    _refuse_foreign(folder)
    shape = model.architecture
    weights = {name: t.detach().float().cpu().contiguous() for name, t in model.state_dict().items()}
    model.fingerprint = fingerprint(shape, weights, model.tokenizer)
    partial, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{what}") for what in ("partial", "old"))
    try:
        partial.mkdir(parents=True)
        _write(partial, shape, weights, model.tokenizer, {**card, "fingerprint": model.fingerprint})
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(
            f"The model {folder}",
            must="be written whole",
            got=error.strerror or error,
            then="What was there before has not changed; make room or choose another folder, then run it again.",
        ) from error
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _refuse_foreign(folder: Path) -> None:
    if not folder.exists():
        return
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else [folder.name]
    foreign = [name for name in names if name not in OWN_FILES]
    if names and (foreign or not {"limner", "limn", "architecture"} & read_config(folder).keys()):
        raise StorageError(
            f"The folder {folder}",
            must="be new, empty or hold a model of limner's and nothing else",
            got=", ".join(foreign or names),
            then="Choose another folder; nothing was written.",
        )


def _write(
    folder: Path, shape: Architecture, weights: Tensors, tokenizer: Tokenizer | None, card: dict[str, Any]
) -> None:
    readers = ["limner"]
    if shape.image.hf_names() is not None:
        write_tensors(folder / "model.safetensors", convert.to_hf(weights, shape))
        write_tensors(folder / "open_clip_model.safetensors", convert.to_openai(weights, shape))
        readers.append('transformers (`CLIPModel.from_pretrained("MODEL")`)')
    else:
        write_tensors(folder / "model.safetensors", convert.to_openai(weights, shape))
    own_tokenizer = tokenizer is not None and not tokenizer.is_like(Tokenizer.openai())
    if open_clip := convert.open_clip_config(shape, own_tokenizer=own_tokenizer):
        write_json(folder / "open_clip_config.json", open_clip)
        readers.append('open_clip (`create_model_and_transforms("local-dir:MODEL")`)')
    if tokenizer is not None:
        tokenizer.save(folder / "tokenizer.json")
        write_json(folder / "tokenizer_config.json", convert.tokenizer_config(shape))
    write_json(folder / "preprocessor_config.json", convert.preprocessor_config(shape))
    _write_golden(folder / "golden.safetensors", filled(shape, weights, tokenizer, where="the model"))
    write_text(
        folder / "README.md",
        CARD.render(
            version=__version__,
            image=shape.image.title,
            shape=shape,
            parameters=f"{sum(t.numel() for t in weights.values() if t.is_floating_point()):,}",
            card=card,
            readers=readers,
        ),
    )
    own = {"version": __version__, "architecture": to_json(shape), "fingerprint": card["fingerprint"]}
    write_json(folder / "config.json", {**convert.hf_config(shape), "limner": own})


def _write_golden(file: Path, model: CLIP) -> None:
    """Made with the tensors that were written, on the CPU: not with a model that may train, on a GPU, in bfloat16."""
    if bad := unusable_weights(model):
        say(f"The saved model has NaN or infinity in {some_of(bad)}. To load it, pass allow_nonfinite=True.")
    try:
        golden = golden_vectors(model)
    except ModelError as error:
        say(f"The model is saved without golden vectors. {error}")
    else:
        write_tensors(file, golden, made_with=f"torch {torch.__version__}")


def unusable_weights(model: CLIP) -> list[str]:
    """Which tensors of a model hold NaN or infinity, and how many of their numbers; the logit scale as it is used."""
    used = {**model.state_dict(), "logit_scale": model.logit_scale.detach()}
    bad = nonfinite(used)
    twice = [name for name in bad if name.startswith("log_logit_scale")]  # of which the scale is made
    return [name for name in bad if name not in twice] if any(name.startswith("logit_scale") for name in bad) else bad


def some_of(names: Sequence[str]) -> str:
    """The number of tensors and the names of three, for an error."""
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return f"{len(names):,} tensor{'s' * (len(names) > 1)}: {', '.join(names[:3])}{more}"


def fingerprint(shape: Architecture, weights: Tensors, tokenizer: Tokenizer | None) -> str:
    """The sha256 of what a model computes with: architecture, limner's float32 tensors by name, tokenizer."""
    digest = hashlib.sha256(json.dumps(to_json(shape), sort_keys=True).encode())
    for name in sorted(weights):
        tensor = weights[name].detach().float().cpu().contiguous()
        digest.update(f"{name}{list(tensor.shape)}".encode())
        digest.update(tensor.view(-1).numpy().data)
    if tokenizer is not None:
        digest.update(tokenizer.to_json().encode())
    return digest.hexdigest()


def fingerprint_now(model: CLIP) -> str:
    """The fingerprint of a model as it is now, whatever was loaded or saved last."""
    return fingerprint(model.architecture, model.state_dict(), model.tokenizer)


# --- loading ---------------------------------------------------------------------------------------------------------


def load(
    path: Any,
    *,
    image_size: Any = None,
    precision: Literal["fp32", "bf16"] = "fp32",
    device: Any = "cpu",
    activation: Activation | None = None,
    allow_pickle: bool = False,
    trust: bool = False,
    allow_nonfinite: bool = False,
) -> CLIP:
    """The model at `path`, ready for inference.

    Args:
        path: a model directory of limner, transformers or open_clip, a finished run, a weight file of OpenAI or
            open_clip, or `hf-hub:org/name`, which is downloaded.
        image_size: another size of pictures, in pixels: position embeddings are resized (bicubic), which is how
            further training at a higher resolution starts (paper section 2.5).
        precision: bf16 keeps the encoders' weights in bfloat16: half the memory, faster where the machine computes in
            it, features that differ in the third decimal. The logit scale stays float32.
        device: where the model computes, as torch names it; auto: a GPU where there is one, else the CPU.
        activation: of a weight file without a config, which does not say: quick_gelu for OpenAI's own weights.
        allow_pickle: open .pt, .pth, .bin and .ckpt files too, by torch's restricted unpickler (weights only).
        trust: open a TorchScript archive although it is none of OpenAI's nine.
        allow_nonfinite: load a model with NaN or infinity in its weights too, to look at it.

    Raises `ModelError` if a file is missing or changed, if a tensor does not fit the architecture, or if one is not
    finite.
    """
    require(precision in ("fp32", "bf16"), "The precision", "be fp32 or bf16", repr(precision), "fp32 is exact.")
    place = chosen_device(device)
    folder = model_folder(path, allow_pickle=allow_pickle)
    shape, weights, tokenizer = read(folder, activation, allow_pickle=allow_pickle, trust=trust)
    if activation is not None and activation != shape.activation:
        raise ModelError(
            f"The activation of {folder}",
            must=f"be what its config says, {shape.activation}",
            got=activation,
            then="Leave it out: it is for weight files without a config.",
        )
    model = filled(shape, weights, tokenizer, where=str(folder))
    model.fingerprint = fingerprint_now(model)
    own = own_facts(read_config(folder))
    if own is not None and own.get("fingerprint") != model.fingerprint:
        raise ModelError(
            f"The fingerprint of {folder}",
            must=f"be the one in its config.json, {str(own.get('fingerprint'))[:12]}",
            got=f"{model.fingerprint[:12]}: weights, tokenizer or architecture were changed",
            then="Copy the directory again.",
        )
    if image_size is not None and image_size != shape.image_size:
        model.resize_images(image_size)
    if precision == "bf16":
        model.image.bfloat16()
        model.text.bfloat16()
    if image_size is not None or precision != "fp32":  # another model than the one that was read
        model.fingerprint = fingerprint_now(model)
    if not allow_nonfinite and (bad := unusable_weights(model)):
        raise ModelError(
            f"The weights of {path}",
            must="be finite numbers",
            got=f"NaN or infinity in {some_of(bad)}",
            then="The training diverged, or half precision overflowed: take a checkpoint from before. "
            "To look at this one, pass allow_nonfinite=True.",
        )
    return model.to(place)


def chosen_device(name: Any) -> torch.device:
    """The device called `name`; auto: a GPU where there is one, else the CPU. Raises `ConfigError` if there is none."""
    if isinstance(name, str) and name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name if name is not None else "None")  # which torch takes for the one that is set
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, OverflowError, ValueError) as error:  # without CUDA torch asserts
        raise ConfigError(
            "The device",
            must="be auto, or one that this machine and its torch have",
            got=f"{named(name)}: {(str(error).splitlines() or [type(error).__name__])[0]}",
            then="Leave it out for a GPU where there is one, or give cpu.",
        ) from error
    return device


def model_folder(path: Any, *, allow_pickle: bool = False) -> Path:
    """The directory or file that `path` means: of a finished run its model, of `hf-hub:org/name` its download."""
    if str(path).startswith("hf-hub:"):
        from limner.store.hub import download

        return download(str(path).removeprefix("hf-hub:"), allow_pickle=allow_pickle)
    folder = path_of(path, "The model to load")
    return folder / "model" if (folder / "model" / "config.json").is_file() else folder


def filled(shape: Architecture, weights: Tensors, tokenizer: Tokenizer | None, *, where: str) -> CLIP:
    """A model for inference with `weights`, which it does not share with the file that they came from."""
    with torch.device("meta"):  # no time for random weights that are overwritten
        model = CLIP(shape, tokenizer)
    own = {
        name: tensor.to(torch.float32, copy=True) if tensor.is_floating_point() else tensor
        for name, tensor in weights.items()
    }
    load_weights(model, own, where=where)
    for parameter in model.image.parameters():
        if parameter.ndim == 4:  # the layout that convolutions are fastest in
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model.eval()


def load_weights(model: CLIP, weights: Tensors, *, where: str) -> None:
    """Put `weights` into `model`; a missing, unknown or differently shaped tensor is an error that lists them."""
    own = model.state_dict()
    faults = [f"{name} is missing" for name in own if name not in weights]
    faults += [f"{name} is unknown" for name in weights if name not in own]
    faults += [
        f"{name} has the shape {list(weights[name].shape)}, not {list(own[name].shape)}"
        for name in own
        if name in weights and own[name].shape != weights[name].shape
    ]
    for name, tensor in ((name, weights[name]) for name in own if name in weights):
        if tensor.layout != torch.strided or tensor.is_quantized:
            faults.append(f"{name} is sparse or quantized")
        elif own[name].is_floating_point() and (tensor.is_meta or not tensor.is_floating_point()):
            faults.append(f"{name} is {'without numbers' if tensor.is_meta else tensor.dtype}")
    if faults:
        raise ModelError(
            f"The weights of {where}",
            must="fit the architecture tensor by tensor",
            got=f"{len(faults):,} that do not: {'; '.join(faults[:500])}{'; ...' * (len(faults) > 500)}",
            then="Use the config that the weights were trained with.",
        )
    model.load_state_dict(weights, assign=any(tensor.is_meta for tensor in own.values()))
