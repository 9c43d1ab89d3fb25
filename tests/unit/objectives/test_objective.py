"""An objective is one class and one line: a toy one, defined here, trains, is logged, saved, loaded and used."""

import dataclasses
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from helpers.training import ALONE, RESNET, VIT, batch_of, difference
from limner.architecture import Architecture
from limner.config import TrainConfig
from limner.data.loader import Batch
from limner.errors import ConfigError, TrainingError
from limner.evaluation.suite import evaluate_run
from limner.evaluation.zero_shot import ZeroShotClassifier
from limner.model.clip import CLIP, create
from limner.objectives.contrastive import Contrastive
from limner.objectives.objective import Objective, Trainee
from limner.objectives.ranks import Ranks
from limner.objectives.sigmoid import Sigmoid
from limner.objectives.table import OBJECTIVES, objective
from limner.recipes import digits
from limner.report.run import write_report
from limner.run import RunDirectory
from limner.store.store import load
from limner.training.guard import gradients_of
from limner.training.loop import train
from limner.training.prepare import settled
from limner.training.step import Step, backward


@dataclass(frozen=True)
class Toy(Objective):
    """Each image's embedding should be its caption's: pairs on their own, no softmax, no batch."""

    name: ClassVar[str] = "toy"
    couples_pairs: ClassVar[bool] = False

    def adapt(self, architecture: Architecture) -> Architecture:
        return dataclasses.replace(architecture, objective=self.name, initial_logit_scale=2.0)

    def encode(self, model: CLIP, batch: Batch) -> dict[str, Tensor]:
        return {
            "pictures": model.encode_image(batch.pixels),
            "words": model.encode_text(batch.tokens),
            "warmth": model.logit_scale,
        }

    def loss(self, tensors: dict[str, Tensor], batch: Batch, ranks: Ranks) -> tuple[Tensor, dict[str, Tensor]]:
        similarity = (tensors["pictures"] * tensors["words"]).sum(dim=1)
        return (1 - tensors["warmth"] * similarity).square().mean(), {"nearness": similarity.detach().mean()}

    def probabilities(self, model: CLIP, similarities: Tensor) -> Tensor:
        return torch.zeros_like(similarities).scatter(1, similarities.argmax(dim=1, keepdim=True), 1.0)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBJECTIVES, "toy", Toy)


def test_the_table_says_what_there_is():
    assert isinstance(objective("contrastive"), Contrastive) and objective("sigmoid", "positives") == Sigmoid(
        "positives"
    )
    with pytest.raises(ConfigError, match="Did you mean sigmoid"):
        objective("sigmiod")


def test_an_objective_that_leaves_something_out_fails_loudly():
    with pytest.raises(ConfigError, match="say its couples_pairs"):

        class Half(Objective):
            name = "half"

    class Silent(Objective):
        name, couples_pairs = "silent", True

    with pytest.raises(TypeError, match="abstract"):
        Silent()  # type: ignore[abstract]


def test_a_toy_objective_trains_from_config_to_report(toy: None, folder_of_pairs: Path, tmp_path: Path):
    (folder_of_pairs / "05.png").write_bytes(b"not a picture")
    config = dataclasses.replace(
        digits(),
        data=str(folder_of_pairs),
        test=str(folder_of_pairs),
        out=tmp_path / "run",
        train=TrainConfig(batch_size=20, epochs=15.0, precision="fp32", objective="toy", micro_batch=7),
    )
    run = RunDirectory(train(config))
    lines = run.read_metrics()
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"] and 0 < lines[-1]["nearness"] < 1
    assert {"warmth", "grad_norm", "grad_norm_image"} <= lines[0].keys() and "accuracy" not in lines[0]
    model = load(run.path)
    assert model.architecture.objective == "toy" and model.logit_scale.item() != 2.0
    answer = ZeroShotClassifier(model, ["number 1", "number 2"], ["{}"]).predict(folder_of_pairs / "01.png")[0]
    assert [share for _, share in answer] == [1.0, 0.0], "the objective's own zero-shot rule"
    evaluate_run(run.path)
    page = write_report(run.path).read_text()
    assert "nearness over" in page and "warmth over" in page and "accuracy over" not in page


def test_parts_of_a_batch_add_up_to_the_whole_where_pairs_are_not_coupled():
    for shape, tolerance in ((VIT, 1e-13),):
        model = create(shape).train().double()
        batch = batch_of(23, shape.image_size)
        found = {}
        for pieces in (1, 2, 5, 23):
            model.zero_grad()
            outcome = backward(Trainee(model, Toy()), batch, pieces=pieces, dtype=torch.float32, world=ALONE)
            found[pieces] = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
            assert difference(found[1], found[pieces]) < tolerance
            assert outcome.scalars.keys() == {"warmth"} and outcome.finite.keys() == {"pictures", "words"}
            whole = Toy().loss(Toy().encode(model, batch), batch, Ranks(23, None, torch.device("cpu")))
            assert outcome.loss.item() == pytest.approx(whole[0].item(), rel=1e-12)
            assert outcome.metrics["nearness"].item() == pytest.approx(whole[1]["nearness"].item(), rel=1e-12)


def test_a_tensor_that_is_not_finite_is_called_by_the_objectives_name(
    toy: None, folder_of_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plain = Toy.encode

    def spoiled(self: Toy, model: CLIP, batch: Batch) -> dict[str, Tensor]:
        tensors = plain(self, model, batch)
        return tensors | {"words": tensors["words"] / 0}

    monkeypatch.setattr(Toy, "encode", spoiled)
    config = dataclasses.replace(
        digits(),
        data=str(folder_of_pairs),
        test=str(folder_of_pairs),
        out=tmp_path / "run",
        train=TrainConfig(batch_size=20, epochs=1.0, precision="fp32", objective="toy"),
    )
    with pytest.raises(TrainingError, match="first in the words"):
        train(config)


# --- sigmoid ---------------------------------------------------------------------------------------------------------


def test_sigmoid_trains_saves_its_bias_and_resumes_to_the_bit(
    folder_of_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = dataclasses.replace(
        digits(),
        data=str(folder_of_pairs),
        test=str(folder_of_pairs),
        out=tmp_path / "run",
        train=TrainConfig(batch_size=20, epochs=10.0, precision="fp32", objective="sigmoid"),
    )
    run = RunDirectory(train(config))
    model = load(run.path)
    assert model.logit_bias is not None and model.logit_bias.item() not in (-10.0, 0.0)
    assert model.architecture == dataclasses.replace(
        settled(config).model,
        text=model.architecture.text,  # type: ignore[arg-type]
    )
    lines = run.read_metrics()
    assert lines[-1]["loss"] < lines[0]["loss"] and lines[-1]["logit_bias"] != lines[0]["logit_bias"]
    half, plain = dataclasses.replace(config, out=tmp_path / "half"), Step.__call__

    def stopping(self: Step, batch: Batch, step: int) -> dict[str, Any]:
        if step == 9:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self, batch, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Step, "__call__", stopping)
        train(half)
    (checkpoint,) = (tmp_path / "half" / "checkpoints").iterdir()
    assert "10" in checkpoint.name
    again = load(train(half, resume=True))
    assert again.fingerprint == model.fingerprint
    similarities = torch.tensor([[0.9, 0.1]])
    shares = objective("sigmoid").probabilities(model, similarities)
    expected = torch.sigmoid(model.logit_scale * similarities + model.logit_bias)
    assert torch.equal(shares, expected) and shares.sum() != 1


def test_open_clip_is_told_of_the_bias(tmp_path: Path):
    model = create(Sigmoid().adapt(RESNET))
    four = create(Sigmoid().adapt(dataclasses.replace(VIT)))
    for each, name in ((model, "two-stages"), (four, "vit")):
        each.tokenizer = None
        each.save(tmp_path / name)
        assert load(tmp_path / name).logit_bias == -10.0
    config = json.loads((tmp_path / "vit" / "open_clip_config.json").read_text())["model_cfg"]
    assert config["init_logit_bias"] == -10.0 and config["init_logit_scale"] == pytest.approx(2.302585)
    for file in ("open_clip_model.safetensors", "config.json"):
        assert (tmp_path / "vit" / file).is_file()
    (tmp_path / "vit" / "config.json").unlink()
    read = load(tmp_path / "vit")  # as a directory of open_clip's
    assert read.architecture.objective == "sigmoid" and read.logit_bias == -10.0


def test_every_weight_that_trains_takes_part():
    model = create(VIT).train()
    model.encode_image(batch_of(4, 24).pixels).sum().backward()
    with pytest.raises(TrainingError, match="take part in the loss"):
        gradients_of(model)


def test_an_architecture_takes_what_the_objective_adds_and_gives_it_back():
    mine = Sigmoid().adapt(dataclasses.replace(VIT, initial_logit_scale=20.0, initial_logit_bias=-5.0))
    assert (mine.objective, mine.initial_logit_scale, mine.initial_logit_bias) == ("sigmoid", 20.0, -5.0)
    assert Sigmoid().adapt(mine) == mine
    plain = Contrastive().adapt(mine)
    assert plain.objective == "contrastive" and plain.initial_logit_bias is None and Contrastive().adapt(VIT) == VIT


def test_names_that_the_log_has_already_are_refused(
    toy: None, folder_of_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plain = Toy.loss
    monkeypatch.setattr(Toy, "loss", lambda *args: (plain(*args)[0], {"skipped": torch.tensor(0.0)}))
    config = dataclasses.replace(
        digits(),
        data=str(folder_of_pairs),
        test=str(folder_of_pairs),
        out=tmp_path / "run",
        train=TrainConfig(batch_size=20, epochs=1.0, precision="fp32", objective="toy"),
    )
    with pytest.raises(ConfigError, match=r"must be its own\. Got skipped"):
        train(config)
