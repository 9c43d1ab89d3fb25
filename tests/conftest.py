"""Fixtures that several folders of tests share."""

import functools
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from limner.data.tokenizer import Tokenizer
from limner.demo.tour import run_demo

os.environ["COLUMNS"] = "100"  # help texts wrap at a fixed width
os.environ["NO_COLOR"] = "1"
settings.register_profile("limner", deadline=None, derandomize=True)  # a busy machine does not fail a test
settings.load_profile("limner")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-snapshots", action="store_true", help="write what the contracts compare with anew")
    parser.addoption("--parity-table", metavar="FILE", help="write the differences that tests/parity measure as JSON")
    parser.addoption("--ranks-table", metavar="FILE", help="write how far several ranks are from one as JSON")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest first: with a process a core, none of them is left alone at the end."""
    longest = ("test_world", "test_docs", "test_half_adamw", "test_onnx", "test_loop", "test_store")
    items.sort(key=lambda item: longest.index(item.path.stem) if item.path.stem in longest else len(longest))


@pytest.fixture(autouse=True)
def same_global_state() -> Iterator[None]:
    """Tests leave torch's random state, default dtype and gradient mode as they found them."""
    state, dtype, mode = torch.get_rng_state(), torch.get_default_dtype(), torch.is_grad_enabled()
    yield
    assert torch.equal(torch.get_rng_state(), state), "the test, or limner, used torch's global random state"
    assert torch.get_default_dtype() == dtype and torch.is_grad_enabled() == mode


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def picture() -> Callable[..., bytes]:
    """Makes an encoded picture of random pixels, the same for the same arguments."""

    @functools.cache
    def make(width: int = 40, height: int = 30, *, seed: int = 0, mode: str = "RGB", format: str = "PNG") -> bytes:
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(buffer, format)
        return buffer.getvalue()

    return make


@pytest.fixture
def folder_of_pairs(tmp_path: Path, picture: Callable[..., bytes]) -> Path:
    """Forty pictures with captions beside them."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    for index in range(40):
        (folder / f"{index:02d}.png").write_bytes(picture(seed=index))
        (folder / f"{index:02d}.txt").write_text(f"picture number {index}")
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    captions = ["a dog on a table", "the digit three", "picture number 12, drawn by hand", "ein Käse ☕"]
    return Tokenizer.train(captions * 3, vocab_size=600)


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished `limner demo --source digits`: pairs, model, evaluation, report."""
    folder = tmp_path_factory.mktemp("digits")
    before = Path.cwd()
    os.chdir(folder)
    try:
        run_demo("digits")
    finally:
        os.chdir(before)
    return folder / "runs" / "digits"
