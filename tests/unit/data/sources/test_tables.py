import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from limner.data import pairs
from limner.data.pairs import NOT_THERE
from limner.data.sources import arrow
from limner.data.sources import index as module_index
from limner.data.sources import tables as module
from limner.data.sources.arrow import BROKEN_FEATURES
from limner.data.sources.beside import FOLDER_LINK, HEIC, OTHER_LIST, OTHER_TABLE, OTHER_TAR
from limner.data.sources.beside import IMAGE as UNLISTED
from limner.data.sources.index import SOME_NAMED
from limner.data.sources.kept import Kept
from limner.data.sources.read import read_images, read_pairs
from limner.data.sources.tables import OUTSIDE, SEVERAL_CLASS_LABELS, are_tables
from limner.errors import DataError, MissingExtra

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "PART", 1)
    monkeypatch.setattr(arrow, "ROWS", 2)


@pytest.fixture
def pictures(picture: Callable[..., bytes]) -> list[bytes]:
    return [picture(seed=seed) for seed in range(10)]


def images(pictures: list[bytes]) -> pa.Array:
    """As datasets writes them."""
    return pa.array([{"bytes": content, "path": None} for content in pictures], type=IMAGE)


# --- lists -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_a_parquet_list(folder_of_pairs: Path, kind: pa.DataType):
    rows = pa.table(
        {
            "Image_Path": pa.array(["00.png", "01.png", "00.png", None], pa.string()).cast(kind),
            "text": pa.array(["one", "another", " two ", "x"], pa.string()).cast(kind),
            "width": [1, 2, 3, 4],
        }
    )
    pq.write_table(rows, folder_of_pairs / "list.parquet", row_group_size=2)
    source = read_pairs(folder_of_pairs / "list.parquet")
    assert [(p.key, p.captions) for p in source] == [("00.png", ("one", "two")), ("01.png", ("another",))]
    assert source[0].read() == (folder_of_pairs / "00.png").read_bytes()
    assert source.skipped == {"picture file missing, or outside of the list's folder": 1}
    assert not are_tables(str(folder_of_pairs))  # the folder itself is one of pictures


def test_a_parquet_list_with_several_captions_a_row_and_without_any(folder_of_pairs: Path):
    rows = {"path": ["00.png", "01.png", "02.png"], "caption": [["one", None, "two"], [], None]}
    pq.write_table(pa.table(rows), folder_of_pairs / "list.parquet")
    source = read_pairs(folder_of_pairs / "list.parquet")
    assert [p.captions for p in source] == [("one", "two")] and source.skipped == {"no caption": 2}
    pq.write_table(pa.table({"path": rows["path"]}), folder_of_pairs / "list.parquet")
    assert len(read_images(folder_of_pairs / "list.parquet")) == 3
    with pytest.raises(DataError, match=r"a caption column .* columns found: 'path'\."):
        read_pairs(folder_of_pairs / "list.parquet")


def test_a_parquet_list_stays_in_its_folder(folder_of_pairs: Path, picture: Callable[..., bytes]):
    outside = folder_of_pairs.parent / "secret.png"
    outside.write_bytes(picture())
    (folder_of_pairs / "02.png").write_bytes(b"")
    names = ["../secret.png", str(outside), "a\0b.png", "", "x" * 5000, "01.png", "02.png"]
    pq.write_table(pa.table({"path": names, "caption": ["x"] * 7}), folder_of_pairs / "list.parquet")
    source = read_pairs(folder_of_pairs / "list.parquet")
    assert [pair.key for pair in source] == ["01.png"]
    missing = "picture file missing, or outside of the list's folder"
    assert source.skipped == {missing: 5, "empty picture file": 1}


def test_texts_that_are_not_utf8(folder_of_pairs: Path):
    bad = pa.array([b"01.png", b"caf\xe9"], pa.binary()).view(pa.string())
    names = pa.array(["00.png", "01.png"])
    pq.write_table(pa.table({"path": names, "caption": bad}), folder_of_pairs / "list.parquet")
    source = read_pairs(folder_of_pairs / "list.parquet")
    assert source[1].captions == ("caf\ufffd",) and source.noted.total() == 1
    pq.write_table(pa.table({"path": bad, "caption": names}), folder_of_pairs / "list.parquet")
    assert [pair.key for pair in read_pairs(folder_of_pairs / "list.parquet")] == ["01.png"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("place", [".", "train"])
def test_an_imagefolder_with_metadata(tmp_path: Path, pictures: list[bytes], kind: str, place: str):
    folder = tmp_path / "set"
    (folder / place / "inner").mkdir(parents=True)
    for number in range(3):
        (folder / place / "inner" / f"{number}.png").write_bytes(pictures[number])
    metadata = folder / place / f"metadata.{kind}"
    rows = [{"file_name": f"inner/{number}.png", "text": f"picture {number}"} for number in range(3)]
    if kind == "csv":
        metadata.write_text("file_name,text\n" + "".join(f"{row['file_name']},{row['text']}\n" for row in rows))
    elif kind == "jsonl":
        metadata.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), metadata)
    source = read_pairs(folder)
    assert [p.captions[0] for p in source] == ["picture 0", "picture 1", "picture 2"]
    assert source[2].key == "inner/2.png" and source[2].read() == pictures[2]


def test_what_a_metadata_list_does_not_name_is_counted(tmp_path: Path, pictures: list[bytes]):
    for number in range(4):
        (tmp_path / "train").mkdir(exist_ok=True)
        (tmp_path / "train" / f"{number}.png").write_bytes(pictures[0])
    (tmp_path / "train" / "inner").mkdir()
    (tmp_path / "train" / "inner" / "4.PNG").write_bytes(pictures[0])
    (tmp_path / "metadata.csv").write_text("file_name,text\ntrain/0.png,a dog\ntrain/1.png,\ntrain/9.png,gone\n")
    source = read_pairs(tmp_path)
    assert len(source) == 1 and source.skipped == {UNLISTED: 3, NOT_THERE: 1, "no caption": 1}
    pq.write_table(pa.table({"file_name": ["train/0.png", "train/2.png"], "text": ["a", "b"]}), tmp_path / "m.parquet")
    (tmp_path / "metadata.csv").unlink()
    (tmp_path / "m.parquet").rename(tmp_path / "metadata.parquet")
    source = read_pairs(tmp_path)
    assert len(source) == 2 and source.skipped == {UNLISTED: 3}
    assert not read_pairs(tmp_path / "metadata.parquet").skipped  # a list that was named is taken at its word


def test_other_files_named_metadata_do_not_make_a_table(folder_of_pairs: Path):
    (folder_of_pairs / "metadata.csv").write_text("licence,author\nCC0,me\n")
    pq.write_table(pa.table({"url": ["http://x"], "caption": ["x"], "key": ["0"]}), folder_of_pairs / "00000.parquet")
    assert len(read_pairs(folder_of_pairs)) == 40


# --- pictures inside -------------------------------------------------------------------------------------------------


def test_pictures_in_parquet(tmp_path: Path, pictures: list[bytes], small_parts: None):
    captions = [[f"one {n}", f"two {n}"] for n in range(10)]
    table = pa.table({"image": images(pictures), "caption": captions, "label": list(range(10))})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=4)
    source = read_pairs(tmp_path / "x.parquet")
    assert len(source) == 10 and not source.skipped
    assert [len(part) for part in source.parts] == [4, 4, 2]
    assert [part.name for part in source.parts][1] == "x.parquet, pairs 4 to 8"
    assert [pair.key for pair in source][:2] == ["x/000000", "x/000001"]
    assert [pair.captions for pair in source] == [tuple(texts) for texts in captions]
    assert [pair.label for pair in source] == list(range(10))
    assert [pair.read() for pair in source] == pictures
    assert [pair.size for pair in source] == [len(content) for content in pictures]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_img2dataset_parquet(tmp_path: Path, pictures: list[bytes], kind: pa.DataType):
    table = pa.table(
        {
            "caption": ["a", "b", None],
            "url": ["http://x"] * 3,
            "key": ["000000000", "000000001", "000000002"],
            "status": ["success", "failed_to_download", "success"],
            "jpg": pa.array([pictures[0], None, pictures[2]], kind),
        }
    )
    folder = tmp_path / "out"
    folder.mkdir()
    pq.write_table(table, folder / "00000.parquet")
    pq.write_table(table.set_column(2, "key", [["000010000", "000010001", "000010002"]]), folder / "00001.parquet")
    source = read_pairs(folder)
    assert [pair.key for pair in source] == ["000000000", "000010000"]
    assert source.skipped == {"no picture": 2, "no caption": 2}
    assert [pair.read() for pair in read_images(folder)] == [pictures[0], pictures[2]] * 2


def test_pictures_that_cannot_be_used_are_counted(tmp_path: Path, pictures: list[bytes], monkeypatch):
    monkeypatch.setattr(pairs, "MAX_IMAGE_BYTES", 5000)
    monkeypatch.setattr(module, "MAX_TEXT_BYTES", 100)
    outside = tmp_path / "secret.png"
    outside.write_bytes(pictures[9])
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "beside.png").write_bytes(pictures[1])
    rows = [
        {"bytes": pictures[0], "path": "../secret.png"},
        {"bytes": None, "path": "beside.png"},
        {"bytes": None, "path": "../secret.png"},
        {"bytes": None, "path": "a\0b"},
        {"bytes": None, "path": None},
        None,
        {"bytes": b"", "path": "beside.png"},
        {"bytes": b"x" * 5001, "path": None},
        {"bytes": pictures[2], "path": None},
        {"bytes": pictures[3], "path": None},
    ]
    table = pa.table({"image": pa.array(rows, IMAGE), "text": ["a"] * 8 + [" ", "x" * 101], "label": [-1] * 10})
    pq.write_table(table, folder / "x.parquet", row_group_size=3)
    source = read_pairs(folder)
    assert [(p.key, p.label, p.read()) for p in source] == [
        ("x/000000", None, pictures[0]),
        ("x/000001", None, pictures[1]),
    ]
    assert source.skipped == {
        "no picture": 2,
        "picture file missing, or outside of the list's folder": 2,
        "empty picture file": 1,
        pairs.TOO_LARGE: 1,
        "no caption": 2,
    }
    assert source.noted == {"caption over 0 MiB (not read)": 1, "label below 0 (no class)": 4}
    pair = source[1]
    (folder / "beside.png").unlink()
    (folder / "beside.png").symlink_to(outside)  # the index knows the name, not what it stands for by now
    with pytest.raises(FileNotFoundError):
        pair.read()


def test_keys_are_taken_where_they_tell_pairs_apart(tmp_path: Path, pictures: list[bytes]):
    def keys_of(folder: str, **columns: list[list[object]]) -> list[str]:
        (tmp_path / folder).mkdir()
        for number in range(2):
            told = {name: values[number] for name, values in columns.items()}
            table = pa.table({"image": images(pictures[:2]), "caption": ["x", "y"], **told})
            pq.write_table(table, tmp_path / folder / f"part{number}.parquet")
        return [pair.key for pair in read_pairs(tmp_path / folder)]

    assert keys_of("own", id=[["a", "b"], ["c", "d"]]) == ["a", "b", "c", "d"]
    assert keys_of("again", id=[[1, 2], [1, 2]]) == ["part0/1", "part0/2", "part1/1", "part1/2"]
    assert keys_of("same", key=[["a", "a"], ["b", "c"]]) == ["part0/000000", "part0/000001", "b", "c"]
    assert len(set(keys_of("null", uid=[["a", None], ["b", "c"]]))) == 4


def test_an_index_is_kept_and_follows_the_file(tmp_path: Path, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": images(pictures[:5]), "caption": list("abcde")}), path)
    before = read_pairs(path)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_places", lambda *_: pytest.fail("the pictures are read again"))
        again = read_pairs(path)
    assert again.fingerprint == before.fingerprint and list(again) == list(before)
    assert (tmp_path / ".limner" / "x.parquet.index").is_file()
    pq.write_table(pa.table({"image": images(pictures[5:9]), "caption": list("abcd")}), path)
    after = read_pairs(path)
    assert after.fingerprint != before.fingerprint and [p.read() for p in after] == pictures[5:9]


def test_parts_hold_row_groups_whole(tmp_path: Path, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "PART", 5)
    captions = ["x"] * 9 + [None]
    table = pa.table({"image": images(pictures), "caption": captions})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=3)
    assert [len(part) for part in read_pairs(tmp_path / "x.parquet").parts] == [6, 3]
    assert [len(part) for part in read_images(tmp_path / "x.parquet").parts] == [6, 4]
    digests = {part.digest() for part in read_images(tmp_path / "x.parquet").parts}
    assert len(digests) == 2


def test_hub_folders_give_their_training_files(tmp_path: Path, pictures: list[bytes]):
    def write(name: str, first: int) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"image": images(pictures[first : first + 1]), "text": [name]}), tmp_path / name)

    for number in range(2):
        write(f"hub/data/train-0000{number}-of-00002.parquet", number)
    write("hub/data/test-00000-of-00001.parquet", 2)
    assert [pair.read() for pair in read_pairs(tmp_path / "hub")] == pictures[:2]
    write("plain/b.parquet", 4)
    write("plain/a.parquet", 3)
    assert [pair.key for pair in read_pairs(tmp_path / "plain")] == ["a/000000", "b/000000"]
    write("tests/test-00000-of-00001.parquet", 5)
    assert len(read_pairs(tmp_path / "tests")) == 1
    write("tests/val-00000-of-00001.parquet", 6)
    with pytest.raises(DataError, match="splits found: test, val"):
        read_pairs(tmp_path / "tests")


def test_damaged_tables(tmp_path: Path, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch):
    good, bad = tmp_path / "a.parquet", tmp_path / "b.parquet"
    table = pa.table({"image": images(pictures), "caption": ["x"] * 10})
    for path in (good, bad):
        pq.write_table(table, path, compression="none")
    content = bad.read_bytes()
    bad.write_bytes(content[:1000] + b"\xff" * 3000 + content[4000:-8])
    with pytest.raises(DataError, match=r"The table .*b\.parquet must be readable to its end"):
        read_pairs(bad)
    source = read_pairs(tmp_path)
    assert len(source) == 10 and source.noted == {"table that cannot be read (b.parquet)": 1}
    pair = source[3]
    good.write_bytes(content[:-8])  # it changes while a run reads it
    monkeypatch.setattr(module, "_row_groups", Kept(2**20))
    with pytest.raises(OSError, match="row 3"):
        pair.read()


def test_a_table_without_pictures(tmp_path: Path):
    pq.write_table(pa.table({"url": ["http://x"], "caption": ["x"]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="columns found: 'url', 'caption'"):
        read_pairs(tmp_path / "x.parquet")


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "x.parquet").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"pip install 'limner\[data\]'"):
        read_pairs(tmp_path / "x.parquet")


# --- what datasets saves ---------------------------------------------------------------------------------------------


def save(folder: Path, table: pa.Table, *, files: int = 1, rows: int = 3) -> None:
    """A folder as datasets' save_to_disk lays it out; test_interop.py has one of its own."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05d}-of-{files:05d}.arrow" for number in range(files)]
    each = -(-table.num_rows // files)
    for number, name in enumerate(names):
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table.slice(number * each, each), max_chunksize=rows)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")


def test_arrow_files(tmp_path: Path, pictures: list[bytes], small_parts: None):
    table = pa.table({"image": images(pictures), "text": [f"picture {n}" for n in range(10)], "label": [3] * 10})
    save(tmp_path / "set", table, files=2)
    source = read_pairs(tmp_path / "set")
    assert [len(part) for part in source.parts] == [3, 2, 3, 2]
    assert [pair.read() for pair in source] == pictures
    assert [pair.captions[0] for pair in source] == [f"picture {n}" for n in range(10)]
    assert source[0].label == 3 and source[5].key == "data-00001-of-00002/000000"


def test_splits_of_a_saved_dataset(tmp_path: Path, pictures: list[bytes]):
    table = pa.table({"image": images(pictures), "text": ["x"] * 10})
    for split in ("train", "test"):
        save(tmp_path / "set" / split, table.slice(0, 4 if split == "train" else 2))
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert len(read_pairs(tmp_path / "set")) == 4
    assert len(read_pairs(tmp_path / "set" / "test")) == 2
    (tmp_path / "set" / "train").rename(tmp_path / "set" / "training")
    with pytest.raises(DataError, match="splits found: test, training"):
        read_pairs(tmp_path / "set")


@pytest.mark.parametrize(
    "state", ["", "[]", "{}", '{"_data_files": []}', '{"_data_files": [{"filename": "../x.arrow"}]}']
)
def test_a_saved_dataset_names_its_own_files(tmp_path: Path, pictures: list[bytes], state: str):
    table = pa.table({"image": images(pictures), "text": ["x"] * 10})
    save(tmp_path / "set", table)
    (tmp_path / "set" / "data-00000-of-00001.arrow").rename(tmp_path / "x.arrow")
    (tmp_path / "set" / "state.json").write_text(state)
    with pytest.raises(DataError, match=r"state\.json must be readable"):
        read_pairs(tmp_path / "set")


def test_a_damaged_arrow_file(tmp_path: Path, pictures: list[bytes]):
    table = pa.table({"image": images(pictures), "text": [f"picture {n}" for n in range(10)]})
    save(tmp_path / "set", table)
    path = tmp_path / "set" / "data-00000-of-00001.arrow"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="must be readable to its end"):
        read_pairs(tmp_path / "set")
    # offsets that lead out of the file: of the captions of the first batch, 0 9 18 27
    offsets = b"".join(number.to_bytes(4, "little") for number in (0, 9, 18, 27))
    assert content.count(offsets) > 0
    path.write_bytes(content.replace(offsets, b"\0\0\0\0" + b"\xff\xff\xff\x7f" * 3))
    with pytest.raises(DataError, match="must be readable to its end"):
        read_pairs(tmp_path / "set")


# --- row groups in memory --------------------------------------------------------------------------------------------


def test_row_groups_are_unpacked_once_and_bounded(tmp_path: Path, pictures: list[bytes], monkeypatch):
    pq.write_table(pa.table({"jpg": pictures, "caption": ["x"] * 10}), tmp_path / "x.parquet", row_group_size=5)
    source, unpacked = read_pairs(tmp_path / "x.parquet"), []
    kept = Kept(2**20)
    get = kept.get
    kept.get = lambda key, make: get(key, lambda: (unpacked.append(key), make())[1])
    monkeypatch.setattr(module, "_row_groups", kept)
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda i: source[i % 10].read(), range(200))) == pictures * 20
    assert len(unpacked) == 2
    kept.most_bytes = 1  # the last one stays
    for index in (0, 9, 8, 0, 9):
        assert source[index].read() == pictures[index]
    assert len(unpacked) <= 2 + 4 and kept.bytes > 1


# --- what else is in the folder --------------------------------------------------------------------------------------


def with_others(folder: Path, picture: bytes) -> dict[str, int]:
    """Put what is not read into a folder beside tables; how it is counted."""
    for name in ("loose.png", "in/deep/loose.JPG", "in/.hidden/x.png", ".x.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture)
    for name in ("photo.heic", "1.tar.gz", "in/2.tar", "in/x.PARQUET", "in/metadata.csv", "notes.md", "cache-1.arrow"):
        (folder / name).write_bytes(b"x")
    (folder / "link").symlink_to("in")
    return {UNLISTED: 2, HEIC: 1, OTHER_TAR: 2, OTHER_TABLE: 1, OTHER_LIST: 1, FOLDER_LINK: 1}


@pytest.mark.parametrize("has_images", [True, False])
@pytest.mark.parametrize("suffix", ["", ".parquet"])
def test_every_file_of_a_folder_of_tables_is_read_or_counted(
    tmp_path: Path, pictures: list[bytes], has_images: bool, suffix: str
):
    folder = tmp_path / f"set{suffix}"
    folder.mkdir()
    for part in range(3):
        names = [f"{part}-{number}.png" for number in range(2)]
        column = images(pictures[:2]) if has_images else pa.array(names)
        pq.write_table(pa.table({"image": column, "caption": names}), folder / f"part-{part}.parquet")
        for name in names if not has_images else ():
            (folder / name).write_bytes(pictures[0])
    if not has_images and not suffix:
        return  # parquet files beside loose pictures do not make a folder a table
    expected = with_others(folder, pictures[0])
    source = read_pairs(folder)
    assert sorted(source.captions()) == sorted(f"{part}-{number}.png" for part in range(3) for number in range(2))
    assert source.skipped == expected
    (folder / "part-3.parquet").write_bytes(b"no table")
    if has_images:
        assert read_pairs(folder).noted == {"table that cannot be read (part-3.parquet)": 1}


def test_tables_of_paths_and_of_pictures_do_not_mix(tmp_path: Path, pictures: list[bytes]):
    folder = tmp_path / "set.parquet"
    folder.mkdir()
    pq.write_table(pa.table({"path": ["a.png"], "caption": ["a"]}), folder / "0.parquet")
    pq.write_table(pa.table({"path": images(pictures[:1]), "caption": ["a"]}), folder / "1.parquet")
    (folder / "a.png").write_bytes(pictures[0])
    with pytest.raises(DataError, match="pictures inside, where the tables beside it hold paths"):
        read_pairs(folder)


def test_a_split_that_is_not_read_is_counted(tmp_path: Path, pictures: list[bytes]):
    for name in ("train", "unsplash"):
        pq.write_table(pa.table({"image": images(pictures[:2]), "text": ["a", "b"]}), tmp_path / f"{name}.parquet")
    source = read_pairs(tmp_path)
    assert len(source) == 2 and source.skipped == {OTHER_TABLE: 1}


@pytest.mark.parametrize("header", ["path,text", "path;file_names", '{"path": "a.png", "text": "x"}'])
def test_a_list_that_only_speaks_of_file_names_is_no_metadata(tmp_path: Path, pictures: list[bytes], header: str):
    ending = "jsonl" if header.startswith("{") else "csv"
    more = '{"path": "b.png", "text": "file_name"}' if ending == "jsonl" else "b.png,file_name"
    (tmp_path / f"metadata.{ending}").write_text(f"{header}\n{more}\n")
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(pictures[0])
        (tmp_path / f"{name}.txt").write_text("a caption")
    assert not are_tables(str(tmp_path)) and len(read_pairs(tmp_path)) == 2


def test_pictures_beside_a_table_are_read_as_they_are_now(tmp_path: Path, pictures: list[bytes]):
    rows = [{"bytes": None, "path": "grows.png"}, {"bytes": None, "path": "late.png"}]
    table = pa.table({"image": pa.array(rows, IMAGE), "text": ["a", "b"]})
    pq.write_table(table, tmp_path / "x.parquet")
    (tmp_path / "grows.png").write_bytes(b"x")
    source = read_pairs(tmp_path / "x.parquet")
    assert list(source.captions()) == ["a"] and source.skipped == {NOT_THERE: 1}
    for name in ("grows.png", "late.png"):
        (tmp_path / name).write_bytes(pictures[0])
    assert source[0].read() == pictures[0]
    source = read_pairs(tmp_path / "x.parquet")
    assert [pair.read() for pair in source] == [pictures[0]] * 2 and not source.skipped


@pytest.mark.parametrize("labels, expected", [([1.0, None, 3.0], [1, None, 3]), ([True, False, None], [None] * 3)])
def test_labels_of_a_table_are_numbers_or_noted(tmp_path: Path, pictures: list[bytes], labels, expected):
    pq.write_table(
        pa.table({"image": images(pictures[:3]), "text": ["a"] * 3, "label": labels}), tmp_path / "x.parquet"
    )
    source = read_pairs(tmp_path / "x.parquet")
    assert [pair.label for pair in source] == expected
    assert source.noted.total() == 2 * (labels[0] is True)


# --- classes with names ----------------------------------------------------------------------------------------------


def class_labels(table: pa.Table, **names: object) -> pa.Table:
    """The table with what datasets writes about columns that are ClassLabels."""
    features = {column: {"names": said, "_type": "ClassLabel"} for column, said in names.items()}
    return with_metadata(table, json.dumps({"info": {"features": {"image": {"_type": "Image"}, **features}}}))


def with_metadata(table: pa.Table, said: str | bytes) -> pa.Table:
    return table.replace_schema_metadata({"huggingface": said})


def labelled(pictures: list[bytes], labels: object = (1, 0, 1), column: str = "label") -> pa.Table:
    return pa.table({"image": images(pictures[:3]), "text": list("abc"), column: labels})


@pytest.mark.parametrize("column", ["label", "species", "Fine_Label", "id"])
def test_the_names_of_a_class_label_are_the_classes_in_their_order(tmp_path: Path, pictures: list[bytes], column: str):
    names = ["dog", "cat", "dog"]
    table = class_labels(labelled(pictures, [2, 0, 1], column), **{column: names})
    pq.write_table(table, tmp_path / "x.parquet")
    save(tmp_path / "saved", table)
    for path in (tmp_path / "x.parquet", tmp_path / "saved"):
        for _ in range(2):
            module_index._indexes.clear()
            source = read_pairs(path)
            assert source.classes == ("dog", "cat", "dog") and not source.noted
            assert [pair.label for pair in source] == [2, 0, 1]


def test_a_label_without_a_name_is_noted(tmp_path: Path, pictures: list[bytes]):
    pq.write_table(class_labels(labelled(pictures, [1, 2, -1]), label=["a", "b"]), tmp_path / "x.parquet")
    source = read_pairs(tmp_path / "x.parquet")
    assert [pair.label for pair in source] == [1, None, None] and source.classes == ("a", "b")
    assert source.noted == {OUTSIDE: 1, "label below 0 (no class)": 1}


def test_of_several_class_labels_the_one_that_is_named_label_counts(tmp_path: Path, pictures: list[bytes]):
    table = labelled(pictures, [1, 0, 1], "fine_label").append_column("coarse_label", pa.array([0, 0, 0]))
    names = {"fine_label": ["a", "b"], "coarse_label": ["c"]}
    pq.write_table(class_labels(table, **names), tmp_path / "x.parquet")
    source = read_pairs(tmp_path / "x.parquet")
    assert [pair.label for pair in source] == [None] * 3 and source.classes == ()
    assert source.noted == {SEVERAL_CLASS_LABELS: 1}
    table = table.append_column("label", pa.array([1, 1, 0]))
    pq.write_table(class_labels(table, **names, label=["e", "f"]), tmp_path / "x.parquet")
    source = read_pairs(tmp_path / "x.parquet")
    assert [pair.label for pair in source] == [1, 1, 0] and source.classes == ("e", "f") and not source.noted


@pytest.mark.parametrize(
    "said",
    [
        b"{broken",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b"7",
        b'{"info": null}',
        b'{"info": {"features": null}}',
        b'{"info": {"features": [1]}}',
        b"[" * 100_000,
        *(
            json.dumps({"info": {"features": {"label": {"_type": "ClassLabel", **names}}}}).encode()
            for names in (
                {},
                *({"names": said} for said in (None, 3, [], "ab", ["a", 1], {"0": "a", "1": "b"}, ["\ud800"])),
            )
        ),
    ],
)
def test_names_that_cannot_be_read_are_noted_and_labels_stay_numbers(
    tmp_path: Path, pictures: list[bytes], said: bytes
):
    pq.write_table(with_metadata(labelled(pictures), said), tmp_path / "x.parquet")
    source = read_pairs(tmp_path / "x.parquet")
    assert [pair.label for pair in source] == [1, 0, 1] and source.classes == ()
    assert source.noted == {BROKEN_FEATURES: 1}


def test_names_without_end_are_not_read(tmp_path: Path, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(arrow, "MAX_FEATURES_BYTES", 1000)
    pq.write_table(class_labels(labelled(pictures), label=["a" * 500, "b" * 500]), tmp_path / "x.parquet")
    assert read_pairs(tmp_path / "x.parquet").noted == {BROKEN_FEATURES: 1}


@pytest.mark.parametrize("feature", [{"_type": "Value"}, [{"_type": "ClassLabel"}], None, "ClassLabel"])
def test_other_features_are_no_class_labels(tmp_path: Path, pictures: list[bytes], feature: object):
    said = json.dumps({"info": {"features": {"label": feature}}})
    pq.write_table(with_metadata(labelled(pictures), said), tmp_path / "x.parquet")
    source = read_pairs(tmp_path / "x.parquet")
    assert [pair.label for pair in source] == [1, 0, 1] and source.classes == () and not source.noted


def test_a_class_label_of_texts_is_none(tmp_path: Path, pictures: list[bytes]):
    pq.write_table(class_labels(labelled(pictures, list("aba")), label=["a", "b"]), tmp_path / "x.parquet")
    assert read_pairs(tmp_path / "x.parquet").classes == ()


def test_tables_with_other_names_are_merged_by_name(tmp_path: Path, pictures: list[bytes]):
    for number, names in enumerate((["b", "a"], ["c", "b"])):
        pq.write_table(class_labels(labelled(pictures), label=names), tmp_path / f"{number}.parquet")
    source = read_pairs(tmp_path)
    assert source.classes == ("a", "b", "c") and [pair.label for pair in source] == [0, 1, 0, 1, 2, 1]
    pq.write_table(labelled(pictures), tmp_path / "2.parquet")
    source = read_pairs(tmp_path)
    assert source.classes == () and [pair.label for pair in source] == [1, 0, 1] * 3
    assert source.noted == {SOME_NAMED: 3}


def test_a_list_with_a_class_label(folder_of_pairs: Path):
    rows = pa.table({"path": [f"{n:02d}.png" for n in range(5)], "text": list("abcde"), "kind": [1, 0, 2, -1, None]})
    pq.write_table(class_labels(rows, kind=["z", "a"]), folder_of_pairs / "list.parquet")
    source = read_pairs(folder_of_pairs / "list.parquet")
    assert source.classes == ("z", "a") and [pair.label for pair in source] == [1, 0, None, None, None]
    assert source.noted == {OUTSIDE: 1, "label below 0 (no class)": 1}


def test_a_mixture_keeps_the_order_of_equal_class_labels(tmp_path: Path, pictures: list[bytes]):
    for name, names in (("a", ["z", "a"]), ("b", ["z", "a"]), ("c", ["a", "b"])):
        pq.write_table(class_labels(labelled(pictures), label=names), tmp_path / f"{name}.parquet")
    same = read_pairs(f"{tmp_path}/a.parquet::{tmp_path}/b.parquet")
    assert same.classes == ("z", "a") and [pair.label for pair in same] == [1, 0, 1] * 2
    other = read_pairs(f"{tmp_path}/a.parquet::{tmp_path}/c.parquet")
    assert other.classes == ("a", "b", "z") and [pair.label for pair in other] == [0, 2, 0, 1, 0, 1]
