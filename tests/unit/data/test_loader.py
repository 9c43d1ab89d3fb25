import io
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from limner.config import ImageConfig
from limner.data import loader as module
from limner.data import reading
from limner.data.decode import decode
from limner.data.loader import Loader
from limner.data.pairs import Pair
from limner.data.sources.read import read_pairs
from limner.data.tokenizer import Tokenizer
from limner.data.write import Sample, write_shards
from limner.errors import DataError


def loader(folder: Path, tokenizer: Tokenizer, **changes: int) -> Loader:
    settings = {"image_size": 24, "batch_size": 16, "seed": 0, "cache_mb": 100, **changes}
    return Loader(read_pairs(folder), tokenizer, images=ImageConfig(resize=28, crop_min_area=0.5), **settings)


def test_a_batch_is_a_function_of_the_step(folder_of_pairs: Path, tokenizer: Tokenizer):
    one, other = loader(folder_of_pairs, tokenizer), loader(folder_of_pairs, tokenizer, cache_mb=0)
    in_order = list(one.batches(0, 6))
    assert len(in_order) == 6
    for step in (5, 0, 3):
        again = other.batch(step)
        assert again.keys == in_order[step].keys
        assert torch.equal(again.pixels, in_order[step].pixels) and torch.equal(again.tokens, in_order[step].tokens)
    assert loader(folder_of_pairs, tokenizer, seed=1).batch(0).keys != in_order[0].keys


def test_each_epoch_sees_each_pair_once(folder_of_pairs: Path, tokenizer: Tokenizer):
    keys = [key for batch in loader(folder_of_pairs, tokenizer).batches(0, 5) for key in batch.keys]
    assert len(keys) == 80 and sorted(keys[:40]) == sorted(keys[40:]) == sorted(set(keys))


def test_crops_change_from_epoch_to_epoch(folder_of_pairs: Path, tokenizer: Tokenizer):
    seen = loader(folder_of_pairs, tokenizer)
    views = {}
    for batch in seen.batches(0, 5):
        for key, pixels in zip(batch.keys, batch.pixels, strict=True):
            views.setdefault(key, []).append(pixels)
    assert sum(torch.equal(a, b) for a, b in views.values()) < 4


def test_the_picture_and_the_caption_belong_together(folder_of_pairs: Path, tokenizer: Tokenizer):
    batch = loader(folder_of_pairs, tokenizer).batch(1)
    captions = [tokenizer.decode(row[row > 0].tolist()).replace(" ", "") for row in batch.tokens]
    assert captions == [f"picturenumber{int(key[:2])}" for key in batch.keys]


def test_unreadable_pictures_are_left_out_and_counted(folder_of_pairs: Path, tokenizer: Tokenizer):
    for name in ("03.png", "04.png"):
        (folder_of_pairs / name).write_bytes(b"not a picture")
    seen = loader(folder_of_pairs, tokenizer)
    keys = [key for batch in seen.batches(0, 5) for key in batch.keys]
    assert len(keys) == 76
    assert seen.unreadable == {"03.png": "13 bytes of another format", "04.png": "13 bytes of another format"}


def test_nothing_readable_is_an_error(folder_of_pairs: Path, tokenizer: Tokenizer):
    for path in folder_of_pairs.glob("*.png"):
        path.write_bytes(b"not a picture")
    with pytest.raises(DataError, match="13 bytes of another format"):
        loader(folder_of_pairs, tokenizer).batch(0)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pairs in five shards."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 40, 3), dtype=np.uint8)
    samples = (
        Sample(image=png(picture), extension="png", width=40, height=30, captions=(f"picture number {i}",), record={})
        for i, picture in enumerate(pixels)
    )
    folder = tmp_path_factory.mktemp("loader") / "shards"
    write_shards(samples, folder, origin={}, per_shard=9)
    return folder


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_batches_do_not_depend_on_the_number_of_workers(shards: Path, tokenizer: Tokenizer, workers: int):
    alone = loader(shards, tokenizer, cache_mb=0)
    for step, batch in enumerate(loader(shards, tokenizer, workers=workers, cache_mb=0).batches(2, 7), start=2):
        expected = alone.batch(step)
        assert batch.keys == expected.keys and torch.equal(batch.pixels, expected.pixels)
        assert torch.equal(batch.tokens, expected.tokens) and torch.equal(batch.identities, expected.identities)


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_share_each_global_batch(shards: Path, tokenizer: Tokenizer, ranks: int):
    alone = loader(shards, tokenizer)
    parts = [loader(shards, tokenizer, rank=rank, ranks=ranks) for rank in range(ranks)]
    for step in range(5):
        together = [key for part in parts for key in part.batch(step).keys]
        assert together == list(alone.batch(step).keys)


def test_each_drop_is_counted_by_reason(folder_of_pairs: Path, tokenizer: Tokenizer):
    (folder_of_pairs / "03.png").write_bytes(b"not a picture")
    (folder_of_pairs / "04.png").write_bytes((folder_of_pairs / "05.png").read_bytes()[:500])
    for cache_mb in (0, 100):
        batches = list(loader(folder_of_pairs, tokenizer, cache_mb=cache_mb).batches(0, 5))
        assert sum((batch.dropped for batch in batches), Counter()) == {"not a picture": 2, "damaged picture": 2}


def test_a_file_that_vanishes_is_counted(folder_of_pairs: Path, tokenizer: Tokenizer):
    seen = loader(folder_of_pairs, tokenizer)
    (folder_of_pairs / "03.png").unlink()
    assert sum((batch.dropped for batch in seen.batches(0, 5)), Counter()) == {"file that cannot be read": 2}


def test_a_picture_that_takes_too_long_is_left_out(
    folder_of_pairs: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    slow, plain = (folder_of_pairs / "07.png").read_bytes(), decode
    over = threading.Event()

    def stuck(content: bytes, *args: Any, **settings: Any) -> np.ndarray:
        settings["begun"]()
        if content == slow:
            over.wait(30)
        return plain(content, *args, **settings)

    monkeypatch.setattr(module, "decode", stuck)
    monkeypatch.setattr(reading, "DEADLINE_SECONDS", 0.5)
    monkeypatch.setattr(reading, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(reading, "CLOSE_SECONDS", 0.1)
    batches = list(loader(folder_of_pairs, tokenizer, workers=1).batches(0, 5))
    over.set()
    assert [len(batch.keys) for batch in batches].count(15) == 2
    assert sum((batch.dropped for batch in batches), Counter()) == {"over 20 s to decode": 2}


def test_a_loader_that_stands_still_says_where(
    folder_of_pairs: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    over = threading.Event()
    monkeypatch.setattr(Pair, "read", lambda pair: over.wait(30))
    monkeypatch.setattr(reading, "CLOSE_SECONDS", 0.1)
    stuck = loader(folder_of_pairs, tokenizer, workers=2)
    stuck.patience_seconds = 0.5
    with pytest.raises(
        DataError, match=r"give a batch within 0 s. Got none \(worker 1 reading \d\d.png of .*for \d+ s"
    ):
        next(stuck.batches(0, 5))
    over.set()


def test_an_error_of_a_worker_reaches_the_caller(
    folder_of_pairs: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    def fail(_pair: Pair) -> bytes:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Pair, "read", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        next(loader(folder_of_pairs, tokenizer).batches(0, 5))


def test_threads_end_and_leave_torchs_own_as_they_were(folder_of_pairs: Path, tokenizer: Tokenizer):
    before, threads = torch.get_num_threads(), set(threading.enumerate())
    batches = loader(folder_of_pairs, tokenizer, workers=3).batches(0, 50)
    next(batches)
    assert torch.get_num_threads() == before and len(set(threading.enumerate()) - threads) >= 4
    batches.close()  # type: ignore[attr-defined]
    assert not set(threading.enumerate()) - threads and torch.get_num_threads() == before


def test_a_mixture_is_loaded_by_its_weights(folder_of_pairs: Path, shards: Path, tokenizer: Tokenizer):
    source = read_pairs(f"{folder_of_pairs}::{shards}", weights=(1.0, 2.0))
    seen = Loader(source, tokenizer, images=ImageConfig(resize=28), image_size=24, batch_size=40, seed=0, cache_mb=100)
    keys = [key for batch in seen.batches(0, 3) for key in batch.keys]
    assert len(keys) == 120 and Counter(key[0] for key in keys) == {"0": 40, "1": 80}
    assert set(Counter(keys).values()) == {1, 2}


def test_captions_are_drawn_by_their_chances():
    pair = Pair("k", Path("x"), 0, 1, captions=("a", "b", "c"), chances=(1.0, 0.0, 3.0))
    drawn = Counter(pair.caption((i + 0.5) / 1000) for i in range(1000))
    assert drawn == {"a": 250, "c": 750}
    assert pair.caption(0.0) == "a" and pair.caption(1 - 2**-53) == "c"
