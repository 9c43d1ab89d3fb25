"""Weight files that are pickles: only by an explicit word, and never unpickled freely.

OpenAI published its nine models as TorchScript archives, which carry code. One is opened when its sha256 is that of a
published file, or by `trust`, in a process of its own that hands back safetensors and nothing else. Everything else
goes through torch's restricted unpickler (weights only), by `allow_pickle`.
"""

import hashlib
import io
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from limner.errors import ModelError
from limner.files import sha256_of
from limner.store.unpack import clean, unpacked

OPENAI_FILES = {
    "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762": "RN50",
    "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599": "RN101",
    "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd": "RN50x4",
    "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa": "RN50x16",
    "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c": "RN50x64",
    "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af": "ViT-B/32",
    "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f": "ViT-B/16",
    "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836": "ViT-L/14",
    "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02": "ViT-L/14@336px",
}
"""The sha256 of each published file, which is part of its address."""
SECONDS = 600


def read_pickle(path: Path, *, allow_pickle: bool, trust: bool) -> tuple[dict[str, Tensor], str | None]:
    """(tensors, OpenAI's name of the model if the file is one of its nine)."""
    if _is_torchscript(path):
        sha256 = sha256_of(path)
        name = OPENAI_FILES.get(sha256)
        if name is None and not trust:
            raise ModelError(
                f"The TorchScript archive {path}",
                must="be one of the nine that OpenAI published: an archive carries code",
                got=f"the sha256 {sha256}",
                then="Download it again, or pass trust=True (limner convert --trust) if you know where it comes from.",
            )
        tensors = clean(_read_torchscript(path, sha256), path)
    elif allow_pickle:
        name, tensors = None, _read_weights_only(path)
    else:
        raise ModelError(
            f"The file {path}",
            must="be safetensors: a pickle could run code",
            got="a pickle",
            then="Pass allow_pickle=True (limner convert --allow-pickle) if you trust it.",
        )
    return tensors, name


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):  # an old pickle, or damage: for the unpickler to say
        return False


def _read_torchscript(path: Path, sha256: str) -> dict[str, Tensor]:
    """The tensors of the archive with that hash, by way of a process that opens it and writes them as safetensors."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "weights.safetensors"
        command = [sys.executable, "-W", "ignore", "-m", __name__, str(path.absolute()), sha256, str(out)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, cwd=folder)
            reason = "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no word"])[-1]
        except subprocess.TimeoutExpired:
            reason = f"no answer in {SECONDS} seconds"
        if reason:
            raise ModelError(f"The TorchScript archive {path}", must="be whole", got=reason, then="Download it again.")
        return load_file(out)


def _open_archive(path: str, sha256: str, out: str) -> None:
    """What that process does: with the bytes that it has compared itself, whatever lies at `path` by then."""
    content = Path(path).read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        sys.exit("a file that changed while it was read")
    tensors = torch.jit.load(io.BytesIO(content), map_location="cpu").state_dict()
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, out)


def _read_weights_only(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:  # of a path torch would look at the name
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever the damage or the refusal leads to
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise ModelError(
            f"The pickle {path}",
            must="hold tensors and nothing else",
            got=f"{refused[1]} too, whose code would be run"
            if refused
            else (str(error).splitlines() or [type(error).__name__])[0],
            then="Where it was made, and if you trust it, save the weights alone: "
            "torch.save(torch.load(FILE, weights_only=False)['state_dict'], 'weights.pt').",
        ) from error
    tensors = unpacked(content, path) if isinstance(content, dict) else {}
    if not tensors:
        raise ModelError(
            f"The pickle {path}",
            must="hold a dictionary of tensors",
            got=f"a dictionary of {', '.join(map(str, list(content)[:5])) or 'nothing'}"
            if isinstance(content, dict)
            else type(content).__name__,
            then="Save the model's state_dict() alone.",
        )
    return tensors


if __name__ == "__main__":
    _open_archive(*sys.argv[1:])
