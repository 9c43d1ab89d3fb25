import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.tars import pairs, tar
from limner.data import pairs as module
from limner.data.order import uniform
from limner.data.pairs import Chosen, Listed, Pair, Source, bytes_of, csv_beside, listed, merged, mixture, sifted
from limner.data.sources.read import read_images, read_pairs
from limner.errors import DataError

ODD = ("a", "ä/ö.png", "\udcff.jpg", "日本", "0/00012", "")
"""Keys that are not plain: one is of a file whose name is not UTF-8."""


def of_keys(*keys: str) -> Source:
    return listed(Path("x"), [Pair(key, Path("x"), 0, 1, ("c",)) for key in keys])


def test_the_fingerprint_tells_sources_apart(folder_of_pairs: Path):
    before = read_pairs(folder_of_pairs).fingerprint
    assert read_pairs(folder_of_pairs).fingerprint == before
    (folder_of_pairs / "07.txt").write_text("something else")
    assert read_pairs(folder_of_pairs).fingerprint != before


def test_a_split_is_disjoint_whole_and_stable(folder_of_pairs: Path):
    kept, held_back = read_pairs(folder_of_pairs).split(0.25)
    assert {p.key for p in kept} | {p.key for p in held_back} == {p.key for p in read_pairs(folder_of_pairs)}
    assert not {p.key for p in kept} & {p.key for p in held_back}
    assert 3 <= len(held_back) <= 20
    (folder_of_pairs / "00.png").unlink()
    assert {p.key for p in read_pairs(folder_of_pairs).split(0.25)[1]} == {p.key for p in held_back} - {"00.png"}


# --- what is kept back -----------------------------------------------------------------------------------------------


def kept_back(source: Source, share: float) -> list[str]:
    """What `split` has to give, pair by pair."""

    def is_kept_back(pair: Pair) -> bool:
        number = int.from_bytes(hashlib.sha256(pair.key.encode("utf-8", "surrogateescape")).digest()[:7], "big")
        return float(uniform(0, "holdout", 0, number)) < share

    return [pair.key for pair in source if is_kept_back(pair)]


@pytest.fixture
def sources(tmp_path: Path, picture: Callable[..., bytes], folder_of_pairs: Path) -> dict[str, Source]:
    """Sources of all kinds of parts."""
    bare = {"200.png": picture(), "201.png": picture(), "201.txt": b"x"}
    tar(tmp_path / "set" / "0.tar", pairs(picture, 0, 20) | bare)
    tar(tmp_path / "set" / "1.tar", pairs(picture, 10, 20))
    images = [{"bytes": picture(seed=seed), "path": None} for seed in range(12)]
    table = pa.table({"image": images, "caption": [None, *"bcdefghijkl"], "id": [f"é{n}" for n in range(12)]})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=4)
    made = {
        "folder": read_pairs(folder_of_pairs),
        "shard": read_pairs(tmp_path / "set" / "0.tar"),
        "shard, without captions too": read_images(tmp_path / "set" / "0.tar"),
        "shards of the same keys": read_pairs(tmp_path / "set"),
        "table": read_pairs(tmp_path / "x.parquet"),
        "table, without captions too": read_images(tmp_path / "x.parquet"),
        "odd keys": of_keys(*ODD),
    }
    made["mixture"] = mixture("a::b", [made["shard"], made["table"]], [1.0, 2.0])
    made["part of a mixture"] = made["mixture"].where(lambda pair: pair.key.endswith(("1", "2", "5")))
    return made


def test_parts_give_their_keys_in_bulk(sources: dict[str, Source], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("limner.data.sources.tables.PART", 5)
    expected = {name: [bytes_of(pair.key) for pair in source] for name, source in sources.items()}
    monkeypatch.setattr("limner.data.sources.index.Index.pair", lambda *_: pytest.fail("a pair is made"))
    for name, source in sources.items():
        assert [key for part in source.parts for key in part.keys()] == expected[name], name  # noqa: SIM118


@pytest.mark.parametrize("share", [0.0, 0.05, 0.4, 1.0])
def test_a_split_is_the_one_that_a_look_at_each_pair_gives(sources: dict[str, Source], share: float):
    for name, source in sources.items():
        kept, back = source.split(share)
        expected = kept_back(source, share)
        assert [pair.key for pair in back] == expected, name
        assert [pair.key for pair in kept] == [pair.key for pair in source if pair.key not in set(expected)], name


def test_what_is_kept_back_stays_so_from_version_to_version():
    source = of_keys(*ODD, *(f"{number:06d}" for number in range(3000)))
    kept, back = source.split(0.05)
    assert [pair.key for pair in back][:6] == ["000021", "000027", "000030", "000035", "000037", "000074"]
    assert kept.fingerprint == "9540e5b33a629682cafef48ba2bb720d0ff359436c61cd8117f9ca21f3e2329a"
    assert back.fingerprint == "60343a3f3cfee26f6473826c0862e3133fa93f6232dc8e0448aaf984f9392df7"
    _, again = source.split(0.3)[0].split(0.5)
    assert len(again) == 592
    assert again.fingerprint == "43944773d42a7b4d19fbbee30a4c50775ccfb9e948a4f40862c57cd7fa3d4e7b"
    sevens = source.where(lambda pair: pair.key.endswith("7"))
    assert sevens.fingerprint == "8f8017c2117a73137a817894297d624a00553df1aa825d2773e30e6bd099d7da"


def test_a_chosen_pair_takes_four_bytes():
    kept, back = of_keys(*map(str, range(2000))).split(0.3)
    indices = [part.indices for part in (*kept.parts, *back.parts) if isinstance(part, Chosen)]
    assert sum(index.nbytes for index in indices) == 4 * 2000

    class Large(Listed):
        def __len__(self) -> int:
            return 2**32

    assert module.chosen(Large("large", ()), np.zeros(10, dtype=bool)).indices.dtype == np.int64


# --- what can be used ------------------------------------------------------------------------------------------------


def test_what_cannot_be_used_is_sifted_out_and_counted():
    skipped, noted = module.Counter[str](), module.Counter[str]()

    def found():
        noted["odd"] += 1
        yield Pair("a", Path("x"), 0, 10, ("c",))
        yield Pair("b", Path("x"), 0, 10)
        yield Pair("c", Path("x"), 0, 0, ("c",))
        yield Pair("d", Path("x"), 0, module.MAX_IMAGE_BYTES + 1, ("c",))
        skipped["broken"] += 1

    source = sifted("x", found(), skipped, noted, needs_caption=True)
    assert [pair.key for pair in source] == ["a"] and source.noted == {"odd": 1}
    assert source.skipped == {"no caption": 1, module.EMPTY: 1, module.TOO_LARGE: 1, "broken": 1}
    skipped.clear()
    assert [pair.key for pair in sifted("x", found(), skipped, noted, needs_caption=False)] == ["a", "b"]


# --- classes ---------------------------------------------------------------------------------------------------------


def test_several_labels_count_in_the_fingerprint_where_there_are_some():
    pair = Pair("a", Path("x"), 0, 10, ("c",), label=3)
    prints = [listed("x", [replace(pair, labels=labels)]).fingerprint for labels in (None, (), (1,), (2,))]
    assert len(set(prints)) == 4
    assert (
        prints[0] == "2285380155f6fb45ac6f75caf6032a77fc783aa10ab9367bdf4b1f4963f25e4b"
    )  # as it was before there were several


@given(st.lists(st.lists(st.sampled_from("abcde"), max_size=6).map(tuple), max_size=4))
def test_classes_of_several_sources_are_merged_by_names_that_tell_them_apart(classes: list[tuple[str, ...]]):
    together, places = merged(classes)
    assert [tuple(together[place] for place in one) for one in places] == classes  # each keeps its name
    assert all(len(set(one)) == len(one) for one in places)  # two of one source stay two
    assert {place for one in places for place in one} == set(range(len(together)))
    named = {one for one in classes if one}
    if len(named) == 1:
        assert together == named.pop()
    elif all(len(set(one)) == len(one) for one in named):
        assert together == tuple(sorted(set().union(*named)))


def test_classes_of_one_name_stay_apart():
    birds, machines = ("crane", "kite", "crane"), ("crane", "kite")
    assert merged([birds, (), birds]) == (birds, [(0, 1, 2), (), (0, 1, 2)])
    together, places = merged([birds, machines])
    assert together == ("crane", "crane", "crane", "kite") and places == [(0, 3, 1), (2, 3)]


def test_a_mixture_of_classes_with_names_and_of_several_labels_is_an_error():
    named = replace(of_keys("a"), classes=("cat",))
    several = listed("x", [Pair("b", Path("x"), 0, 1, ("c",), labels=())])
    with pytest.raises(DataError, match="must be texts in all"):
        mixture("a::b", [named, several], [])
    assert [pair.labels for pair in mixture("a::b", [of_keys("a"), several], [])] == [None, ()]


@pytest.mark.parametrize("place", ["", "set"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_rows_of_a_csv_beside_the_data(tmp_path: Path, place: str, encoding: str):
    (tmp_path / "set").mkdir()
    text = (
        '\r\nFolder, Name,,\r\nn01,"Washington, D.C.",\r\n,,\r\n n02 , caf\u00e9 , coffee house \n  \n3,"a ""b"""\n\n'
    )
    (tmp_path / place / "classnames.csv").write_bytes(text.encode(encoding))
    rows = [("n01", "Washington, D.C."), ("n02", "caf\u00e9", "coffee house"), ("3", 'a "b"')]
    assert csv_beside(tmp_path / "set", "classnames.csv") == rows
    assert csv_beside(tmp_path / "set" / "0.tar", "classnames.csv") == rows
    assert csv_beside(tmp_path, "others.csv") == []


@pytest.mark.parametrize("header", ["", "id,name\n", "ID,Name,another\n"])
@pytest.mark.parametrize(
    "row", ["a", "a,", ",cat", "a;cat", "0,dog", '1,"dog', '1,"dog"s', "1,cat,,dog", '"', "1,a" + "x" * 200_000]
)
def test_a_row_that_names_no_class_is_an_error_with_its_line(tmp_path: Path, header: str, row: str):
    (tmp_path / "classnames.csv").write_text(f"{header}0,cat\n{row}\n2,table\n")
    with pytest.raises(DataError, match=f"Line {3 if header else 2} of the classnames.csv of .* must be id,name"):
        csv_beside(tmp_path, "classnames.csv")


def test_only_a_first_row_is_a_header(tmp_path: Path):
    (tmp_path / "classnames.csv").write_text("0,cat\nid,name\n")
    assert csv_beside(tmp_path, "classnames.csv") == [("0", "cat"), ("id", "name")]


def test_a_csv_beside_several_sources_is_the_same(tmp_path: Path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "classnames.csv").write_text("0,cat\n")
    both = f"{tmp_path}/a::{tmp_path}/b"
    assert csv_beside(both, "classnames.csv") == [("0", "cat")]
    (tmp_path / "b" / "classnames.csv").write_text("0,dog\n")
    with pytest.raises(DataError, match="must be the same beside each source"):
        csv_beside(both, "classnames.csv")
