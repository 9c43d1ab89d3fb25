import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from limner.data import write as module
from limner.data.pairs import Pair, listed
from limner.data.sources.read import read_pairs
from limner.data.write import Sample, is_whole, repack, write_shards
from limner.errors import DataError
from limner.files import sha256_of


@pytest.fixture
def samples(picture: Callable[..., bytes]) -> list[Sample]:
    return [
        Sample(
            image=picture(seed=i),
            extension="png",
            width=40,
            height=30,
            captions=(f"one {i}", f"two {i}"),
            label=i,
            record={"style": "x"},
        )
        for i in range(25)
    ]


def test_written_and_read_again(samples: list[Sample], tmp_path: Path):
    write_shards(samples, tmp_path / "set", origin={"source": "test"}, per_shard=10)
    source = read_pairs(tmp_path / "set")
    assert len(source) == 25 and not source.skipped
    assert source[12].key == "000012" and source[24].key == "000024"
    assert source[12].captions == ("one 12", "two 12") and source[12].label == 12
    assert source[12].read() == samples[12].image
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert manifest["pairs"] == 25 and manifest["fingerprint"] == source.fingerprint
    assert [shard["pairs"] for shard in manifest["shards"]] == [10, 10, 5]


def test_the_layout_is_img2datasets(samples: list[Sample], tmp_path: Path):
    write_shards(samples, tmp_path / "set", origin={}, per_shard=1000)
    with tarfile.open(tmp_path / "set" / "00000.tar") as tar:
        names = tar.getnames()
        record = json.load(tar.extractfile("00000007.json"))  # type: ignore[arg-type]
        assert tar.getmember("00000007.json").mode == 0o444
    assert names[:4] == ["00000000.cls", "00000000.json", "00000000.png", "00000000.txt"]
    assert record["caption"] == "one 7" and record["status"] == "success" and record["style"] == "x"
    table = pyarrow.parquet.read_table(tmp_path / "set" / "00000.parquet")
    assert table.num_rows == 25 and {"caption", "url", "key", "status", "sha256"} <= set(table.column_names)
    stats = json.loads((tmp_path / "set" / "00000_stats.json").read_text())
    assert stats["successes"] == stats["count"] == 25 and stats["status_dict"] == {"success": 25}


def test_the_same_pairs_give_the_same_bytes(samples: list[Sample], tmp_path: Path):
    for name in ("one", "two"):
        write_shards(samples, tmp_path / name, origin={}, per_shard=10)
    for path in (tmp_path / "one").glob("*.tar"):
        assert sha256_of(path) == sha256_of(tmp_path / "two" / path.name)


def test_is_whole(samples: list[Sample], tmp_path: Path):
    folder = tmp_path / "set"
    assert not is_whole(folder, origin={"v": 1})
    write_shards(samples, folder, origin={"v": 1})
    assert is_whole(folder, origin={"v": 1}) and not is_whole(folder, origin={"v": 2})
    content = bytearray((folder / "00000.tar").read_bytes())
    content[3000] ^= 1
    (folder / "00000.tar").write_bytes(content)
    assert not is_whole(folder, origin={"v": 1})


def test_a_failure_leaves_what_was_there(samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "set"
    write_shards(samples, folder, origin={"v": 1})

    def fail(*_: object) -> None:
        raise RuntimeError("power cut")

    monkeypatch.setattr(module, "_write_parquet", fail)
    with pytest.raises(RuntimeError, match="power cut"):
        write_shards(samples[:3], folder, origin={"v": 2})
    assert is_whole(folder, origin={"v": 1}) and len(read_pairs(folder)) == 25


def test_folders_of_others_are_left_alone(samples: list[Sample], tmp_path: Path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "thesis.txt").write_text("x")
    with pytest.raises(DataError, match="Choose another folder"):
        write_shards(samples, tmp_path / "train", origin={})
    assert (tmp_path / "train" / "thesis.txt").exists()


def test_pairs_of_any_layout_become_shards(folder_of_pairs: Path, tmp_path: Path):
    (folder_of_pairs / "02.png").write_bytes(b"<html>")
    path = folder_of_pairs / "01.png"
    odd = Pair("odd", path, 0, path.stat().st_size, ("one", "two"), chances=(0.25, 0.75), label=7, held_out=True)
    source = listed(folder_of_pairs, [odd, *read_pairs(folder_of_pairs)])
    assert repack(source, tmp_path / "set", per_shard=10) == {"not a picture": 1}
    written = read_pairs(tmp_path / "set")
    assert len(written) == 40 and len(written.parts) == 4
    assert (written[0].captions, written[0].chances) == (odd.captions, odd.chances)
    assert written[0].label == 7 and written[0].held_out and written[0].read() == path.read_bytes()
    assert [pair.captions for pair in written][1:] == [
        (f"picture number {number}",) for number in range(40) if number != 2
    ]
    with tarfile.open(tmp_path / "set" / "00000.tar") as tar:
        record = json.load(tar.extractfile("000001.json"))  # type: ignore[arg-type]
    assert record["source_key"] == "00.png"


@pytest.mark.parametrize("names", [0, 9])
def test_several_labels_go_along(folder_of_pairs: Path, tmp_path: Path, names: int):
    if names:
        (folder_of_pairs / "classnames.txt").write_text("".join(f"class {number}\n" for number in range(names)))
    sets = [None, (), (0, 6), (3,), None]
    several = [replace(pair, labels=labels) for pair, labels in zip(read_pairs(folder_of_pairs), sets, strict=False)]
    repack(listed(folder_of_pairs, several), tmp_path / "set", per_shard=3)
    written = read_pairs(tmp_path / "set")
    assert [pair.labels for pair in written] == sets and not written.noted
    with tarfile.open(tmp_path / "set" / "00000.tar") as tar:
        row = np.load(io.BytesIO(tar.extractfile("000001.npy").read()))  # type: ignore[union-attr]
        assert not {"000000.npy", "000001.cls"} & set(tar.getnames())
    assert row.tolist() == [0] * (names or 7) and row.dtype == np.uint8


@pytest.mark.parametrize("labels", [("T-shirt", "C  sharp"), ("1", "0")])
def test_names_of_classes_go_along(folder_of_pairs: Path, tmp_path: Path, labels: tuple[str, str]):
    rows = [f"{number:02d}.png,a caption,{labels[number % 2]}" for number in range(6)]
    (folder_of_pairs / "list.csv").write_text("\n".join(["path,caption,label", *rows]) + "\n")
    (folder_of_pairs / "classnames.txt").write_text("zero\none\n" if labels[0] == "1" else "other\n")
    repack(read_pairs(folder_of_pairs / "list.csv"), tmp_path / "shards")
    names = (tmp_path / "shards" / "classnames.txt").read_text().splitlines()
    assert names == (["zero", "one"] if labels[0] == "1" else ["C sharp", "T-shirt"])
    assert [pair.label for pair in read_pairs(tmp_path / "shards")] == [1, 0, 1, 0, 1, 0]
