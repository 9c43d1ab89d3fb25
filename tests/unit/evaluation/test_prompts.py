"""Prompts from files, and templates that are chosen."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limner.data.tokenizer import Tokenizer
from limner.errors import ConfigError, DataError
from limner.evaluation.prompts import choose_templates, forward_selection, with_prompts, write_choice
from limner.evaluation.suite import How, evaluate_task
from limner.evaluation.tasks import Task, read_task
from limner.evaluation.zero_shot import ZeroShotClassifier, fingerprint_of_prompts
from limner.model.clip import CLIP, create


@pytest.fixture
def model(tokenizer: Tokenizer) -> CLIP:
    return create("RN-nano", tokenizer=tokenizer).eval()


@pytest.fixture
def task(tmp_path: Path, picture: Callable[..., bytes]) -> Task:
    for number, name in enumerate(("dog", "red_fox", "table")):
        (tmp_path / "set" / name).mkdir(parents=True)
        for copy in range(4):
            (tmp_path / "set" / name / f"{copy}.png").write_bytes(picture(seed=10 * number + copy))
    return read_task(tmp_path / "set")


def test_templates_and_sentences_from_files(task: Task, tmp_path: Path):
    (tmp_path / "lines.txt").write_text("a {}.\n\nthe {}.\n")
    assert with_prompts(task, tmp_path / "lines.txt").prompts_of()[1] == ["a red fox.", "the red fox."]
    (tmp_path / "list.json").write_text('["one {}"]')
    assert with_prompts(task, tmp_path / "list.json").prompts_of() == [["one dog"], ["one red fox"], ["one table"]]
    told = {"Table": "a flat top", "red_fox": ["a {} in the wood", "an animal"], "dog": ["it barks"], "owl": ["hoo"]}
    (tmp_path / "each.json").write_text(json.dumps(told))
    found = with_prompts(task, tmp_path / "each.json").prompts_of()
    assert found == [["it barks"], ["a red fox in the wood", "an animal"], ["a flat top"]]


@pytest.mark.parametrize(
    "name, content, expected",
    [
        ("a.json", {"dog": ["a"], "table": ["b"]}, "none for red_fox"),
        ("a.json", {"dog": [], "red_fox": ["b"], "table": ["b"]}, "none for dog"),
        ("a.json", {"dog": [1], "red_fox": ["b"], "table": [" "]}, "none for dog, table"),
        ("a.json", 3, "must be a list of templates, or an object"),
        ("a.txt", "a photo", r"hold \{\} once"),
        ("a.txt", "", "no template"),
    ],
)
def test_prompts_that_do_not_fit(model: CLIP, task: Task, tmp_path: Path, name: str, content: object, expected: str):
    (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ConfigError, match=expected):
        evaluate_task(model, task, How(prompts=tmp_path / name))


def test_a_class_of_several_names_is_the_mean_of_all_their_prompts(model: CLIP):
    names = [["dog", "hound"], "table"]
    found = ZeroShotClassifier(model, names, ["a {}", "{}"])
    assert found.class_names == ["dog", "table"]
    prompts = ["a dog", "dog", "a hound", "hound"]
    with torch.no_grad():
        mean = torch.stack([model.encode_text(one)[0] for one in prompts]).mean(dim=0)
    assert torch.allclose(found.weights[0], mean / mean.norm(), atol=1e-6)
    same = ZeroShotClassifier(model, ["dog", "table"], prompts=[prompts, ["a table", "table"]])
    assert torch.allclose(same.weights, found.weights, atol=1e-6)
    with pytest.raises(ConfigError, match="be those of 2 classes"):
        ZeroShotClassifier(model, ["dog", "table"], prompts=[["a"]])
    with pytest.raises(ConfigError, match="an empty one at place 1"):
        ZeroShotClassifier(model, ["dog", ["table", " "]])


def test_a_classifier_is_kept_by_its_prompts_and_model(
    model: CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    first = ZeroShotClassifier(model, ["dog", "table"], keep=tmp_path)
    (file,) = tmp_path.iterdir()
    monkeypatch.setattr(model, "encode_text", lambda *_, **__: pytest.fail("encoded again"))
    assert torch.equal(ZeroShotClassifier(model, ["dog", "table"], keep=tmp_path).weights, first.weights)
    monkeypatch.undo()
    ZeroShotClassifier(model, ["dog", "chair"], keep=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    assert torch.equal(ZeroShotClassifier(model, ["dog", "table"], keep=tmp_path).weights, first.weights)
    assert "is damaged, and is made again" in capsys.readouterr().err


def test_fingerprints_of_prompts():
    assert fingerprint_of_prompts([["a", "b"], ["c"]]) != fingerprint_of_prompts([["a"], ["b", "c"]])


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=6))
def test_forward_selection_never_gets_worse(rights: list[list[bool]]):
    def value(some: Sequence[int]) -> float:
        return sum(2 * sum(rights[one][trial] for one in some) >= len(some) for trial in range(6))

    taken = forward_selection(range(len(rights)), value)
    values = [value(taken[: end + 1]) for end in range(len(taken))]
    assert values == sorted(set(values)) and len(set(taken)) == len(taken)
    assert values[0] == max(value([one]) for one in range(len(rights)))
    left = [one for one in range(len(rights)) if one not in taken]
    assert all(value([*taken, one]) <= values[-1] for one in left)


def test_templates_are_chosen_and_used(model: CLIP, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Planted: one template's features are the classes' own, those of all others are noise."""
    axes = torch.eye(3, model.architecture.embed_dim)
    places = {"dog": 0, "red fox": 1, "table": 2}

    def encode_text(texts: list[str], **_: object) -> torch.Tensor:
        return torch.stack(
            [axes[places[one.removeprefix("good ")]] if one.startswith("good") else axes[0] for one in texts]
        )

    pictures = iter(range(12))
    monkeypatch.setattr(model, "encode_text", encode_text)
    monkeypatch.setattr(
        model, "encode_image", lambda pixels: torch.stack([axes[next(pictures) // 4] for _ in range(len(pixels))])
    )
    choice = choose_templates(model, task, ["bad {}", "good {}", "worse {}"])
    assert choice.templates == ["good {}"] and choice.accuracy == 1.0 and choice.held_out == choice.chosen_by == 6
    assert choice.accuracy_of_usual < 1 and choice.low < 1 == choice.high
    write_choice(tmp_path / "prompts.json", choice)
    assert with_prompts(task, tmp_path / "prompts.json").templates == ("good {}",)
    with pytest.raises(ConfigError, match=r"hold \{\} once"):
        choose_templates(model, task, ["a photo"])


def test_templates_cannot_be_chosen_without_classes(model: CLIP, folder_of_pairs: Path):
    with pytest.raises((DataError, ConfigError)):
        choose_templates(model, read_task(folder_of_pairs))
