"""Models on disk: one directory, safetensors, no pickles.

```
MODEL/config.json         the architecture and the model fingerprint
MODEL/model.safetensors   the weights, float32
MODEL/tokenizer.json      as the `tokenizers` library writes it
MODEL/README.md           the model card
```

The fingerprint is a sha256 over architecture, weights and tokenizer: two models that could give different features
have different fingerprints.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from jinja2 import Template
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors

from limn import __version__
from limn.config import Architecture
from limn.data.tokenizer import Tokenizer
from limn.errors import ModelError
from limn.files import write_bytes, write_text
from limn.model.clip import CLIP
from limn.run import from_json, read_json, to_json, write_json

CARD = Template(
    """---
library_name: limn
pipeline_tag: zero-shot-image-classification
---
# A CLIP made with limn {{ version }}

{{ image }} and {{ text }} to {{ shape.embed_dim }} numbers, pictures of {{ shape.image_size }} pixels, \
{{ parameters }} parameters.
{% for name, value in card.items() %}
- {{ name.replace("_", " ") }}: {{ value }}
{%- endfor %}

```python
import limn

model = limn.load("{{ folder }}")
limn.ZeroShotClassifier(model, ["cat", "dog"], ["a picture of {}."]).predict(["picture.png"])
```
""",
    keep_trailing_newline=True,
)


def save(model: CLIP, folder: Path, card: dict[str, Any]) -> None:
    """Write `model` to `folder`, config.json last: a directory without it is not a model."""
    shape = model.architecture
    weights = to_safetensors({name: t.detach().float().cpu().contiguous() for name, t in model.state_dict().items()})
    write_bytes(folder / "model.safetensors", weights)
    if model.tokenizer is not None:
        model.tokenizer.save(folder / "tokenizer.json")
    else:
        (folder / "tokenizer.json").unlink(missing_ok=True)  # of a model that was here before
    model.fingerprint = _fingerprint(folder, to_json(shape))
    image, text = type(shape.image).__name__.removesuffix("Config"), "causal text transformer"
    parameters = f"{sum(p.numel() for p in model.parameters()):,}"
    write_text(
        folder / "README.md",
        CARD.render(
            version=__version__,
            image=image,
            text=text,
            shape=shape,
            parameters=parameters,
            card={**card, "fingerprint": model.fingerprint},
            folder=folder,
        ),
    )
    write_json(folder / "config.json", {"architecture": to_json(shape), "fingerprint": model.fingerprint})


def load(path: str | Path) -> CLIP:
    """The model at `path`, a model directory or a run directory, ready for inference.

    Raises `ModelError` if a file is missing or changed, or if a tensor does not fit the architecture.
    """
    folder = Path(path)
    if (folder / "model" / "config.json").is_file():
        folder = folder / "model"
    if not (folder / "config.json").is_file() or not (folder / "model.safetensors").is_file():
        raise ModelError(
            f"The model {path}",
            must="be a directory with config.json and model.safetensors, or a finished run",
            got="a directory without them" if folder.is_dir() else "no such directory",
            then="Train one with: limn train RECIPE --data PATH",
        )
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), dict):
        raise ModelError(
            f"The file {folder / 'config.json'}",
            must="hold the architecture of a limn model",
            got="another kind of config",
            then="Only directories that limn wrote can be loaded.",
        )
    shape = from_json(config["architecture"], Architecture, where=f"The architecture in {folder / 'config.json'}")
    has_tokenizer = (folder / "tokenizer.json").is_file()
    tokenizer = (
        Tokenizer.load(folder / "tokenizer.json", context_length=shape.text.context_length) if has_tokenizer else None
    )
    with torch.random.fork_rng(devices=[]):  # the initial weights are overwritten; drawing them is nobody's business
        model = CLIP(shape, tokenizer)
    load_weights(model, read_tensors(folder / "model.safetensors"), where=str(folder))
    model.fingerprint = _fingerprint(folder, config["architecture"])
    if model.fingerprint != config.get("fingerprint"):
        raise ModelError(
            f"The fingerprint of {folder}",
            must=f"be the one in its config.json, {str(config.get('fingerprint'))[:12]}",
            got=f"{model.fingerprint[:12]}: weights, tokenizer or architecture were changed",
            then="Copy the directory again.",
        )
    return model.eval()


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"The file {path}", must="be a whole safetensors file", got=error, then="Copy or save it again."
        ) from error


def load_weights(model: CLIP, weights: dict[str, torch.Tensor], *, where: str) -> None:
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
    model.load_state_dict(weights)


def _fingerprint(folder: Path, architecture: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(architecture, sort_keys=True).encode())
    for name in ("model.safetensors", "tokenizer.json"):
        if (folder / name).is_file():
            digest.update((folder / name).read_bytes())
    return digest.hexdigest()
