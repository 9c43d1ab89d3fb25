"""Does this machine give the numbers that the model gave where it was saved? Replays the golden vectors."""

import torch

from limner.errors import ModelError
from limner.store import convert
from limner.store.golden import Comparison, replay
from limner.store.store import load, model_folder, some_of, unusable_weights
from limner.store.tensors import read_tensors


def examine(path: str) -> list[Comparison]:
    """What `limner doctor` prints about the model directory or finished run at `path`.

    Loading it already compares the fingerprint. Raises `ModelError` if the directory has no golden vectors.
    """
    folder = model_folder(path)
    model = load(folder, allow_nonfinite=True)
    bad = unusable_weights(model)
    checks = [
        Comparison("fingerprint", "as in config.json", str(model.fingerprint)[:12], fine=True),
        Comparison("weights", "all finite", f"NaN or infinity in {some_of(bad)}" if bad else "all finite", not bad),
    ]
    if bad:  # nothing to replay: a model that is not finite has no features
        return checks
    golden = folder / "golden.safetensors"
    if not golden.is_file():
        raise ModelError(
            f"The model {path}",
            must="have golden vectors, which limner stores with the models that it saves",
            got="no golden.safetensors",
            then=f"Make a directory that has them: limner convert {path} --out OUT",
        )
    for_open_clip = folder / "open_clip_model.safetensors"
    if for_open_clip.is_file() or model.architecture.image.hf_names() is not None:
        other = convert.from_openai(read_tensors(for_open_clip), model.architecture)
        own = model.state_dict()
        unequal = [name for name in own if name not in other or not torch.equal(own[name], other[name])]
        got = f"{len(unequal)} of {len(own)} differ" if unequal else f"all {len(own)} equal"
        checks.append(Comparison("weights for open_clip", f"all {len(own)} equal", got, fine=not unequal))
    return checks + replay(model, read_tensors(golden))
