import functools
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from helpers.tars import tar
from limner.data.sources.read import read_images, read_pairs
from limner.data.tokenizer import Tokenizer
from limner.data.write import Sample, write_classes, write_shards
from limner.embed import embed_images
from limner.errors import ConfigError, DataError, ModelError
from limner.evaluation.intervals import wilson
from limner.evaluation.metrics import best_first, ranks_of_right, share_within
from limner.evaluation.retrieval import retrieval
from limner.evaluation.suite import How, evaluate, evaluate_task
from limner.evaluation.tasks import read_task
from limner.evaluation.zero_shot import ZeroShotClassifier
from limner.model.clip import CLIP, create
from limner.store.store import load
from limner.use.classify import classify_images
from limner.use.search import find


@pytest.fixture
def model(tokenizer: Tokenizer) -> CLIP:
    return create("RN-nano", tokenizer=tokenizer).eval()


def test_ranks_of_a_matrix_worked_out_by_hand():
    scores = torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.3, 0.8], [0.4, 0.4, 0.4]])
    right = torch.eye(3, dtype=torch.bool)
    assert ranks_of_right(scores, right).tolist() == [0, 1, 2]  # of equal scores the first wins
    assert ranks_of_right(scores, right.flip(1)).tolist() == [1, 1, 0]
    assert [share_within(ranks_of_right(scores, right), k) for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1])
    several = torch.tensor([[True, False, True], [True, False, True], [False, True, True]])
    assert ranks_of_right(scores, several).tolist() == [0, 0, 1]


@given(
    scores=st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1, max_size=6),
    right=st.integers(0, 4),
)
def test_top_1_is_the_arg_max_and_top_k_the_first_k_of_a_stable_order(scores: list[list[int]], right: int):
    matrix = torch.tensor(scores, dtype=torch.float32)
    rank = ranks_of_right(matrix, (torch.arange(5) == right).expand(len(scores), 5))
    assert (rank == 0).tolist() == (matrix.argmax(dim=1) == right).tolist()
    order = best_first(matrix, 5)
    assert rank.tolist() == [row.index(right) for row in order.tolist()]
    assert order.tolist() == [sorted(range(5), key=lambda i, row=row: -row[i]) for row in scores]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_no_scores(value: float):
    scores = torch.eye(3)
    scores[1, 2] = value
    with pytest.raises(ModelError, match=r"The scores must be finite numbers\. Got 1 of 9 that are not"):
        ranks_of_right(scores, torch.eye(3, dtype=torch.bool))


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
        ([], ["{}"], "not be empty"),
        (["cat", " "], ["{}"], "an empty one at place 1"),
        ([0, 1], ["{}"], "The class names, at place 0, must be text"),
        (["cat", None], ["{}"], "The class names, at place 1, must be text"),
        (None, ["{}"], "Got None"),
        (["cat"], ["a picture"], "hold {} once"),
        (["cat"], [], "no template"),
    ],
)
def test_labels_that_cannot_work(model: CLIP, names: Any, templates: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        ZeroShotClassifier(model, names, templates)


EAST, NORTH = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])


@pytest.fixture
def seeing(model: CLIP, monkeypatch: pytest.MonkeyPatch) -> CLIP:
    """A model to which planes lie in the east and everything else in the north."""

    def encode_text(texts: list[str]) -> torch.Tensor:
        return torch.stack([EAST if "plane" in text.lower() else NORTH for text in texts])

    monkeypatch.setattr(model, "encode_text", encode_text)
    return model


def recalls(model: CLIP, images: list[torch.Tensor], contents: list[int], captions: list[tuple[str, ...]]):
    keys = [str(place) for place in range(len(images))]
    rows, _ = retrieval(model, torch.stack(images), contents, captions, keys, {"task": "t", "model": "m", "data": "d"})
    found = {row.metric.removeprefix("retrieval."): (row.value, row.count) for row in rows}
    return found["text_to_image@1"], found["image_to_text@1"]


def test_the_same_caption_is_right_for_each_of_its_images(seeing: CLIP):
    images, contents = [EAST, EAST, NORTH], [1, 2, 3]
    assert recalls(seeing, images, contents, [("a plane",), ("a plane",), ("a river",)]) == ((1, 2), (1, 3))
    assert recalls(seeing, images, contents, [("a plane",), ("A  Plane ",), ("a river",)]) == ((1, 2), (1, 3))
    assert recalls(seeing, images, contents, [("a river",), ("a river",), ("a plane",)])[1] == (0, 3)


def test_the_same_image_is_one_whatever_number_of_samples_it_comes_in(seeing: CLIP, capsys: pytest.CaptureFixture[str]):
    once = recalls(seeing, [EAST, NORTH], [1, 2], [("a plane", "one plane", "plane"), ("a river",)])
    assert capsys.readouterr().err == ""
    samples = [("a plane",), ("one plane",), ("plane",), ("a river",)]
    assert recalls(seeing, [EAST, EAST, EAST, NORTH], [1, 1, 1, 2], samples) == once == ((1, 4), (1, 2))
    assert "4 pictures are 2 different ones, 4 captions 4; what is the same counts once" in capsys.readouterr().err


def test_a_model_that_tells_nothing_apart_has_the_recall_of_chance(model: CLIP, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(model, "encode_text", lambda texts: EAST.expand(len(texts), 2))
    captions = [(f"number {number}",) for number in range(8)]
    assert recalls(model, [EAST] * 8, list(range(8)), captions) == ((1 / 8, 8), (1 / 8, 8))


@functools.cache
def paper_vocabulary() -> CLIP:
    return create("RN-nano")


@given(copies=st.lists(st.integers(0, 3), min_size=2, max_size=9), seed=st.integers(0, 99))
def test_recall_knows_no_copies(copies: list[int], seed: int):
    """An image several times, each time with other captions, or once with all of them: the same rows."""
    generator = torch.Generator().manual_seed(seed)
    looks = torch.nn.functional.normalize(torch.randn(4, 3, generator=generator), dim=1)
    saying = {f"words {n}": torch.nn.functional.normalize(torch.randn(3, generator=generator), dim=0) for n in range(9)}
    model = paper_vocabulary()
    model.encode_text = lambda texts: torch.stack([saying[text] for text in texts])  # pyright: ignore
    one_by_one = [(f"words {place}",) for place in range(len(copies))]
    together = {one: tuple(f"words {p}" for p, other in enumerate(copies) if other == one) for one in copies}
    several = recalls(model, [looks[one] for one in copies], copies, one_by_one)
    assert several == recalls(model, [looks[one] for one in together], list(together), list(together.values()))


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
    assert result.skipped == {"not a picture": 1, "empty picture file": 1}
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


def test_equal_names_are_classes_of_which_the_first_gets_all(
    model: CLIP, picture: Callable[..., bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    names = [f"thing {number}" for number in range(40)]
    names[31] = "Thing  7"
    classifier = ZeroShotClassifier(model, names)
    assert "Names that several classes have: thing 7." in capsys.readouterr().err
    scores = classifier.scores(torch.nn.functional.normalize(torch.randn(50, 64, generator=torch.Generator()), dim=1))
    assert torch.equal(scores[:, 7], scores[:, 31]) and not (scores.argmax(dim=1) == 31).any()
    write_classes(folder := labelled(tmp_path, picture, [0, 1, 2]).parent, ["table", "dog", "table"], ["{}"])
    (top1, *_) = evaluate_task(model, folder / "test").rows
    assert top1.metric == "zero_shot.top1" and top1.count == 3


def test_names_come_in_any_form(model: CLIP, capsys: pytest.CaptureFixture[str]):
    weights = ZeroShotClassifier(model, ["dog", "table"], ["a picture of a {}."]).weights
    for names in (("dog", "table"), np.array(["dog", "table"]), (name for name in ("dog", "table"))):
        assert torch.equal(ZeroShotClassifier(model, names, "a picture of a {}.").weights, weights)
    assert capsys.readouterr().err == ""
    assert ZeroShotClassifier(model, "dog").class_names == ["dog"]
    assert "every picture is certain to be it" in capsys.readouterr().err


# --- the state of a model and of its data ----------------------------------------------------------------------------


def test_a_model_in_training_is_measured_in_inference_mode_and_left_as_it_was(
    model: CLIP, folder_of_pairs: Path, picture: Callable[..., bytes], tmp_path: Path
):
    tasks = [folder_of_pairs, labelled(tmp_path / "labelled", picture, [0, 1, 2])]
    expected = evaluate(model, tasks)
    model.train()
    model.text.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    assert evaluate(model, iter(tasks)) == expected
    assert ZeroShotClassifier(model, ["dog", "table"]).predict([tmp_path.joinpath("pairs", "00.png")])
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_one_task_alone_is_a_task(model: CLIP, folder_of_pairs: Path):
    rows = evaluate(model, [folder_of_pairs])
    assert evaluate(model, folder_of_pairs) == evaluate(model, str(folder_of_pairs)) == rows
    assert evaluate(model, read_pairs(folder_of_pairs)) == rows


def test_rows_name_the_model_as_it_is_now(model: CLIP, folder_of_pairs: Path, tmp_path: Path):
    model.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert evaluate(loaded, folder_of_pairs)[0].model == loaded.fingerprint
    with torch.no_grad():
        loaded.image.attention_pool.c_proj.weight.mul_(0.5)
    assert evaluate(loaded, folder_of_pairs)[0].model != loaded.fingerprint


def test_a_scale_that_is_not_finite_is_no_probability(model: CLIP, folder_of_pairs: Path):
    with torch.no_grad():
        model.log_logit_scale.fill_(float("nan"))
    classifier = ZeroShotClassifier(model, ["dog", "table"])
    with pytest.raises(ModelError, match=r"The probabilities must be finite numbers\. Got 2 of 2 that are not"):
        classifier.predict(folder_of_pairs / "00.png")


def test_features_go_to_the_model_s_device_and_masks_stay_with_the_scores(model: CLIP):
    """`meta` stands for a GPU: what lies there cannot be mixed with the CPU's unawares."""
    classifier = ZeroShotClassifier(model, ["dog", "table", "dog"])
    classifier.weights = classifier.weights.to("meta")
    scores = classifier.scores(torch.empty(5, 64))
    assert scores.device.type == "meta" and scores.shape == (5, 3)


# --- class folders and text labels -----------------------------------------------------------------------------------


def class_folders(folder: Path, picture: Callable[..., bytes], *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for copy in range(2):
            (folder / name / f"{copy}.png").write_bytes(picture(seed=10 * number + copy))
    return folder


def test_class_folders_are_classified_by_their_names(model: CLIP, picture: Callable[..., bytes], tmp_path: Path):
    folder = class_folders(tmp_path / "pets", picture, "red_fox", "dog", "great-dane")
    (folder / "README.png").write_bytes(picture(seed=99))
    result = evaluate_task(model, folder)
    assert result.class_names == ["dog", "great dane", "red fox"]
    metrics = ("top1", "top5", "mean_per_class", "calibration_error")
    assert {row.metric: row.count for row in result.rows} == {f"zero_shot.{name}": 6 for name in metrics}
    assert [(p.key, p.label) for p in result.predictions] == [
        (f"{name}/{copy}.png", label) for label, name in enumerate(("dog", "great-dane", "red_fox")) for copy in (0, 1)
    ]
    assert result.skipped["no label (not classified)"] == 1
    (folder / "classnames.txt").write_text("hound\nDane\nfox\n")
    assert evaluate_task(model, folder).class_names == ["hound", "Dane", "fox"]
    (folder / "classnames.txt").write_text("hound\nDane\n")
    with pytest.raises(DataError, match="a line for each of its 3 folders"):
        evaluate_task(model, folder)


def test_folders_of_splits_and_of_wordnet_numbers_get_a_word(
    model: CLIP, picture: Callable[..., bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = class_folders(tmp_path / "imagenet", picture, "train/n01440764", "val/n01440764", "val/n01443537")
    with pytest.raises(DataError, match=r"Got the splits train, val\. Give its path, as text"):
        evaluate_task(model, read_images(folder))
    evaluate_task(model, folder / "val")
    assert "named by WordNet's numbers" in capsys.readouterr().err


def test_labels_in_a_list_that_are_texts(model: CLIP, folder_of_pairs: Path):
    rows = [f"{number:02d}.png,{('dog', 'table')[number % 2]}" for number in range(6)]
    (folder_of_pairs / "list.csv").write_text("\n".join(["filename,label", *rows]) + "\n")
    result = evaluate_task(model, folder_of_pairs / "list.csv")
    assert result.class_names == ["dog", "table"] and [p.label for p in result.predictions] == [0, 1, 0, 1, 0, 1]
    (folder_of_pairs / "classnames.txt").write_text("three\ntable\nDog\n")
    result = evaluate_task(model, folder_of_pairs / "list.csv")
    assert result.class_names == ["three", "table", "Dog"] and [p.label for p in result.predictions] == [
        2,
        1,
        2,
        1,
        2,
        1,
    ]


def test_numbers_without_names_are_not_classified_and_counted(model: CLIP, folder_of_pairs: Path):
    rows = [f"{number:02d}.png,number {number},{number % 2}" for number in range(6)]
    (folder_of_pairs / "list.csv").write_text("\n".join(["filename,caption,label", *rows]) + "\n")
    result = evaluate_task(model, folder_of_pairs / "list.csv")
    assert result.skipped["label without a classnames.txt (not classified)"] == 6
    assert all(row.metric.startswith("retrieval") for row in result.rows)


def test_classnames_are_those_of_the_folders_of_that_name(model: CLIP, picture: Callable[..., bytes], tmp_path: Path):
    for place, name in enumerate(["cat", "red_fox", "dog"]):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "0.png").write_bytes(picture(seed=place))
    lines = ["dog", "Red fox", "owl", "cat"]
    (tmp_path / "classnames.txt").write_text("\n".join(lines), encoding="utf-16")
    found = evaluate_task(model, tmp_path / "set")
    assert found.class_names == lines
    assert {one.key: one.label for one in found.predictions} == {"cat/0.png": 3, "dog/0.png": 0, "red_fox/0.png": 1}
    (tmp_path / "link").symlink_to(tmp_path / "set")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link").symlink_to(tmp_path / "set")
    assert evaluate_task(model, tmp_path / "elsewhere" / "link").class_names == lines


def test_a_class_without_a_readable_picture_stays_one(
    model: CLIP, picture: Callable[..., bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for name, content in {"cat": picture(), "dog": picture(seed=1), "owl": b"<html>"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(content)
    assert evaluate_task(model, tmp_path).class_names == ["cat", "dog", "owl"]
    assert "1 have no picture that can be read: owl" in capsys.readouterr().err


@pytest.mark.parametrize(
    "names, lines, expected",
    [
        (["dog", "cat", "owl"], ["owl", "hound", "cat"], "none for dog"),
        (["dog", "red fox", "red_fox"], ["red fox", "dog"], "one line for several"),
        (["1", "2", "3"], ["zero", "one", "two", "three"], "a line for each of its 3 folders"),
        (["0", "1", "5"], ["zero", "one", "two", "three"], "a line for each of its 3 folders"),
        (["dog", "cat"], ["dog", " ", "cat"], "Line 2 of the classnames.txt"),
        (["1", "2", "10"], ["one", "two", "ten"], "Got 3 lines, for folders 1 to 10"),
        (["0", "2"], ["zero", "two"], "Got 2 lines, for folders 0 to 2"),
        (["0", "00", "1"], ["zero", "one", "two"], "a line for each of its 3 folders"),
        (["cat", "dog"], ["dog, hound", "cat, kitty"], "Line 1 .* must be the name of the folder cat"),
    ],
)
def test_classnames_that_fit_in_part_are_no_guess(
    model: CLIP, picture: Callable[..., bytes], tmp_path: Path, names: list[str], lines: list[str], expected: str
):
    folder = class_folders(tmp_path / "set", picture, *names)
    (folder / "classnames.txt").write_text("\n".join(lines))
    with pytest.raises(DataError, match=expected):
        evaluate_task(model, folder)


@pytest.mark.parametrize(
    "names, lines, expected",
    [
        ([*map(str, range(11))], [f"name {n}" for n in range(11)], list(range(11))),
        (["1", "2", "3"], ["one", "two", "three"], [0, 1, 2]),
        (["0", "2", "10"], [f"name {n}" for n in range(12)], [0, 2, 10]),
        (["10", "9"], [], [1, 0]),
    ],
)
def test_folders_of_numbers_are_in_their_order(
    model: CLIP, picture: Callable[..., bytes], tmp_path: Path, names: list[str], lines: list[str], expected: list[int]
):
    folder = class_folders(tmp_path / "set", picture, *names)
    if lines:
        (folder / "classnames.txt").write_text("\n".join(lines))
    found = {prediction.key.split("/")[0]: prediction.label for prediction in evaluate_task(model, folder).predictions}
    assert found == dict(zip(names, expected, strict=True))


@pytest.mark.parametrize(
    "names, lines, expected",
    [
        (["AnnualCrop", "SeaLake"], ["sea lake", "annual crop"], [1, 0]),
        (["001.Black_Albatross", "002.Laysan_Albatross"], ["Laysan Albatross", "Black Albatross"], [1, 0]),
        (["cat", "dog"], ["1 dog", "0 cat"], [1, 0]),
        (["n02085620-Chihuahua", "n02085782-Japanese_spaniel"], ["japanese spaniel", "chihuahua"], [1, 0]),
        (["n01440764", "n01443537"], ["n01443537 goldfish", "n01440764 tench"], [1, 0]),
        (["cat", "dog"], ["a house cat", "dog, hound"], [0, 1]),
        (["ankle", "bag"], ["Stiefel", "Tasche"], [0, 1]),
    ],
)
def test_classnames_are_known_by_their_words(
    model: CLIP, picture: Callable[..., bytes], tmp_path: Path, names: list[str], lines: list[str], expected: list[int]
):
    folder = class_folders(tmp_path / "set", picture, *names)
    (folder / "classnames.txt").write_text("\n".join(lines))
    found = {prediction.key.split("/")[0]: prediction.label for prediction in evaluate_task(model, folder).predictions}
    assert found == dict(zip(names, expected, strict=True))


def test_folders_without_a_picture_have_their_line(
    model: CLIP, picture: Callable[..., bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = class_folders(tmp_path / "set", picture, "x1", "x2")
    (folder / "x0").mkdir()
    (folder / "@eaDir").mkdir()
    (folder / "@eaDir" / "0.png").write_bytes(picture())
    (folder / "classnames.txt").write_text("one\ntwo\n")
    with pytest.raises(DataError, match=r"a line for each of its 3 folders, in their order\. Got 2 lines"):
        evaluate_task(model, folder)
    (folder / "classnames.txt").write_text("zero\none\ntwo\n")
    found = evaluate_task(model, folder)
    assert {prediction.key: prediction.label for prediction in found.predictions if "/0" in prediction.key} == {
        "x1/0.png": 1,
        "x2/0.png": 2,
    }
    assert "in their order: x1 is 'one', and so on" in capsys.readouterr().err


def test_folders_a_level_too_high_are_no_classes(model: CLIP, picture: Callable[..., bytes], tmp_path: Path):
    folder = class_folders(tmp_path / "set", picture, "images/cat", "images/dog")
    with pytest.raises(DataError, match=r"Got one folder, images, with others in it\. Give that one: .*/set/images"):
        evaluate_task(model, folder)


def test_classnames_that_say_something_else_than_labels_are_not_used_with_a_word(
    model: CLIP, folder_of_pairs: Path, capsys: pytest.CaptureFixture[str]
):
    rows = [f"{number:02d}.png,{('T-shirt', 'C--')[number % 2]}" for number in range(6)]
    (folder_of_pairs / "list.csv").write_text("\n".join(["filename,label", *rows]) + "\n")
    (folder_of_pairs / "classnames.txt").write_text("one\ntwo\n")
    assert evaluate_task(model, folder_of_pairs / "list.csv").class_names == ["C--", "T-shirt"]  # as they are written
    assert "holds none of the names in its labels" in capsys.readouterr().err
    (folder_of_pairs / "classnames.txt").write_text("T-shirt\ntwo\n")
    with pytest.raises(DataError, match="none for C--, of 2 classes"):
        evaluate_task(model, folder_of_pairs / "list.csv")


def test_several_sources_have_the_same_classnames_or_are_measured_apart(
    model: CLIP, picture: Callable[..., bytes], tmp_path: Path
):
    parts = [labelled(tmp_path / name, picture, [0, 1]) for name in "ab"]
    both = "::".join(map(str, parts))
    assert evaluate_task(model, both).rows[0].count == 4
    (parts[1] / "classnames.txt").write_text("table\ndog\nowl\n")  # the same in another order
    with pytest.raises(DataError, match="must be the same beside each source"):
        evaluate_task(model, both)
    folders = [class_folders(tmp_path / name, picture, "cat", "dog") for name in ("c", "d")]
    with pytest.raises(DataError, match="measured one source after the other"):
        evaluate_task(model, "::".join(map(str, folders)))


@pytest.mark.parametrize(
    "names, best",
    [
        (["train", "Val"], "Val"),
        (["Test", "train", "val"], "Test"),
        (["Training", "Testing"], "Testing"),
        (["train2017", "val2017"], "val2017"),
        (["dev", "train"], "dev"),
    ],
)
def test_of_splits_the_one_to_measure_on_is_measured(
    model: CLIP, picture: Callable[..., bytes], tmp_path: Path, names: list[str], best: str
):
    folder = class_folders(tmp_path / "set", picture, *(f"{name}/{one}" for name in names for one in ("cat", "dog")))
    found = evaluate_task(model, folder)
    assert found.data == str(folder / best) and found.rows[0].count == 4
    assert {row.protocol for row in found.rows} == {"zero-shot", "linear-probe"}


def test_a_split_among_classes_is_one_with_a_word(
    model: CLIP, picture: Callable[..., bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    evaluate_task(model, class_folders(tmp_path, picture, "train", "plane"))
    assert "train in" in (said := capsys.readouterr().err) and "taken for classes" in said


def test_classes_that_one_template_cannot_tell_apart_are_two(model: CLIP):
    long = "word " * 90
    names = ["dog", "table"]
    assert ZeroShotClassifier(model, names, [long + "{}"])._firsts == [0, 0]
    assert ZeroShotClassifier(model, names, [long + "{}", "{}"])._firsts is None


@given(st.lists(st.lists(st.integers(0, 3), min_size=7, max_size=7), min_size=1, max_size=5), st.integers(1, 9))
def test_the_best_are_those_of_a_stable_sort(scores: list[list[int]], top: int):
    matrix = torch.tensor(scores).float()
    assert torch.equal(best_first(matrix, top), matrix.argsort(dim=1, descending=True, stable=True)[:, :top])


def test_what_is_noted_of_a_task_is_said(model: CLIP, folder_of_pairs: Path, capsys: pytest.CaptureFixture[str]):
    (folder_of_pairs / ".hidden").mkdir()
    evaluate_task(model, folder_of_pairs)
    find(model, folder_of_pairs, "a dog")
    classify_images(model, folder_of_pairs, ["a", "b"], ["a {}"])
    assert capsys.readouterr().err.count("Noted 1 times: hidden file or folder (passed by).") == 3


def test_equal_features_tie_in_classes_and_in_a_search(
    model: CLIP, folder_of_pairs: Path, picture: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
):
    for number in range(40):
        (folder_of_pairs / f"{number:02d}.png").write_bytes(picture())
    for top in (4, 40):
        assert [hit.key for hit in find(model, folder_of_pairs, "a dog", top=top)] == [
            f"{i:02d}.png" for i in range(top)
        ]
    constant = torch.nn.functional.normalize(torch.arange(1.0, 1 + model.architecture.embed_dim), dim=0)
    monkeypatch.setattr(model, "encode_text", lambda texts, **_: constant.expand(len(texts), -1))
    classifier = ZeroShotClassifier(model, [f"name {number}" for number in range(37)])
    assert (
        classifier.scores(torch.randn(9, len(constant), generator=torch.Generator().manual_seed(0))).std(dim=1) == 0
    ).all()


def test_prompts_that_are_cut_to_the_same_tie_and_are_said(model: CLIP, capsys: pytest.CaptureFixture[str]):
    names = [" ".join(["very"] * 200 + [end]) for end in ("old", "new")]
    classifier = ZeroShotClassifier(model, names)
    scores = classifier.scores(torch.randn(5, model.architecture.embed_dim, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(scores[:, 0], scores[:, 1])
    assert "4 of 4 sentences are longer than the 77 tokens" in capsys.readouterr().err


@pytest.mark.parametrize("top", [0, -1, 2.5])
def test_the_number_of_names_is_checked(model: CLIP, picture: Callable[..., bytes], top: Any):
    with pytest.raises(ConfigError, match="top must be a whole number from 1 on"):
        ZeroShotClassifier(model, ["a", "b"]).predict(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), top=top)


def test_weights_that_are_not_finite_are_not_measured(model: CLIP, folder_of_pairs: Path):
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.fill_(torch.inf)  # which makes features of zeros: finite
            break
    with pytest.raises(ModelError, match=r"The weights of the model to measure must be finite numbers.*running_var"):
        evaluate_task(model, folder_of_pairs)


def test_texts_as_labels_of_several_lists_are_one_set_of_classes(model: CLIP, folder_of_pairs: Path):
    for name, labels in {"one": "ab", "two": "cb"}.items():
        rows = "".join(f"{place:02d}.png,{label}\n" for place, label in enumerate(labels, start=2 * (name == "two")))
        (folder_of_pairs / f"{name}.csv").write_text("path,label\n" + rows)
    both = f"{folder_of_pairs / 'one.csv'}::{folder_of_pairs / 'two.csv'}"
    found = evaluate_task(model, both)
    assert found.class_names == ["a", "b", "c"] and [one.label for one in found.predictions] == [0, 1, 2, 1]
    (folder_of_pairs / "three.csv").write_text("path,label\n04.png,0\n")
    with pytest.raises(DataError, match="be texts in all of the sources, or numbers in all"):
        evaluate_task(model, f"{both}::{folder_of_pairs / 'three.csv'}")


def test_keys_in_shards_and_tables_are_no_class_folders(model: CLIP, picture: Callable[..., bytes], tmp_path: Path):
    tar(tmp_path / "shards" / "0.tar", {f"part{number}/0.png": picture(seed=number) for number in range(2)})
    (tmp_path / "tables").mkdir()
    for number in range(2):
        rows = pa.table({"image": [picture(seed=number)], "label": ["dog"]})
        pq.write_table(rows, tmp_path / "tables" / f"{number}.parquet")
    for folder in ("shards", "tables"):
        with pytest.raises(DataError, match="with neither"):
            evaluate_task(model, tmp_path / folder)
    assert read_images(tmp_path / "tables").noted == {"label that is no whole number (not used)": 2}


# --- one set of pictures in every layout -----------------------------------------------------------------------------


def in_layouts(folder: Path, picture: Callable[..., bytes]) -> dict[str, Path]:
    """The same pictures of three classes, with training pictures, as class folders, CLIP_benchmark's shards, lists, and
    tables of Hugging Face datasets."""
    names, layouts = ["great_dane", "red_fox", "table"], ("folders", "shards", "lists", "tables")
    places = {layout: folder / layout / "animals" for layout in layouts}
    for place in places.values():
        place.mkdir(parents=True)
    for split, count, first in (("train", 5, 0), ("test", 4, 100)):
        shard, rows, table = dict[str, bytes](), ["path,label"], list[tuple[bytes, int]]()
        for number, name in enumerate(names):
            (places["folders"] / split / name).mkdir(parents=True)
            for copy in range(count):
                content = picture(seed=first + 10 * number + copy)
                (places["folders"] / split / name / f"{copy}.png").write_bytes(content)
                shard |= {f"{name}-{copy}.png": content, f"{name}-{copy}.cls": str(number).encode()}
                (places["lists"] / f"{split}-{name}-{copy}.png").write_bytes(content)
                rows.append(f"{split}-{name}-{copy}.png,{name.replace('_', ' ')}")
                table.append((content, number))
        (places["shards"] / split).mkdir()
        tar(places["shards"] / split / "0.tar", shard)
        (places["shards"] / split / "nshards.txt").write_text("1")
        (places["lists"] / f"{split}.csv").write_text("\n".join(rows))
        label = datasets.ClassLabel(names=[name.replace("_", " ") for name in names])
        made = datasets.Dataset.from_dict(
            {"image": [{"bytes": content, "path": None} for content, _ in table], "label": [n for _, n in table]},
            features=datasets.Features({"image": datasets.Image(), "label": label}),
        )
        (places["tables"] / "data").mkdir(exist_ok=True)
        made.to_parquet(places["tables"] / "data" / f"{split}-00000-of-00001.parquet")
    (places["shards"] / "classnames.txt").write_text("great dane\nred fox\ntable\n")
    return places


def test_the_same_pictures_in_every_layout_have_the_same_rows(
    model: CLIP, picture: Callable[..., bytes], tmp_path: Path
):
    found = {}
    for layout, place in in_layouts(tmp_path, picture).items():
        rows = evaluate(model, place)
        found[layout] = [(row.metric, row.value, row.low, row.high, row.count, row.prompts) for row in rows]
        assert {row.protocol for row in rows} == {"zero-shot", "linear-probe"}
    assert all(rows == found["folders"] for rows in found.values())


def test_classes_are_known_by_their_ids_in_every_split(
    model: CLIP, picture: Callable[..., bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """A class that one split lacks moves the places of the others, and no label with them."""
    folder = class_folders(tmp_path / "set", picture, "train/cat", "train/owl", "train/fox", "test/fox", "test/owl")
    (folder / "classnames.csv").write_text('folder,name\nowl,"owl, a bird"\ncat,house cat,kitty\nfox,red fox\n')
    task = read_task(folder)
    assert task.classes.ids == ("cat", "fox", "owl")
    assert task.classes.names == (("house cat", "kitty"), ("red fox",), ("owl, a bird",))
    assert task.test.labels == [1, 1, 2, 2] and task.train is not None and task.train.labels == [0, 0, 1, 1, 2, 2]
    evaluate_task(model, folder)
    assert "Of the 3 classes of" in (said := capsys.readouterr().err)
    assert "1 have no picture that can be read: house cat." in said
    (folder / "classnames.csv").write_text("owl,owl\nfox,fox\n")
    with pytest.raises(DataError, match=r"The classnames.csv of .* must have a row for each class\. Got none for cat"):
        read_task(folder)


def test_classes_of_splits_that_are_named_in_two_ways(picture: Callable[..., bytes], tmp_path: Path):
    folder = class_folders(tmp_path / "set", picture, "train/cat", "train/dog")
    (folder / "test").mkdir()
    tar(folder / "test" / "0.tar", {"a.png": picture(), "a.cls": b"0"})
    with pytest.raises(DataError, match=r"must be known as those of .* are\. Got numbers in one"):
        read_task(folder)


def test_names_that_several_classes_have_are_measured_by_their_ids(
    model: CLIP, picture: Callable[..., bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = class_folders(tmp_path / "set", picture, "n1", "n2", "n3")
    (folder / "classnames.csv").write_text("n1,missile\nn2,missile\nn3,sunglasses\n")
    found = evaluate_task(model, folder)
    assert found.class_names == ["missile", "missile", "sunglasses"] and found.rows[0].count == 6
    assert "Names that several classes have: missile" in capsys.readouterr().err


def test_pictures_of_several_classes(model: CLIP, picture: Callable[..., bytes], tmp_path: Path):
    rights = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 0]])
    for split, first in (("test", 0), ("train", 10)):
        shard = dict[str, bytes]()
        for place, right in enumerate(rights):
            buffer = io.BytesIO()
            np.save(buffer, right)
            shard |= {f"{place}.png": picture(seed=first + place), f"{place}.npy": buffer.getvalue()}
        (tmp_path / "set" / split).mkdir(parents=True)
        tar(tmp_path / "set" / split / "0.tar", shard)
    (tmp_path / "set" / "classnames.txt").write_text("dog\ntable\nthree\n")
    found = {row.metric: row for row in evaluate(model, tmp_path / "set")}
    assert set(found) == {"zero_shot.eleven_point_map", "zero_shot.mean_average_precision"}
    assert found["zero_shot.eleven_point_map"].count == 4
    embedded = embed_images(model, read_images(tmp_path / "set" / "test"))
    scores = ZeroShotClassifier(model, ["dog", "table", "three"]).probabilities(embedded.features)
    expected = average_precision_score(rights, scores.numpy(), average="macro")
    assert found["zero_shot.mean_average_precision"].value == pytest.approx(expected, abs=1e-6)
    with pytest.raises(DataError, match=r"must allow linear-probe\. Got pictures with several classes each"):
        evaluate_task(model, tmp_path / "set", How(protocols=("linear-probe",)))


@pytest.mark.parametrize("make", [lambda: create("RN-nano"), lambda: create("ViT-mini")])
def test_a_probe_stands_before_the_projection_or_after_it(make: Callable[[], CLIP], folder_of_pairs: Path):
    model = make().eval()
    found = embed_images(model, read_images(folder_of_pairs), hidden=True)
    assert found.hidden is not None and found.hidden.dtype == torch.float32
    assert found.hidden.shape == (40, model.image.projection.in_features)
    with torch.no_grad():
        embedding = model.image.projection(found.hidden)
    assert torch.allclose(torch.nn.functional.normalize(embedding, dim=1), found.features, atol=1e-5)
    assert embed_images(model, read_images(folder_of_pairs)).hidden is None


def test_kept_features_hold_what_a_probe_needs(
    model: CLIP, folder_of_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = read_images(folder_of_pairs)
    first = embed_images(model, source, keep=tmp_path / "kept", hidden=True)
    monkeypatch.setattr(model, "encode_image", lambda _: pytest.fail("encoded again"))
    again = embed_images(model, source, keep=tmp_path / "kept", hidden=True)
    plain = embed_images(model, source, keep=tmp_path / "kept")
    assert first.hidden is not None and again.hidden is not None and torch.equal(first.hidden, again.hidden)
    assert torch.equal(plain.features, first.features)
