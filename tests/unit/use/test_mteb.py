import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader

from limner.data.tokenizer import Tokenizer
from limner.errors import ConfigError, DataError
from limner.evaluation.metrics import Row
from limner.evaluation.suite import evaluate_task
from limner.evaluation.tasks import read_task
from limner.model.clip import CLIP, create
from limner.store.store import fingerprint_now

NAMES = ["dog", "picture", "three"]
CAPTIONS = [f"{name} {ending}" for name in NAMES for ending in ("", "on a table", "by hand", "12")]


@pytest.fixture(scope="module")
def mteb(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with torch.random.fork_rng(devices=[]), pytest.MonkeyPatch.context() as patch:  # it seeds torch, and makes a folder
        patch.setenv("MTEB_CACHE", str(tmp_path_factory.mktemp("mteb")))
        return pytest.importorskip("mteb", reason="mteb is an extra of its own: pip install 'limner[mteb]'")


@pytest.fixture(autouse=True)
def random_state_of_its_own() -> Iterator[None]:
    """mteb seeds torch for each task, and its loaders draw from torch's random state."""
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.fixture
def pictures() -> list[Image.Image]:
    colours = [np.random.default_rng(seed).integers(0, 256, 3).tolist() for seed in range(12)]
    found = [Image.new("RGB", (40 + place, 50), tuple(colour)) for place, colour in enumerate(colours)]
    return [one.convert("L") if place == 3 else one for place, one in enumerate(found)]


@pytest.fixture
def model(tokenizer: Tokenizer, pictures: list[Image.Image]) -> CLIP:
    """A model with random weights to which these pictures do not all look the same."""
    model = create("RN-nano", tokenizer=tokenizer).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.encode_image(pictures)
    return model


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def rows(pictures: list[Image.Image], **columns: list[Any]) -> Any:
    from datasets import Dataset
    from datasets import Image as Pictures

    images = [{"bytes": png(picture), "path": None} for picture in pictures]
    return Dataset.from_dict({"image": images, **columns}).cast_column("image", Pictures())


def made(kind: str, category: str, score: str) -> Any:
    from mteb.abstasks.task_metadata import TaskMetadata

    unknown = ("reference", "date", "domains", "task_subtypes", "license", "annotations_creators", "dialect")
    return TaskMetadata(
        name="Made",
        description="Made up.",
        dataset={"path": "made/up", "revision": "1"},
        type=kind,
        category=category,
        main_score=score,
        eval_langs=["eng-Latn"],
        modalities=["text", "image"],
        sample_creation=None,
        bibtex_citation="",
        **dict.fromkeys(unknown),
    )


def loaded(task: Any, split: Any) -> Any:
    """A task that has its data, so that mteb fetches none."""
    task.dataset, task.data_loaded = {"default": {"test": split}}, True
    return task


def zero_shot(rows: Any = None) -> Any:
    from mteb.abstasks import AbsTaskZeroShotClassification

    class Made(AbsTaskZeroShotClassification):
        metadata = made("ZeroShotClassification", "i2t", "accuracy")

        def get_candidate_labels(self) -> list[str]:
            return [f"a picture of a {name}." for name in NAMES]

    return loaded(Made(), rows)


def retrieval(pictures: list[Image.Image]) -> Any:
    from datasets import Dataset
    from mteb.abstasks import AbsTaskRetrieval

    ids = [str(place) for place in range(12)]
    queries = Dataset.from_dict({"id": ids, "text": CAPTIONS})
    right = {one: {one: 1} for one in ids}
    split = {"corpus": rows(pictures, id=ids), "queries": queries, "relevant_docs": right, "top_ranked": None}

    class Made(AbsTaskRetrieval):
        metadata = made("Any2AnyRetrieval", "t2i", "recall_at_1")

    return loaded(Made(), split)


def encoder(model: CLIP, **kwargs: Any) -> Any:
    from limner.use.mteb import Encoder

    return Encoder(model, **kwargs)


def scores(mteb: Any, model: CLIP, task: Any) -> dict[str, Any]:
    kwargs = {"batch_size": 5, "show_progress_bar": False}
    found = mteb.evaluate(encoder(model), task, cache=None, encode_kwargs=kwargs, show_progress_bar=False)
    return found.task_results[0].scores["test"][0]


def own(model: CLIP, folder: Path, **changes: Any) -> dict[str, Row]:
    return {row.metric: row for row in evaluate_task(model, replace(read_task(folder), **changes)).rows}


def test_zero_shot_accuracy_is_the_same(mteb: Any, model: CLIP, pictures: list[Image.Image], tmp_path: Path):
    labels = [place % 3 for place in range(12)]
    for place, label in enumerate(labels):
        (tmp_path / NAMES[label]).mkdir(exist_ok=True)
        pictures[place].save(tmp_path / NAMES[label] / f"{place:02d}.png")
    found = scores(mteb, model, zero_shot(rows(pictures, label=labels)))
    expected = own(model, tmp_path, templates=("a picture of a {}.",))["zero_shot.top1"].value
    assert found["accuracy"] == pytest.approx(expected, abs=1e-5)
    assert 0 < expected < 1 and model.training


def test_recall_is_the_same(mteb: Any, model: CLIP, pictures: list[Image.Image], tmp_path: Path):
    for place, (picture, caption) in enumerate(zip(pictures, CAPTIONS, strict=True)):
        picture.save(tmp_path / f"{place:02d}.png")
        (tmp_path / f"{place:02d}.txt").write_text(caption)
    found, expected = scores(mteb, model, retrieval(pictures)), own(model, tmp_path)
    values = [expected[f"retrieval.text_to_image@{k}"].value for k in (1, 5, 10)]
    assert [found[f"recall_at_{k}"] for k in (1, 5, 10)] == pytest.approx(values, abs=1e-5)  # mteb rounds
    assert 0 < values[1] < values[2] < 1


def loader(**columns: list[Any]) -> DataLoader[Any]:
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return DataLoader(rows, 5, collate_fn=lambda batch: {name: [row[name] for row in batch] for name in columns})


def encode(model: CLIP, **columns: list[Any]) -> Any:
    about = {"task_metadata": zero_shot().metadata, "hf_split": "test", "hf_subset": "default"}
    return encoder(model).encode(loader(**columns), **about)


def test_a_row_with_both_gets_the_mean_of_both(mteb: Any, model: CLIP, pictures: list[Image.Image]):
    images, texts = encode(model, image=pictures), encode(model, text=CAPTIONS)
    model.eval()
    np.testing.assert_allclose(images, model.encode_image(pictures), atol=1e-6)
    np.testing.assert_allclose(texts, model.encode_text(CAPTIONS), atol=1e-6)
    assert images.dtype == texts.dtype == np.float32
    mixed = encode(model, image=[None, *pictures[1:]], text=[*CAPTIONS[:11], " "])
    mean = F.normalize(torch.from_numpy(images + texts), dim=-1)
    np.testing.assert_allclose(mixed, np.concatenate([texts[:1], mean[1:11], images[11:]]), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(mixed, axis=1), 1, atol=1e-6)
    assert np.isfinite(encode(model, text=["", "dog"])).all()
    assert encode(model, image=[]).shape == (0, model.architecture.embed_dim)


def test_what_cannot_be_encoded_is_refused(mteb: Any, model: CLIP, pictures: list[Image.Image]):
    with pytest.raises(DataError, match=r"The rows of Made must be pictures, sentences or both\. Got rows of audio"):
        encode(model, audio=[None])
    with pytest.raises(DataError, match="Got rows of text, video"):
        encode(model, text=["dog"], video=[None])
    with pytest.raises(ConfigError, match="The picture at place 1 must be"):
        encode(model, image=[pictures[0], None])
    with pytest.raises(ConfigError, match=r"must be float32\. Got 'int8'"):
        encoder(model).encode(loader(text=["dog"]), task_metadata=zero_shot().metadata, precision="int8")


def test_mteb_is_told_what_the_model_is(mteb: Any, model: CLIP, pictures: list[Image.Image]):
    meta = encoder(model).mteb_model_meta
    assert (meta.name, meta.revision) == ("limner/RN-nano", fingerprint_now(model))
    assert meta.n_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert meta.max_tokens == model.architecture.text.context_length and meta.modalities == ["image", "text"]
    assert encoder(model, name="cats").mteb_model_meta.name == "limner/cats"
    assert encoder(model, name="me/cats").mteb_model_meta.name == "me/cats"
    model.tokenizer = None
    with pytest.raises(ValueError, match=r"supports \['image'\], but none overlap"):
        mteb.evaluate(encoder(model), retrieval(pictures), cache=None)
