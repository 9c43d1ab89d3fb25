import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limner.data.tokenizer import Tokenizer
from limner.data.write import Sample, write_classes, write_shards
from limner.errors import ConfigError, DataError
from limner.evaluation.metrics import ranks_of_right, share_within, wilson
from limner.evaluation.retrieval import retrieval
from limner.evaluation.suite import evaluate_task
from limner.evaluation.zero_shot import ZeroShotClassifier
from limner.model.clip import CLIP, create


@pytest.fixture
def model(tokenizer: Tokenizer) -> CLIP:
    return create("RN-nano", tokenizer=tokenizer).eval()


def test_ranks_of_a_matrix_worked_out_by_hand():
    scores = torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.3, 0.8], [0.4, 0.4, 0.4]])
    right = torch.eye(3, dtype=torch.bool)
    assert ranks_of_right(scores, right).tolist() == [0, 1, 2]  # ties count against the model
    assert [share_within(ranks_of_right(scores, right), k) for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1])
    several = torch.tensor([[True, False, True], [True, False, True], [False, True, True]])
    assert ranks_of_right(scores, several).tolist() == [0, 0, 1]


@given(seed=st.integers(0, 1000), queries=st.integers(1, 8), candidates=st.integers(1, 12))
def test_recall_grows_with_k_and_reaches_one(seed: int, queries: int, candidates: int):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(queries, candidates, generator=generator)
    right = torch.zeros(queries, candidates, dtype=torch.bool)
    right[:, 0] = True
    shares = [share_within(ranks_of_right(scores, right), k) for k in range(1, candidates + 1)]
    assert shares == sorted(shares) and shares[-1] == 1.0


def test_intervals():
    low, high = wilson(0.5, 100)
    assert (low, high) == (pytest.approx(0.4038315, abs=1e-6), pytest.approx(0.5961685, abs=1e-6))
    assert wilson(0.0, 10)[0] == 0.0 and wilson(1.0, 10)[1] == pytest.approx(1)
    assert math.isclose(wilson(0.0, 10)[1], 1 - wilson(1.0, 10)[0])


def test_a_class_is_the_normalised_mean_of_its_normalised_prompts(model: CLIP):
    names, templates = ["dog", "the table"], ["{}", "a {} on paper"]
    weights = ZeroShotClassifier(model, names, templates).weights
    for name, weight in zip(names, weights, strict=True):
        with torch.no_grad():
            prompts = torch.stack([model.encode_text(template.format(name))[0] for template in templates])
        mean = prompts.mean(dim=0)
        assert torch.allclose(weight, mean / mean.norm(), atol=1e-6)


def test_predictions_are_probabilities_in_order(model: CLIP, picture: Callable[..., bytes], tmp_path: Path):
    (tmp_path / "p.png").write_bytes(picture())
    classifier = ZeroShotClassifier(model, ["dog", "table", "three"], ["{}"])
    ((first, second, third),) = classifier.predict(tmp_path / "p.png")
    assert first[1] >= second[1] >= third[1] and first[1] + second[1] + third[1] == pytest.approx(1)
    assert {first[0], second[0], third[0]} == {"dog", "table", "three"}


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        (["cat", "dog", "cat"], ["{}"], "cat more than once"),
        ([], ["{}"], "not be empty"),
        (["cat"], ["a picture"], "hold {} once"),
        (["cat"], [], "no template"),
    ],
)
def test_labels_that_cannot_work(model: CLIP, names: list[str], templates: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        ZeroShotClassifier(model, names, templates)


def test_identical_captions_are_right_for_each_of_their_pictures(model: CLIP, monkeypatch: pytest.MonkeyPatch):
    east, north = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    features = {"a plane": east, "a river": north}
    monkeypatch.setattr(model, "encode_text", lambda texts: torch.stack([features[text] for text in texts]))
    images = torch.stack([east, east, north])
    captions = [("a plane",), ("a plane",), ("a river",)]
    rows = retrieval(model, images, captions, {"task": "t", "model": "m", "data": "d"})
    found = {row.metric: row for row in rows}
    assert found["retrieval.text_to_image@1"].value == 1.0 and found["retrieval.text_to_image@1"].count == 2
    assert found["retrieval.image_to_text@1"].value == 1.0 and found["retrieval.image_to_text@1"].count == 3


def labelled(folder: Path, picture: Callable[..., bytes], labels: list[int]) -> Path:
    samples = [
        Sample(
            image=picture(seed=i),
            extension="png",
            width=40,
            height=30,
            captions=(f"number {i}",),
            label=label,
            record={"held_out": i == 0},
        )
        for i, label in enumerate(labels)
    ]
    write_shards(samples, folder / "test", origin={})
    write_classes(folder, ["dog", "table", "three"], ["{}", "a {} of paper"])
    return folder / "test"


def test_a_labelled_task(model: CLIP, picture: Callable[..., bytes], tmp_path: Path):
    result = evaluate_task(model, labelled(tmp_path, picture, [0, 1, 2, 0, 1, 2]))
    values = {r.metric: r for r in result.rows}
    assert values["zero_shot.top1"].count == 6 and values["held_out.top5"].count == 1
    assert values["zero_shot.top5"].value == 1.0  # of three classes
    assert result.templates == ["{}", "a {} of paper"] and len(result.predictions) == 6
    hits = sum(p.top[0] == p.label for p in result.predictions) / 6
    assert values["zero_shot.top1"].value == pytest.approx(hits)


def test_labels_beyond_the_classes(model: CLIP, picture: Callable[..., bytes], tmp_path: Path):
    with pytest.raises(DataError, match="below 3"):
        evaluate_task(model, labelled(tmp_path, picture, [0, 3]))


def test_unreadable_pictures_are_counted(model: CLIP, folder_of_pairs: Path):
    (folder_of_pairs / "03.png").write_bytes(b"not a picture")
    (folder_of_pairs / "04.png").write_bytes(b"")
    result = evaluate_task(model, folder_of_pairs)
    assert result.skipped == {"13 bytes of another format": 1, "empty picture file": 1}
    assert result.rows[0].count == 38


def test_pictures_without_captions_or_labels_are_not_a_task(model: CLIP, folder_of_pairs: Path):
    for path in folder_of_pairs.glob("*.txt"):
        path.unlink()
    with pytest.raises(DataError, match="limner classify"):
        evaluate_task(model, folder_of_pairs)


def test_a_caption_or_a_label_missing_is_a_counted_skip(model: CLIP, folder_of_pairs: Path):
    (folder_of_pairs / "03.txt").unlink()
    result = evaluate_task(model, folder_of_pairs)
    assert result.skipped == {"no caption (not in the retrieval)": 1}
    assert {r.metric: r.count for r in result.rows}["retrieval.image_to_text@1"] == 39


def test_a_template_may_hold_other_braces(model: CLIP):
    assert ZeroShotClassifier(model, ["dog", "table"], ["a {thing} {}"]).weights.shape == (2, 64)


def test_names_that_differ_in_case_only_are_the_same(model: CLIP):
    with pytest.raises(ConfigError, match="cat more than once"):
        ZeroShotClassifier(model, ["Cat", "cat"])
