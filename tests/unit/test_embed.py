import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from limner.data.pairs import Pair
from limner.data.sources.read import read_images, read_pairs
from limner.data.tokenizer import Tokenizer
from limner.embed import embed_images, embed_texts, measuring, stream_images
from limner.errors import ConfigError, DataError
from limner.model.clip import CLIP, create
from limner.store.store import load

SCHEMA = pyarrow.schema(
    [("image", pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])), ("text", pyarrow.string())]
)


@pytest.fixture
def model(tokenizer: Tokenizer, tmp_path: Path) -> CLIP:
    """A saved one: it has a fingerprint."""
    create("RN-nano", tokenizer=tokenizer).save(tmp_path / "model")
    return load(tmp_path / "model")


def test_features_are_those_of_the_model_on_pillows_pixels(
    model: CLIP, folder_of_pairs: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("limner.embed.BATCH", 7)
    source = read_pairs(folder_of_pairs)
    embedded = embed_images(model, source)
    assert embedded.indices == list(range(40)) and [pair.key for pair in embedded.pairs()] == [p.key for p in source]
    with torch.no_grad():
        expected = model.encode_image([folder_of_pairs / pair.key for pair in source])
    assert torch.allclose(embedded.features, expected, atol=1e-6)
    assert embedded.features.dtype == torch.float32 and not embedded.features.is_inference()
    streamed = [indices for indices, _, _ in stream_images(model, source)]
    assert [len(indices) for indices in streamed] == [7, 7, 7, 7, 7, 5]


def test_what_cannot_be_read_is_counted_and_left_out(model: CLIP, folder_of_pairs: Path):
    (folder_of_pairs / "03.png").write_bytes(b"not a picture")
    embedded = embed_images(model, read_pairs(folder_of_pairs))
    assert len(embedded.indices) == len(embedded.features) == 39 and 3 not in embedded.indices
    assert [(one.key, one.got) for one in embedded.unreadable] == [("03.png", "13 bytes of another format")]
    for file in folder_of_pairs.glob("*.png"):
        file.write_bytes(b"not a picture")
    with pytest.raises(DataError, match="40 unreadable"):
        embed_images(model, read_pairs(folder_of_pairs))


def test_texts_in_any_number_are_those_one_by_one(model: CLIP, monkeypatch: pytest.MonkeyPatch):
    texts = [f"picture number {number}" for number in range(11)]
    whole = embed_texts(model, texts)
    monkeypatch.setattr("limner.embed.TEXTS", 4)
    assert torch.allclose(embed_texts(model, texts), whole, atol=1e-6)


# --- kept on disk ----------------------------------------------------------------------------------------------------


def test_kept_features_are_taken_from_disk(
    model: CLIP, folder_of_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (folder_of_pairs / "03.png").write_bytes(b"not a picture")
    source, keep = read_pairs(folder_of_pairs), tmp_path / "kept"
    first = embed_images(model, source, keep=keep)
    monkeypatch.setattr(CLIP, "encode_image", lambda *_: pytest.fail("encoded again"))
    again = embed_images(model, source, keep=keep)
    assert torch.equal(first.features, again.features)
    assert (first.indices, first.unreadable) == (again.indices, again.unreadable)


def test_another_model_or_other_data_has_another_file(
    model: CLIP, tokenizer: Tokenizer, folder_of_pairs: Path, tmp_path: Path, picture: Callable[..., bytes]
):
    keep = tmp_path / "kept"
    first = embed_images(model, read_pairs(folder_of_pairs), keep=keep)
    create("RN-nano", tokenizer=tokenizer, seed=1).save(tmp_path / "other")
    other = embed_images(load(tmp_path / "other"), read_pairs(folder_of_pairs), keep=keep)
    assert not torch.allclose(first.features, other.features, atol=1e-3)
    # another picture of the same size: the fingerprint does not see it, the time of the file does
    file = folder_of_pairs / "05.png"
    content = file.read_bytes()
    replaced = next(c for seed in range(100, 400) if len(c := picture(seed=seed)) == len(content))
    file.write_bytes(replaced)
    assert read_pairs(folder_of_pairs).fingerprint == first.source.fingerprint
    third = embed_images(model, read_pairs(folder_of_pairs), keep=keep)
    apart = (third.features - first.features).abs().amax(dim=1)
    assert np.flatnonzero(apart > 1e-3).tolist() == [5]
    assert len(list(keep.glob("*.safetensors"))) == 3


def test_a_damaged_file_is_made_again_with_a_word(
    model: CLIP, folder_of_pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source, keep = read_images(folder_of_pairs), tmp_path / "kept"
    first = embed_images(model, source, keep=keep)
    (file,) = keep.iterdir()
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    for damaged in (content, content[:-100]):
        file.write_bytes(damaged)
        assert torch.equal(embed_images(model, source, keep=keep).features, first.features)
        assert "damaged" in capsys.readouterr().err
    file.write_bytes(content[:-100])
    assert torch.equal(embed_images(model, source, keep=keep).features, first.features)
    assert "damaged" in capsys.readouterr().err
    assert torch.equal(embed_images(model, source, keep=keep).features, first.features)


def test_a_model_changed_since_it_was_loaded_is_another(model: CLIP, folder_of_pairs: Path, tmp_path: Path):
    source, keep = read_pairs(folder_of_pairs), tmp_path / "kept"
    first = embed_images(model, source, keep=keep)
    with torch.no_grad():
        model.image.attention_pool.c_proj.weight.mul_(-1)
    second = embed_images(model, source, keep=keep)
    assert not torch.allclose(first.features, second.features, atol=1e-3)
    model.bfloat16()
    model.float()  # weights that bfloat16 has exactly
    whole = embed_images(model, source, keep=keep)
    model.image.bfloat16()
    assert not torch.equal(whole.features, embed_images(model, source, keep=keep).features)


def test_an_image_beside_a_table_that_is_replaced_is_noticed(
    model: CLIP, tmp_path: Path, picture: Callable[..., bytes]
):
    folder = tmp_path / "table"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(picture(seed=number))
    rows = [{"image": {"bytes": None, "path": f"{number}.png"}, "text": f"number {number}"} for number in range(3)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, SCHEMA), folder / "pairs.parquet")
    first = embed_images(model, read_pairs(folder / "pairs.parquet"), keep=tmp_path / "kept")
    same = next(c for s in range(9, 400) if len(c := picture(seed=s)) == (folder / "1.png").stat().st_size)
    (folder / "1.png").write_bytes(same)
    second = embed_images(model, read_pairs(folder / "pairs.parquet"), keep=tmp_path / "kept")
    apart = (second.features - first.features).abs().amax(dim=1)
    assert np.flatnonzero(apart > 1e-3).tolist() == [1]


def test_what_may_be_readable_another_time_is_not_kept(
    model: CLIP, folder_of_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source, keep, plain = read_pairs(folder_of_pairs), tmp_path / "kept", Pair.read
    monkeypatch.setattr("limner.data.reading.READ_AGAIN", ())

    def fail(pair: Pair) -> bytes:
        if pair.key == "03.png":
            raise OSError("a network of today")
        return plain(pair)

    with monkeypatch.context() as patch:
        patch.setattr(Pair, "read", fail)
        assert len(embed_images(model, source, keep=keep).indices) == 39
    assert not keep.exists() and len(embed_images(model, source, keep=keep).indices) == 40


def test_a_folder_that_cannot_be_written_costs_no_answer(
    model: CLIP, folder_of_pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").write_text("no folder")
    assert len(embed_images(model, read_pairs(folder_of_pairs), keep=tmp_path / "file").indices) == 40
    assert "The features are not kept" in capsys.readouterr().err


# --- device and precision --------------------------------------------------------------------------------------------


def test_device_and_precision(model: CLIP, folder_of_pairs: Path, tmp_path: Path):
    source = read_pairs(folder_of_pairs)
    exact = embed_images(model, source).features
    half = load(tmp_path / "model", precision="bf16", device="auto")
    near = embed_images(half, source).features
    assert near.dtype == torch.float32 and (near.norm(dim=1) - 1).abs().max() < 1e-5
    assert 0 < (near - exact).abs().max() < 0.05
    assert half.fingerprint != model.fingerprint
    for name in ("cuda:77", "gpu"):
        with pytest.raises(ConfigError, match="The device must be auto, or one that this machine"):
            load(tmp_path / "model", device=name)


def test_no_sentences_have_no_features(model: CLIP):
    assert embed_texts(model, []).shape == (0, model.architecture.embed_dim)


def test_the_last_of_several_threads_puts_the_model_back(model: CLIP):
    model.train()
    entered, leave = threading.Barrier(3), [threading.Event() for _ in range(2)]

    def measure(event: threading.Event) -> None:
        with measuring(model):
            entered.wait()
            event.wait()

    threads = [threading.Thread(target=measure, args=(event,)) for event in leave]
    for thread in threads:
        thread.start()
    entered.wait()
    for number, thread in enumerate(threads):
        assert not model.training and not model.image.training
        leave[number].set()
        thread.join()
    assert model.training and all(module.training for module in model.modules())


def test_kept_features_of_another_format_are_not_looked_at(
    model: CLIP,
    folder_of_pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    source = read_pairs(folder_of_pairs)
    embed_images(model, source, keep=tmp_path / "kept")
    monkeypatch.setattr("limner.embed.FORMAT", 99)
    embed_images(model, source, keep=tmp_path / "kept")
    assert len(list((tmp_path / "kept").iterdir())) == 2 and "damaged" not in capsys.readouterr().err
