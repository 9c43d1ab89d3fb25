"""A model as two ONNX graphs, in the files and with the names that transformers.js and onnxruntime's users expect.

```
FOLDER/onnx/vision_model.onnx   pixel_values float32[batch 3 size size], normalised ─> image_embeds float32[batch embed]
FOLDER/onnx/text_model.onnx     input_ids int64[batch tokens]                       ─> text_embeds float32[batch embed]
FOLDER/onnx/*_quantized.onnx    the same with int8 weights
FOLDER/onnx/*.onnx_data         the weights of a graph that would not fit into one file
```

The embeddings are raw, as transformers' CLIPVisionModelWithProjection gives them: who compares them normalises them.
A graph is measured against torch before it gets its name, so that a file that exists is one that was right.
"""

import copy
import hashlib
import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from limner.architecture import Architecture
from limner.errors import MissingExtra, ModelError, StorageError
from limner.files import sha256_of
from limner.model.clip import CLIP

OPSET = 20
"""torch's own choice, fixed so that another torch writes the same graphs; onnxruntime reads it from 1.17 on."""
MIN_COSINE = 0.9999
"""Between a float32 graph's embeddings and torch's; rounding alone leaves more than 0.999999."""
EXTERNAL_BYTES = 1_900_000_000
"""A graph with more weights than this has them in a file beside it: a protobuf holds 2 GB at most."""
CHECKED = ((1, 1.0), (2, 0.0), (5, 0.5))
"""The batches that a graph is measured on: (inputs, tokens as a share of the context length, one at least)."""
SUFFIXES = ("", "_quantized")
"""The ends of the file names of float32 and of int8 graphs."""
LOG_ERRORS = 3
"""onnxruntime's level that is silent about everything but errors."""


@dataclass(frozen=True, kw_only=True)
class Graph:
    """What a graph and its ends are called."""

    file: str
    input: str
    output: str
    axes: tuple[str, ...]
    """Names of the input's first dimensions, those that may have any size."""


VISION = Graph(file="vision_model", input="pixel_values", output="image_embeds", axes=("batch",))
TEXT = Graph(file="text_model", input="input_ids", output="text_embeds", axes=("batch", "tokens"))


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A graph that was written, and how far its embeddings of random inputs are from torch's."""

    file: Path
    bytes: int
    """The size of the graph, and of the file with its weights if there is one."""
    cosine: float
    """The smallest of all inputs."""
    max_abs_difference: float


def export(model: CLIP, folder: Path, *, int8: bool = False) -> list[Exported]:
    """Write the two graphs of `model` to `folder`/onnx, and with `int8` two more with int8 weights.

    The files are renamed into place when all of them are right, and graphs of a model that was there before go away. A
    float32 graph must agree with torch; how well an int8 graph does is only reported, for a cosine does not say what
    becomes of the answers: measure that on pictures (`with_onnx`, benchmarks/int8.py).

    Raises `MissingExtra` without the packages of limner[onnx], and `ModelError` if a graph does not agree with torch.
    """
    for package in ("onnx", "onnxruntime", "onnxscript"):
        _needed(package)
    target = folder / "onnx"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix=".onnx-") as work:
            exported = _export(model, Path(work), int8=int8)
            target.mkdir(exist_ok=True)
            written = sorted(Path(work).iterdir(), reverse=True)  # a graph's weights before the graph
            for new in written:
                new.replace(target / new.name)
            names = {new.name for new in written}
            for file in [
                file for graph in (VISION, TEXT) for suffix in SUFFIXES for file in _files(target, graph, suffix)
            ]:
                if file.name not in names:  # of a model that was here before
                    file.unlink()
    except OSError as error:
        raise StorageError(
            f"The graphs in {target}",
            must="be written whole",
            got=error.strerror or str(error),
            then="Make room or choose another folder, then run it again.",
        ) from error
    return [replace(one, file=target / one.file.name) for one in exported]


def with_onnx(model: CLIP, folder: Path, *, int8: bool = False) -> CLIP:
    """A copy of `model` whose towers are the graphs in `folder`/onnx, run by onnxruntime on the CPU.

    Everything else, preprocessing, tokenizer, logit scale, is the model's, so that whatever measures a model measures
    its graphs. The fingerprint is the graphs'. Raises `ModelError` if a graph is missing.
    """
    suffix = SUFFIXES[int8]
    images, texts = (_files(folder / "onnx", graph, suffix) for graph in (VISION, TEXT))
    if not images or not texts:
        raise ModelError(
            f"The folder {folder}",
            must=f"hold onnx/{VISION.file}{suffix}.onnx and onnx/{TEXT.file}{suffix}.onnx",
            got="a folder without them" if folder.is_dir() else "no such folder",
            then=f"Write them with: limner convert MODEL --out OUT {'--int8' if int8 else '--onnx'}",
        )
    # deepcopy takes what its memo holds for copied already: the towers are replaced, not copied
    memo = {id(model.image): OnnxTower(images[0], VISION), id(model.text): OnnxTower(texts[0], TEXT)}
    copied = copy.deepcopy(model, memo).cpu().eval()
    copied.fingerprint = hashlib.sha256("".join(map(sha256_of, images + texts)).encode()).hexdigest()
    return copied


class OnnxTower(nn.Module):
    """A graph in the place of a tower: the same input, the same embedding, no gradient."""

    def __init__(self, path: Path, graph: Graph) -> None:
        super().__init__()
        onnxruntime = _needed("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = LOG_ERRORS
        self.path, self.graph, self.dtype = path, graph, torch.float32
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle and copy: opened again, for a session is neither."""
        return OnnxTower, (self.path, self.graph), {"training": self.training}

    def forward(self, x: Tensor) -> Float[Tensor, "batch embed"]:
        """The embedding of each normalised picture or of each caption's tokens."""
        return torch.from_numpy(self.session.run([self.graph.output], {self.graph.input: x.numpy()})[0])


def _export(model: CLIP, folder: Path, *, int8: bool) -> list[Exported]:
    exported = []
    for graph, trained in ((VISION, model.image), (TEXT, model.text)):
        tower = copy.deepcopy(trained).cpu().float().eval()
        inputs = [_random_inputs(graph, model.architecture, number, share) for number, share in CHECKED]
        path = folder / f"{graph.file}.onnx"
        _write(_trace(tower, graph, inputs[-1], model.architecture), path)
        found = _measure(path, graph, tower, inputs)
        if not found.cosine >= MIN_COSINE:  # nan is not
            raise ModelError(
                f"The graph {path.name}",
                must=f"give torch's embeddings, to a cosine of {MIN_COSINE} at least",
                got=f"{found.cosine:.6f}, and a difference of {found.max_abs_difference:.2g} in one number",
                then="Nothing was written. Check the weights for nan and inf; if there are none, please report this.",
            )
        exported.append(found)
        if int8:
            quantized = folder / f"{graph.file}_quantized.onnx"
            _quantize(path, quantized)
            exported.append(_measure(quantized, graph, tower, inputs))
    return exported


class _Whole(nn.Module):
    """The readable path of a tower: the fast ones choose what to compute by looking at the input, a graph cannot."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, x: Tensor) -> Tensor:
        return self.tower.encode_whole(x)


def _trace(tower: Any, graph: Graph, example: Tensor, architecture: Architecture) -> Any:
    """The graph of `tower` as an onnx.ModelProto."""
    largest = {"batch": None, "tokens": architecture.text.context_length}
    sizes = {i: torch.export.Dim(name, max=largest[name]) for i, name in enumerate(graph.axes)}
    with torch.no_grad(), _quiet():
        traced = torch.export.export(_Whole(tower).eval(), (example,), dynamic_shapes=(sizes,), strict=False)
        program = torch.onnx.export(
            traced,
            input_names=[graph.input],
            output_names=[graph.output],
            dynamic_shapes=(dict(enumerate(graph.axes)),),
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    # where each node stands in the source on this machine, more text than the graph; and shapes that every reader
    # infers anyway, which the quantization finds at odds with its own
    proto.graph.ClearField("value_info")
    for part in (proto, proto.graph, *proto.graph.node, *proto.graph.input, *proto.graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch and onnxruntime say to their own developers, and with the caller's logging left as it is."""
    exporter, root = logging.getLogger("torch.onnx._internal.exporter._registration"), logging.getLogger()
    level, silent = exporter.level, logging.NullHandler()
    exporter.setLevel(logging.ERROR)  # "torchvision is not installed"
    root.addHandler(silent)  # or the quantization's logging.info makes one that writes to stderr for good
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)", FutureWarning)
            yield
    finally:
        exporter.setLevel(level)
        root.removeHandler(silent)


def _write(proto: Any, path: Path) -> None:
    """Write a graph, its weights in a file beside it if they are too many for one."""
    onnx = _needed("onnx")
    size = sum(len(weights.raw_data) for weights in proto.graph.initializer)
    onnx.save_model(proto, path, save_as_external_data=size > EXTERNAL_BYTES, location=_data(path).name)
    if _data(path).exists():
        _data(path).chmod(path.stat().st_mode)  # onnx makes it for the owner alone


def _quantize(path: Path, to: Path) -> None:
    """Write the graph at `path` with int8 weights in matrix products and embeddings; activations stay as they are
    between them, and are quantized as they come in front of a product.

    Convolutions stay float32: onnxruntime's integer convolution on a CPU is slower than the float one. Weights take
    seven of the eight bits, for processors without VNNI add two products of eight bits up in sixteen, and saturate.
    """
    onnx = _needed("onnx")
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    proto = onnx.load(path)
    add_pre_process_metadata(proto)  # torch's exporter has done that step; without the mark a warning is logged
    with TemporaryDirectory(dir=to.parent) as work, _quiet():
        written = Path(work) / to.name
        quantize_dynamic(
            proto,
            written,
            op_types_to_quantize=["MatMul", "Gemm", "Gather"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
        )
        _write(onnx.load(written), to)


def _measure(path: Path, graph: Graph, tower: nn.Module, inputs: list[Tensor]) -> Exported:
    """How far the graph at `path` is from `tower` on `inputs`."""
    onnx_tower = OnnxTower(path, graph)
    with torch.no_grad():
        expected = torch.cat([tower(x) for x in inputs]).double()
        got = torch.cat([onnx_tower(x) for x in inputs]).double()
    return Exported(
        file=path,
        bytes=sum(file.stat().st_size for file in (path, _data(path)) if file.exists()),
        cosine=F.cosine_similarity(expected, got, dim=-1).min().item(),
        max_abs_difference=(expected - got).abs().max().item(),
    )


def _random_inputs(graph: Graph, architecture: Architecture, number: int, share: float) -> Tensor:
    """Noise for the image encoder; for the text encoder any tokens, [EOS] at any place and again wherever one pads."""
    generator = torch.Generator().manual_seed(number)
    size, text = architecture.image_size, architecture.text
    if graph is VISION:
        return torch.randn(number, 3, size, size, generator=generator)
    length, eos = max(1, round(share * text.context_length)), text.vocab_size - 1
    tokens = torch.randint(0, eos, (number, length), generator=generator)
    ends = torch.randint(0, length, (number, 1), generator=generator)
    return tokens.masked_fill(torch.arange(length) >= ends, eos)


def _data(path: Path) -> Path:
    """Where the weights of the graph at `path` are when they are not in it."""
    return path.with_suffix(".onnx_data")


def _files(folder: Path, graph: Graph, suffix: str) -> list[Path]:
    """The files of a graph that are there, the graph first."""
    path = folder / f"{graph.file}{suffix}.onnx"
    return [file for file in (path, _data(path)) if file.is_file()]


def _needed(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise MissingExtra(package, extra="onnx", needed_for="ONNX graphs") from None
