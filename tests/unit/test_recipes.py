"""Every recipe is built, and dry-run for a step at a size that fits here."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from limner.architecture import ZOO, Architecture, ResNetConfig, TextConfig, ViTConfig
from limner.config import resolve
from limner.model.clip import CLIP, create
from limner.recipes import PAPER, RECIPES
from limner.run import RunDirectory
from limner.store.store import load
from limner.training.loop import train
from limner.training.optimizer import gains_and_biases, halve_weights, lr_share, make_optimizer

# tables 18, 19 and 20 of the paper
TABLE = {
    "rn50": ("RN50", 5e-4, 224, 0.999, 1e-8, 1024),
    "rn101": ("RN101", 5e-4, 224, 0.999, 1e-8, 512),
    "rn50x4": ("RN50x4", 5e-4, 288, 0.999, 1e-8, 640),
    "rn50x16": ("RN50x16", 4e-4, 384, 0.999, 1e-8, 768),
    "rn50x64": ("RN50x64", 3.6e-4, 448, 0.999, 1e-8, 1024),
    "vit_b32": ("ViT-B/32", 5e-4, 224, 0.98, 1e-6, 512),
    "vit_b16": ("ViT-B/16", 5e-4, 224, 0.98, 1e-6, 512),
    "vit_l14": ("ViT-L/14", 4e-4, 224, 0.98, 1e-6, 768),
    "vit_l14_336": ("ViT-L/14@336px", 2e-5, 336, 0.98, 1e-6, 768),
}


def test_the_paper_is_complete():
    assert list(TABLE) == [recipe.__name__ for recipe in PAPER]
    assert all(recipe.__doc__ and "limner train " in recipe.__doc__ for recipe in RECIPES.values())


@pytest.mark.parametrize("name", TABLE)
def test_the_papers_hyper_parameters(name: str):
    config = RECIPES[name]()
    model, lr, pixels, beta2, eps, embed_dim = TABLE[name]
    shape = ZOO[config.model]
    optim = config.optim.for_encoder(shape.image)
    assert (config.model, optim.lr, config.images.resize, shape.image_size) == (model, lr, pixels, pixels)
    assert (optim.beta1, optim.beta2, optim.eps, optim.weight_decay) == (0.9, beta2, eps, 0.2)
    assert shape.embed_dim == embed_dim and shape.text.vocab_size == 49408 and shape.text.context_length == 77
    assert config.train.batch_size == 32768 and config.images.crop_min_area == 1.0
    assert config.train.epochs == (1.0 if name == "vit_l14_336" else 32.0)
    plan = resolve(config, pairs=400_000_000)
    assert plan.warmup_steps == 2000 and plan.steps == math.ceil(config.train.epochs * 400_000_000 / 32768)
    assert lr_share(plan.steps - 1, plan) < 1e-6 and lr_share(1999, plan) == 1.0


@pytest.mark.parametrize("name", TABLE)
def test_a_recipe_is_built_on_the_meta_device(name: str):
    config = RECIPES[name]()
    with torch.device("meta"):
        model = CLIP(ZOO[config.model])
    halve_weights(model, config.optim.bf16_weights)
    make_optimizer(model, config.optim)
    half = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.bfloat16}
    assert {name.split(".")[0] for name in half} == {"text"} and not half & gains_and_biases(model)
    # all but the positional embedding, the norms and the biases
    text = sum(p.numel() for p in model.text.parameters())
    assert sum(p.numel() for n, p in model.named_parameters() if n in half) > 0.99 * text


def shrunken(shape: Architecture) -> Architecture:
    """The same kind of model, with a block where there were many."""
    image = (
        ResNetConfig(layers=(1,) * len(shape.image.layers), width=8, heads=4)
        if isinstance(shape.image, ResNetConfig)
        else ViTConfig(layers=2, width=32, heads=2, patch_size=shape.image.patch_size)
    )
    text = TextConfig(layers=2, width=32, heads=2, vocab_size=shape.text.vocab_size)
    size = 2 * image.stride * (2 if shape.image_size == 336 else 1)
    return dataclasses.replace(shape, image=image, text=text, embed_dim=16, image_size=size)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_takes_a_step(name: str, folder_of_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = RECIPES[name]()
    for model in ("ViT-L/14", config.model):
        monkeypatch.setitem(ZOO, model, shrunken(ZOO[model]))
    size = ZOO[config.model].image_size
    init = None
    if config.init is not None:
        init = tmp_path / "l14"
        create("ViT-L/14").save(init)
    config = dataclasses.replace(
        config,
        data=str(folder_of_pairs),
        test=str(folder_of_pairs),
        out=tmp_path / "run",
        init=init,
        images=dataclasses.replace(config.images, resize=size),
        train=dataclasses.replace(config.train, batch_size=40, epochs=1.0, micro_batch=16, precision="bf16"),
    )
    run = RunDirectory(train(config))
    (line,) = run.read_metrics()
    assert line["step"] == 1 and line["skipped"] == 0 and math.isfinite(line["loss"])
    assert load(run.path).architecture.image_size == size
    saved = json.loads(run.config.read_text())["optim"]
    assert saved["beta2"] is not None and saved["eps"] is not None
    checkpoint = load_file(max(run.checkpoints.iterdir()))
    dtype = torch.bfloat16 if name in TABLE else torch.float32
    assert checkpoint["exp_avg.text.projection.weight"].dtype == dtype
    assert checkpoint["model.text.projection.weight"].dtype == dtype
