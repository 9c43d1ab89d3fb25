import logging
import pickle
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F

from limner.data.tokenizer import Tokenizer
from limner.errors import MissingExtra, ModelError, StorageError
from limner.model.clip import CLIP, create
from limner.store import onnx as limner_onnx
from limner.store.onnx import Exported, export, with_onnx

Export = tuple[CLIP, Path, list[Exported]]


@pytest.fixture(scope="module")
def resnet(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Export:
    model, folder = create("RN-nano", tokenizer=tokenizer), tmp_path_factory.mktemp("resnet")
    return model, folder, export(model, folder, int8=True)


@pytest.fixture(scope="module")
def vit(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Export:
    model, folder = create("ViT-mini", tokenizer=tokenizer), tmp_path_factory.mktemp("vit")
    return model, folder, export(model, folder)


@pytest.fixture(params=["resnet", "vit"])
def exported(request: pytest.FixtureRequest) -> Export:
    return request.getfixturevalue(request.param)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, resnet: Export) -> CLIP:
    """The model whose export takes no time, for the graphs are those of before."""
    model, folder, _ = resnet
    protos = {
        graph.file: onnx.load(folder / "onnx" / f"{graph.file}.onnx")
        for graph in (limner_onnx.VISION, limner_onnx.TEXT)
    }
    monkeypatch.setattr(limner_onnx, "_trace", lambda tower, graph, example, architecture: protos[graph.file])
    return model


def run(path: Path, **inputs: np.ndarray) -> torch.Tensor:
    """What somebody gets who has onnxruntime and the file, and nothing of limner."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, inputs)[0])


def captions(ends: list[int], length: int, model: CLIP, generator: torch.Generator, *, padding: int) -> torch.Tensor:
    eos = model.architecture.text.vocab_size - 1
    tokens = torch.randint(0, eos, (len(ends), length), generator=generator)
    for row, end in zip(tokens, ends, strict=True):
        row[end], row[end + 1 :] = eos, padding
    return tokens


def ends_of(value: onnx.ValueInfoProto) -> tuple[str, int, list[str | int]]:
    kind = value.type.tensor_type
    return value.name, kind.elem_type, [d.dim_param or d.dim_value for d in kind.shape.dim]


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_names_and_axes_are_those_of_transformers_js(exported: Export):
    model, folder, _ = exported
    size, embed = model.architecture.image_size, model.architecture.embed_dim
    vision, text = (onnx.load(folder / "onnx" / f"{name}_model.onnx") for name in ("vision", "text"))
    assert [ends_of(v) for v in vision.graph.input] == [
        ("pixel_values", onnx.TensorProto.FLOAT, ["batch", 3, size, size])
    ]
    assert [ends_of(v) for v in vision.graph.output] == [("image_embeds", onnx.TensorProto.FLOAT, ["batch", embed])]
    assert [ends_of(v) for v in text.graph.input] == [("input_ids", onnx.TensorProto.INT64, ["batch", "tokens"])]
    assert [ends_of(v) for v in text.graph.output] == [("text_embeds", onnx.TensorProto.FLOAT, ["batch", embed])]
    for proto in (vision, text):
        onnx.checker.check_model(proto, full_check=True)
        assert {opset.domain for opset in proto.opset_import} == {""}  # nothing that onnxruntime-web does not know
        assert str(Path(limner_onnx.__file__).parent).encode() not in proto.SerializeToString()


def test_the_float_graphs_agree_with_torch_as_reported(exported: Export):
    for one in exported[2]:
        assert one.file.is_file() and one.bytes == one.file.stat().st_size
        if "quantized" not in one.file.name:
            assert one.cosine > 0.999999 and one.max_abs_difference < 1e-5  # measured: 2e-6 at most


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_pictures_in_batches_of_any_size(exported: Export, batch: int, generator: torch.Generator):
    model, folder, _ = exported
    size = model.architecture.image_size
    pixels = torch.randn(batch, 3, size, size, generator=generator)
    got = run(folder / "onnx" / "vision_model.onnx", pixel_values=pixels.numpy())
    with torch.no_grad():
        assert torch.allclose(got, model.image(pixels), atol=1e-5)


@pytest.mark.parametrize(("ends", "length"), [([0], 1), ([76, 0, 75], 77), ([1, 4, 2, 5, 3, 0, 5], 6), ([9] * 2, 13)])
@pytest.mark.parametrize("padding_is_eos", [True, False])
def test_captions_that_end_anywhere(
    exported: Export, ends: list[int], length: int, padding_is_eos: bool, generator: torch.Generator
):
    model, folder, _ = exported
    padding = model.architecture.text.vocab_size - 1 if padding_is_eos else 0  # transformers.js pads with [EOS]
    tokens = captions(ends, length, model, generator, padding=padding)
    got = run(folder / "onnx" / "text_model.onnx", input_ids=tokens.numpy())
    with torch.no_grad():
        assert torch.allclose(got, model.text(tokens), atol=1e-5)


def test_int8_files_are_smaller_and_near(resnet: Export):
    _, folder, exported = resnet
    by_name = {one.file.name: one for one in exported}
    assert list(by_name) == [
        "vision_model.onnx",
        "vision_model_quantized.onnx",
        "text_model.onnx",
        "text_model_quantized.onnx",
    ]
    for name in ("vision", "text"):
        small = by_name[f"{name}_model_quantized.onnx"]
        assert small.bytes < by_name[f"{name}_model.onnx"].bytes
        assert small.cosine > 0.99
        ops = {node.op_type for node in onnx.load(small.file).graph.node}
        assert "MatMulInteger" in ops and "ConvInteger" not in ops and "Gemm" not in ops
    assert files_in(folder) == sorted(f"onnx/{name}" for name in by_name)


def test_a_model_with_graphs_for_towers_is_a_model(exported: Export, generator: torch.Generator):
    model, folder, _ = exported
    before = model.image
    graphs = with_onnx(model, folder)
    size = model.architecture.image_size
    pixels = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8, generator=generator)
    with torch.no_grad():
        assert torch.allclose(graphs.encode_image(pixels), model.encode_image(pixels), atol=1e-5)
        sentences = ["a dog", "the digit three", ""]
        assert torch.allclose(graphs.encode_text(sentences), model.encode_text(sentences), atol=1e-5)
    assert graphs.logit_scale == model.logit_scale and graphs.architecture == model.architecture
    assert graphs.fingerprint == with_onnx(model, folder).fingerprint != model.fingerprint
    assert model.image is before and graphs.image is not before
    copied = pickle.loads(pickle.dumps(graphs))  # opened again: a session of onnxruntime's is no part of a pickle
    assert torch.equal(copied.encode_image(pixels), graphs.encode_image(pixels)) and not copied.image.training


def test_int8_graphs_for_towers(resnet: Export, generator: torch.Generator):
    model, folder, _ = resnet
    graphs = with_onnx(model, folder, int8=True)
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=generator)
    with torch.no_grad():
        assert F.cosine_similarity(graphs.encode_image(pixels), model.encode_image(pixels)).min() > 0.99
    assert graphs.fingerprint != with_onnx(model, folder).fingerprint


def test_graphs_that_are_not_there(resnet: Export, tmp_path: Path):
    with pytest.raises(ModelError, match=r"must hold onnx/vision_model_quantized.onnx and .* Got no such folder"):
        with_onnx(resnet[0], tmp_path / "none", int8=True)


def test_a_graph_that_disagrees_leaves_what_was_there(quick: CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    export(quick, tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path)}
    wrong = Exported(file=tmp_path / "x", bytes=0, cosine=float("nan"), max_abs_difference=1.0)
    monkeypatch.setattr(limner_onnx, "_measure", lambda *_: wrong)
    with pytest.raises(ModelError, match=r"vision_model.onnx must give torch's embeddings.* Got nan"):
        export(quick, tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path)} == before
    with pytest.raises(ModelError):
        export(quick, tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_wrong_weights_are_noticed(quick: CLIP, tmp_path: Path):
    """`quick` keeps the old graphs, so another model's weights are not in them."""
    assert quick.tokenizer is not None
    other = create("RN-nano", tokenizer=quick.tokenizer, seed=1)
    with pytest.raises(ModelError, match="embeddings, to a cosine of"):
        export(other, tmp_path)


def test_many_weights_are_in_a_file_of_their_own(
    quick: CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
):
    monkeypatch.setattr(limner_onnx, "EXTERNAL_BYTES", 100_000)
    exported = export(quick, tmp_path, int8=True)
    graphs = ("text_model", "text_model_quantized", "vision_model", "vision_model_quantized")
    assert files_in(tmp_path) == [f"onnx/{name}.onnx{end}" for name in graphs for end in ("", "_data")]
    for one in exported:
        data = one.file.with_suffix(".onnx_data")
        assert one.bytes == one.file.stat().st_size + data.stat().st_size and data.stat().st_size > 100_000
        assert data.stat().st_mode == one.file.stat().st_mode
        proto = onnx.load(one.file, load_external_data=False)
        places = {entry.value for t in proto.graph.initializer for entry in t.external_data if entry.key == "location"}
        assert places == {data.name}
    pixels = torch.randn(2, 3, 32, 32, generator=generator)
    with torch.no_grad():
        assert torch.allclose(with_onnx(quick, tmp_path).image(pixels), quick.image(pixels), atol=1e-5)


def test_files_of_a_model_before_go_away(quick: CLIP, tmp_path: Path):
    (tmp_path / "onnx").mkdir()
    for name in ("vision_model_quantized.onnx", "text_model.onnx_data", "of_somebody_else.onnx"):
        (tmp_path / "onnx" / name).write_text("old")
    export(quick, tmp_path)
    assert files_in(tmp_path) == ["onnx/of_somebody_else.onnx", "onnx/text_model.onnx", "onnx/vision_model.onnx"]


def test_the_model_and_the_logging_are_left_alone(quick: CLIP, tmp_path: Path):
    handlers = list(logging.getLogger().handlers)
    quick.train()
    try:
        export(quick, tmp_path, int8=True)
        assert quick.image.training and all(p.requires_grad for p in quick.parameters())
    finally:
        quick.eval()
    assert logging.getLogger().handlers == handlers


def test_a_folder_that_cannot_be_written(quick: CLIP, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="must be written whole"):
        export(quick, tmp_path / "file")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_the_packages_are_an_extra(package: str, quick: CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"The package {package} for .*limner\[onnx\]"):
        export(quick, tmp_path)
