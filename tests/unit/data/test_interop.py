"""What limner writes is read by others, and what others write by limner."""

import gc
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from limner.data.sources.read import read_images, read_pairs
from limner.data.write import Sample, write_shards


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")


@pytest.fixture
def datasets(offline: None) -> Any:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    return datasets


@pytest.fixture
def written(tmp_path: Path, picture: Callable[..., bytes]) -> Path:
    """25 pairs in three shards that limner wrote and has read."""
    samples = [
        Sample(
            image=picture(seed=seed),
            extension="png",
            width=40,
            height=30,
            captions=(f"picture {seed}, a café", f"two {seed}"),
            record={"style": "x"},
        )
        for seed in range(25)
    ]
    write_shards(samples, tmp_path / "set", origin={"source": "test"}, per_shard=10)
    read_pairs(tmp_path / "set")
    assert (tmp_path / "set" / ".limner").is_dir() and (tmp_path / "set" / "manifest.json").is_file()
    return tmp_path / "set"


# --- read by others --------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:unclosed file .*tar:ResourceWarning")  # webdataset leaves shards open
@pytest.mark.filterwarnings("ignore:Exception ignored in.*tar:pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_what_limner_writes(written: Path):
    webdataset = pytest.importorskip("webdataset")
    pattern = str(written / "{00000..00002}.tar")
    read = list(webdataset.WebDataset(pattern, shardshuffle=False))
    gc.collect()  # so that it is in this test that they are found open
    pairs = list(read_pairs(written))
    assert [sample["__key__"] for sample in read] == [pair.key for pair in pairs]
    assert [sample["png"] for sample in read] == [pair.read() for pair in pairs]
    assert [sample["txt"].decode() for sample in read] == [pair.captions[0] for pair in pairs]
    assert [json.loads(sample["json"])["captions"] for sample in read] == [list(pair.captions) for pair in pairs]


@pytest.mark.filterwarnings("ignore:unclosed file .*tar:ResourceWarning")
@pytest.mark.filterwarnings("ignore:Exception ignored in.*tar:pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_several_labels_as_clip_benchmark_does(tmp_path: Path, picture: Callable[..., bytes]):
    webdataset = pytest.importorskip("webdataset")
    sample = {"image": picture(), "extension": "png", "width": 40, "height": 30, "captions": ("x",), "record": {}}
    row = np.array([0, 1, 1], dtype=np.uint8)
    write_shards([Sample(**sample, label_row=row), Sample(**sample, label_row=1 - row)], tmp_path / "set", origin={})
    read = webdataset.WebDataset(str(tmp_path / "set" / "00000.tar"), shardshuffle=False).decode().to_tuple("npy")
    assert [rows[0].tolist() for rows in read] == [[0, 1, 1], [1, 0, 0]]
    gc.collect()
    assert [pair.labels for pair in read_pairs(tmp_path / "set")] == [(1, 2), (0,)]


def test_datasets_reads_what_limner_writes(written: Path, tmp_path: Path, datasets: Any):
    files, cache = str(written / "*.tar"), str(tmp_path / "datasets")
    read = datasets.load_dataset("webdataset", data_files=files, split="train", cache_dir=cache)
    pairs = list(read_pairs(written))
    assert read["__key__"][:] == [pair.key for pair in pairs]
    assert read["txt"][:] == [pair.captions[0] for pair in pairs]
    raw = read.cast_column("png", datasets.Image(decode=False))
    assert [row["bytes"] for row in raw["png"]] == [pair.read() for pair in pairs]


# --- written by datasets ---------------------------------------------------------------------------------------------


@pytest.fixture
def dataset(datasets: Any, picture: Callable[..., bytes]) -> Any:
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["even", "odd"]),
            "text": datasets.Value("string"),
        }
    )
    rows = {
        "image": [{"bytes": picture(seed=seed), "path": None} for seed in range(9)],
        "label": [seed % 2 for seed in range(9)],
        "text": [f"picture {seed}" for seed in range(9)],
    }
    return datasets.Dataset.from_dict(rows, features=features)


def check(path: Path, picture: Callable[..., bytes], seeds: range, classes: tuple[str, ...] = ("even", "odd")) -> None:
    pairs = list(source := read_pairs(path))
    assert source.classes == classes and not source.noted
    assert [pair.captions for pair in pairs] == [(f"picture {seed}",) for seed in seeds]
    assert [pair.read() for pair in pairs] == [picture(seed=seed) for seed in seeds]
    assert [pair.label for pair in pairs] == [seed % 2 for seed in seeds]


def test_datasets_saved_to_disk(dataset: Any, datasets: Any, tmp_path: Path, picture: Callable[..., bytes]):
    dataset.save_to_disk(tmp_path / "one", num_shards=2)
    check(tmp_path / "one", picture, range(9))
    splits = {"train": dataset.select(range(5)), "test": dataset.select(range(5, 9))}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "several")
    check(tmp_path / "several", picture, range(5))
    check(tmp_path / "several" / "test", picture, range(5, 9))


def test_datasets_parquet(dataset: Any, tmp_path: Path, picture: Callable[..., bytes]):
    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    for number in range(2):
        dataset.shard(2, number).to_parquet(folder / f"train-0000{number}-of-00002.parquet", batch_size=2)
    dataset.to_parquet(folder / "test-00000-of-00001.parquet")
    check(tmp_path / "hub", picture, range(9))
    check(folder / "test-00000-of-00001.parquet", picture, range(9))


def test_the_names_of_a_class_label_in_their_order(
    dataset: Any, datasets: Any, tmp_path: Path, picture: Callable[..., bytes]
):
    names = ["zero", "a one", "Zero", "-"]
    named = dataset.cast_column("label", datasets.ClassLabel(names=names)).rename_column("label", "species")
    named.to_parquet(tmp_path / "x.parquet")
    named.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"test": named}).save_to_disk(tmp_path / "several")
    for path in ("x.parquet", "one", "several"):
        check(tmp_path / path, picture, range(9), tuple(names))


# --- written by img2dataset ------------------------------------------------------------------------------------------

SHARD_ROWS = 80


def img2dataset(folder: Path, shard: int, content: bytes) -> None:
    """A shard as img2dataset 1.47 writes it with 1,000 pairs a shard: every seventh download failed, every eleventh
    picture could not be resized; rows in the order in which they came."""
    rows = []
    order = sorted(range(SHARD_ROWS), key=lambda index: index * 7919 % SHARD_ROWS)
    with tarfile.open(folder / f"{shard:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for index in order:
            status = "failed_to_download" if index % 7 == 0 else "failed_to_resize" if index % 11 == 0 else "success"
            is_whole = status == "success"
            key = f"{1000 * shard + index:08d}"
            row = {
                "caption": f"caption {shard} {index}",
                "url": f"http://example.org/{index}.jpg",
                "key": key,
                "status": status,
                "error_message": None if is_whole else "HTTP Error 404: Not Found",
                "width": 32 if is_whole else None,
                "height": 32 if is_whole else None,
                "original_width": 64 if is_whole else None,
                "original_height": 48 if is_whole else None,
                "exif": "{}" if is_whole else None,
                "sha256": "0" * 64 if is_whole else None,
            }
            if index == 15:
                row["caption"] = None
            rows.append(row)
            if not is_whole:
                continue
            members = {"jpg": content, "json": json.dumps(row, indent=4).encode()}
            members["txt"] = (row["caption"] or "").encode()
            for extension, data in members.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size, member.mode, member.mtime = len(data), 0o444, 1_700_000_000
                member.uname = member.gname = "bigdata"
                tar.addfile(member, io.BytesIO(data))
    sizes = ("width", "height", "original_width", "original_height")
    schema = pa.schema([(name, pa.int32() if name in sizes else pa.string()) for name in rows[0]])
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / f"{shard:05d}.parquet", row_group_size=100)
    counts = {
        status: sum(row["status"] == status for row in rows) for status in ("failed_to_download", "failed_to_resize")
    }
    successes = SHARD_ROWS - sum(counts.values())
    stats = {
        "count": SHARD_ROWS,
        "successes": successes,
        **counts,
        "duration": 1.5,
        "start_time": 1_700_000_000.0,
        "end_time": 1_700_000_001.5,
        "status_dict": {"success": successes, "HTTP Error 404: Not Found": SHARD_ROWS - successes},
    }
    (folder / f"{shard:05d}_stats.json").write_text(json.dumps(stats, indent=4))


@pytest.fixture
def downloaded(tmp_path: Path) -> Path:
    folder = tmp_path / "downloaded"
    folder.mkdir()
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(buffer, "JPEG")
    for shard in range(3):
        img2dataset(folder, shard, buffer.getvalue())
    return folder


WHOLE = [index for index in range(SHARD_ROWS) if index % 7 and index % 11]


def test_an_img2dataset_folder(downloaded: Path):
    source = read_pairs(downloaded)
    assert len(source) == 3 * (len(WHOLE) - 1) and source.skipped == {"no caption": 3}
    assert len(read_images(downloaded)) == 3 * len(WHOLE)
    told = {pair.key: pair.captions for pair in source}
    assert told == {f"{1000 * n + i:08d}": (f"caption {n} {i}",) for n in range(3) for i in WHOLE if i != 15}
    with Image.open(io.BytesIO(source[17].read())) as opened:
        assert opened.size == (32, 32)


def test_brace_ranges_and_several_sources(downloaded: Path):
    each = len(WHOLE) - 1
    two = read_pairs(str(downloaded / "{00000..00001}.tar"))
    assert len(two) == 2 * each and {pair.key[:5] for pair in two} == {"00000", "00001"}
    assert len(read_pairs(str(downloaded / "0000{0,2}.tar"))) == 2 * each
    both = read_pairs(f"{downloaded / '{00000..00001}.tar'}::{downloaded / '00002.tar'}", (1.0, 2.0))
    assert len(both) == 3 * each and both[2 * each].key.startswith("1/00002") and both.shares == ((2, 1.0), (1, 2.0))
