"""Does this machine give the numbers that the model gave where it was saved? Replays the golden vectors."""

import torch

from limner.config import ViTConfig
from limner.errors import ModelError
from limner.model import convert
from limner.model.golden import Check, replay
from limner.model.store import load, model_folder
from limner.model.tensors import read_tensors


def examine(path: str) -> list[Check]:
    """What `limner doctor` prints about the model directory or finished run at `path`.

    Loading it already compares the fingerprint. Raises `ModelError` if the directory has no golden vectors.
    """
    folder = model_folder(path)
    model = load(folder)
    golden = folder / "golden.safetensors"
    if not golden.is_file():
        raise ModelError(
            f"The model {path}",
            must="have golden vectors, which limner stores with the models that it saves",
            got="no golden.safetensors",
            then=f"Make a directory that has them: limner convert {path} OUT",
        )
    checks = [Check("fingerprint", "as in config.json", str(model.fingerprint)[:12], fine=True)]
    if isinstance(model.architecture.image, ViTConfig):
        other = convert.from_openai(read_tensors(folder / "open_clip_model.safetensors"), model.architecture)
        own = model.state_dict()
        unequal = [name for name in own if name not in other or not torch.equal(own[name], other[name])]
        got = f"{len(unequal)} of {len(own)} differ" if unequal else f"all {len(own)} equal"
        checks.append(Check("weights for open_clip", f"all {len(own)} equal", got, fine=not unequal))
    return checks + replay(model, read_tensors(golden))
