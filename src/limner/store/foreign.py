"""Models that others wrote: directories of transformers and open_clip, weight files of OpenAI and open_clip.

`read(place) -> (architecture, tensors by limner's names, tokenizer)`, or an error that says what is there instead.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from limner.architecture import OPENAI_VOCABULARY, PAPER, ZOO, Activation, Architecture, TextConfig
from limner.config import from_json
from limner.data.tokenizer import Tokenizer
from limner.errors import LimnerError, ModelError
from limner.files import read_json
from limner.progress import say
from limner.store import convert
from limner.store.pickles import read_pickle
from limner.store.tensors import Tensors, read_tensors
from limner.store.unpack import unpacked

HF_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
OPEN_CLIP_FILES = (
    *("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors"),
    *("open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth", "pytorch_model.bin"),
)
PICKLES = {".pt", ".pth", ".bin", ".ckpt"}

Parts = tuple[Architecture, Tensors, Tokenizer | None]


def read(place: Path, activation: Activation | None, *, allow_pickle: bool, trust: bool) -> Parts:
    """(architecture, tensors by limner's names, tokenizer) of the directory or file `place`, limner's own included."""
    with _understood(place):
        if place.is_file():
            return _read_file(place, activation, allow_pickle=allow_pickle, trust=trust)
        return _read_folder(place, allow_pickle=allow_pickle)


@contextmanager
def _understood(where: Path) -> Iterator[None]:
    """Says of a config that has other things in other places that it does."""
    try:
        yield
    except LimnerError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError, RuntimeError) as error:
        raise ModelError(
            f"The files of {where}",
            must="be those of a CLIP, with whole configs",
            got=f"{type(error).__name__}: {error}",
            then="Copy the model again.",
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """What config.json holds; nothing if there is none."""
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
    return config


def own_facts(config: dict[str, Any]) -> dict[str, Any] | None:
    """What limner, or limn as it was called, wrote into a config.json about its model; None in other people's."""
    return config.get("limner", config.get("limn"))


def _read_folder(folder: Path, *, allow_pickle: bool) -> Parts:
    config = read_config(folder)
    if "auto_map" in config:
        say(f"{folder / 'config.json'} names code of its own (auto_map): ignored, limner never runs a model's code.")
    if own := own_facts(config):
        return _read_limner(folder, own)
    is_clip, is_open_clip = config.get("model_type") == "clip", (folder / "open_clip_config.json").is_file()
    # weights of either kind that are safe before a pickle of the other
    for pickles in (False, True)[: 1 + allow_pickle]:
        if is_clip and (file := _first(folder, HF_FILES, pickles=pickles)):
            return _read_hf(folder, config, file, allow_pickle=allow_pickle)
        if is_open_clip and (file := _first(folder, OPEN_CLIP_FILES, pickles=pickles)):
            return _read_open_clip(folder, file, allow_pickle=allow_pickle)
    pickle = _first(folder, HF_FILES if is_clip else OPEN_CLIP_FILES, pickles=True)
    if pickle and (is_clip or is_open_clip):
        raise ModelError(
            f"The weights in {folder}",
            must="be safetensors: a pickle could run code",
            got=f"only the pickle {pickle.name}",
            then="Pass allow_pickle=True (limner convert --allow-pickle) if you trust it.",
        )
    raise ModelError(
        f"The model {folder}",
        must="be a directory of limner, transformers (CLIPModel) or open_clip, a finished run or a weight file",
        got=_what_is_there(folder, config),
        then="Train one with: limner train RECIPE --data PATH",
    )


def _first(folder: Path, names: tuple[str, ...], *, pickles: bool) -> Path | None:
    """The first of these files that is there, pickles among them or not."""
    paths = (folder / name for name in names if pickles or Path(name).suffix not in PICKLES)
    return next((path for path in paths if path.is_file()), None)


def _what_is_there(folder: Path, config: dict[str, Any]) -> str:
    if not folder.exists():
        return "no such directory or file"
    if "architecture" in config:
        return "a model of limner before 0.1.0 was finished"
    if config.get("model_type") == "clip" or (folder / "open_clip_config.json").is_file():
        others = [path.name for path in sorted(folder.iterdir()) if path.suffix in {".safetensors", *PICKLES}]
        return f"a CLIP's config without weights{' of a known name; load one of these: ' * bool(others)}" + ", ".join(
            others
        )
    if kind := config.get("model_type"):
        return f"another kind of model, {kind}"
    if (folder / "metrics.jsonl").is_file():
        return "a run that has not finished"
    return "a directory without one"


def _read_limner(folder: Path, own: dict[str, Any]) -> Parts:
    shape = from_json(own["architecture"], Architecture, where=f"The architecture in {folder / 'config.json'}")
    weights = read_tensors(folder / "model.safetensors")
    convention = convert.from_openai if shape.image.hf_names() is None else convert.from_hf
    tokenizer = folder / "tokenizer.json"
    own_tokenizer = Tokenizer.load(tokenizer, context_length=shape.text.context_length) if tokenizer.is_file() else None
    return shape, convention(weights, shape), own_tokenizer


def _read_hf(folder: Path, config: dict[str, Any], file: Path, *, allow_pickle: bool) -> Parts:
    shape = convert.architecture_from_hf(config, _preprocessor(folder), where=str(folder))
    weights, _ = _read_weights(file, allow_pickle=allow_pickle)
    if any(name.startswith("visual.") for name in weights):
        raise ModelError(
            f"The weights in {file}",
            must="have Hugging Face's names, as config.json is Hugging Face's",
            got="OpenAI's",
            then="Put an open_clip_config.json beside them instead of config.json.",
        )
    return shape, convert.from_hf(weights, shape), _tokenizer(folder, shape)


def _preprocessor(folder: Path) -> dict[str, Any]:
    """How Hugging Face's directory prepares pictures; newer ones keep it inside processor_config.json."""
    if (folder / "preprocessor_config.json").is_file():
        return read_json(folder / "preprocessor_config.json")
    if (folder / "processor_config.json").is_file():
        return read_json(folder / "processor_config.json")["image_processor"]
    say(f"{folder} does not say how it prepares pictures: limner prepares them as OpenAI's CLIP does.")
    return {}


def _read_open_clip(folder: Path, file: Path, *, allow_pickle: bool) -> Parts:
    config = read_json(folder / "open_clip_config.json")
    shape = convert.architecture_from_open_clip(config, where=str(folder))
    named = config["model_cfg"].get("text_cfg", {}).get("hf_tokenizer_name")
    weights, _ = _read_weights(file, allow_pickle=allow_pickle)
    _refuse_hf_names(weights, file, "which open_clip_config.json is for")
    return shape, convert.from_openai(weights, shape), _tokenizer(folder, shape, named=named)


def _read_file(path: Path, activation: Activation | None, *, allow_pickle: bool, trust: bool) -> Parts:
    weights, name = _read_weights(path, allow_pickle=allow_pickle, trust=trust)
    _refuse_hf_names(weights, path, "for those say what they are")
    config = path.parent / "open_clip_config.json"
    if name is None and config.is_file():
        shape = convert.architecture_from_open_clip(read_json(config), where=str(config))
    else:
        shape = _guessed(weights, "quick_gelu" if name else activation, path)
    return shape, convert.from_openai(weights, shape), _tokenizer(path.parent, shape)


def _refuse_hf_names(weights: Tensors, path: Path, why: str) -> None:
    if any(tensor.startswith("vision_model.") for tensor in weights):
        raise ModelError(
            f"The weight file {path}",
            must=f"have OpenAI's or open_clip's names, {why}",
            got="Hugging Face's",
            then=f"Load the directory, with Hugging Face's config.json in it: {path.parent}",
        )


def _guessed(weights: Tensors, activation: Activation | None, path: Path) -> Architecture:
    """The architecture of weights without a config: their shapes say everything but activation and heads.

    The number of heads is certain for the paper's encoders alone; open_clip's ViT-H, for one, has heads of 80.
    """
    if activation is None:
        raise ModelError(
            f"The activation of {path}",
            must="be known: weights do not say it, and the wrong one gives wrong features without an error",
            got="a file without a config",
            then="Pass activation='quick_gelu' (limner convert --activation) for OpenAI's weights, 'gelu' for most.",
        )
    shape = convert.architecture_from_weights(weights, activation)
    known = [ZOO[name] for name in PAPER]
    if shape.image not in [k.image for k in known] or _depth(shape.text) not in [_depth(k.text) for k in known]:
        raise ModelError(
            f"The weights in {path}",
            must="have the shapes of one of the paper's encoders, or a config: heads do not show in weights",
            got=f"{shape.image} and {shape.text}, if the heads were 64 wide",
            then="Load the directory, with its open_clip_config.json.",
        )
    return shape


def _depth(text: TextConfig) -> tuple[int, int, int]:
    return text.layers, text.width, text.heads


def _tokenizer(folder: Path, shape: Architecture, *, named: str | None = None) -> Tokenizer | None:
    """The directory's own tokenizer; without one, OpenAI's for a vocabulary of its size."""
    if (folder / "tokenizer.json").is_file():
        return Tokenizer.load(folder / "tokenizer.json", context_length=shape.text.context_length)
    if named or (folder / "vocab.json").is_file():
        raise ModelError(
            f"The tokenizer of {folder}",
            must="be in a tokenizer.json",
            got=f"the name {named}" if named else "vocab.json",
            then="Let transformers' AutoTokenizer save it there.",
        )
    if shape.text.vocab_size == OPENAI_VOCABULARY:
        return Tokenizer.openai(context_length=shape.text.context_length)
    say(f"{folder} has no tokenizer.json: the model reads token ids only.")
    return None


def _read_weights(path: Path, *, allow_pickle: bool, trust: bool = False) -> tuple[Tensors, str | None]:
    """(tensors, the name of the model if it is one of OpenAI's nine files)."""
    if _is_pickle(path):
        return read_pickle(path, allow_pickle=allow_pickle, trust=trust)
    return unpacked(read_tensors(path), path), None


def _is_pickle(path: Path) -> bool:
    """By what it holds, for people name checkpoints as they like: safetensors begin with a length and a brace."""
    start = b""
    with suppress(OSError), path.open("rb") as file:  # what cannot be read is for the reader to say
        start = file.read(9)
    is_pickle = start.startswith((b"PK", b"\x80")) or path.suffix.lower() in PICKLES
    return is_pickle and not start.endswith(b"\0{") and path.suffix != ".json"
