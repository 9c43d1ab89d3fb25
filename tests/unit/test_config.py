import dataclasses
from pathlib import Path

import pytest

import limner.architecture
import limner.config
from limner.architecture import ZOO, Architecture
from limner.config import ImageConfig, OptimConfig, RunConfig, TrainConfig, from_json, resolve, to_json
from limner.errors import ConfigError
from limner.recipes import RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_json(name: str):
    config = dataclasses.replace(RECIPES[name](), out=Path("runs/x"))
    assert from_json(to_json(config), RunConfig, where="test") == config


@pytest.mark.parametrize("name", ZOO)
def test_architectures_survive_json(name: str):
    assert from_json(to_json(ZOO[name]), Architecture, where="test") == ZOO[name]


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_name_a_model_of_the_zoo_and_say_what_they_do(name: str):
    recipe = RECIPES[name]
    assert recipe().model in ZOO
    assert f"limner train {name}" in (recipe.__doc__ or "") and "NUMBERS" not in (recipe.__doc__ or "")


def test_config_classes_are_frozen_and_keyword_only():
    modules = vars(limner.config) | vars(limner.architecture)
    classes = [c for c in modules.values() if dataclasses.is_dataclass(c) and isinstance(c, type)]
    assert len(classes) >= 8
    for cls in classes:
        parameters = cls.__dataclass_params__  # type: ignore[attr-defined]
        assert parameters.frozen and all(field.kw_only for field in dataclasses.fields(cls)), cls


def test_every_fault_in_a_config_file_is_named():
    values = to_json(RECIPES["demo"]())
    values["optim"]["lrr"] = 1
    values["train"]["precision"] = "fp8"
    del values["model"]
    with pytest.raises(ConfigError) as caught:
        from_json(values, RunConfig, where="config.json")
    for part in ("lrr", "precision", "model"):
        assert part in str(caught.value.got)


def test_another_schema_is_refused():
    with pytest.raises(ConfigError, match="schema"):
        from_json({**to_json(RECIPES["demo"]()), "schema": 99}, RunConfig, where="config.json")


@pytest.mark.parametrize(
    "make",
    [
        lambda: TrainConfig(batch_size=1, epochs=1.0),
        lambda: TrainConfig(batch_size=2, epochs=0.0),
        lambda: OptimConfig(lr=0.0),
        lambda: OptimConfig(lr=1.0, warmup_share=1.0),
        lambda: ImageConfig(resize=0),
        lambda: ImageConfig(resize=1, crop_min_area=0.0),
        lambda: dataclasses.replace(RECIPES["demo"](), holdout=1.0),
    ],
)
def test_values_that_cannot_work(make):
    with pytest.raises(ConfigError, match="must"):
        make()


def test_resolve():
    config = dataclasses.replace(RECIPES["demo"](), train=TrainConfig(batch_size=32, epochs=2.5))
    plan = resolve(config, pairs=100)
    assert (plan.steps, plan.total_pairs) == (8, 256)
    with pytest.raises(ConfigError, match=r"Lower --train\.batch-size"):
        resolve(config, pairs=31)
