from pathlib import Path

import pytest
import torch

from limn.config import ImageConfig
from limn.data.decode import centre_crop, decode
from limn.data.loader import Loader, read_centre
from limn.data.sources import read_pairs
from limn.data.tokenizer import Tokenizer
from limn.errors import DataError


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


def test_read_centre(folder_of_pairs: Path):
    (folder_of_pairs / "03.png").write_bytes(b"not a picture")
    source = read_pairs(folder_of_pairs)
    batches = list(read_centre(source, 24, batch_size=16))
    assert [i for indices, _, _ in batches for i in indices] == [i for i in range(40) if i != 3]
    assert [bad for _, _, bad in batches] == [{"03.png": "13 bytes of another format"}, {}, {}]
    expected = centre_crop(decode(source[20].read(), 24), 24)
    assert torch.equal(batches[1][1][4], torch.from_numpy(expected.copy()).permute(2, 0, 1))
