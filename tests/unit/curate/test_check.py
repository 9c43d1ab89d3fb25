import dataclasses
import io
import json
import os
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers.tars import pairs, tar
from helpers.vocabulary import openai
from limner.cli.command import main
from limner.curate import signals
from limner.curate.check import check
from limner.curate.findings import Finding, Findings, First
from limner.curate.signals import different, look_of
from limner.data import reading
from limner.data.pairs import Pair
from limner.data.sources.folders import LEADS_OUT
from limner.errors import ConfigError, DataError, StorageError
from limner.files import sha256_of


@pytest.fixture(autouse=True)
def one_tokenizer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("limner.curate.check.Tokenizer.openai", openai)


def of(findings: Findings) -> dict[str, Finding]:
    assert len({finding.what for finding in findings.findings}) == len(findings.findings)
    return {finding.what: finding for finding in findings.findings}


def photo(seed: int, size: int = 200, format: str = "PNG") -> bytes:
    """A smooth picture, as photos are: it survives another size."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC).save(buffer, format)
    return buffer.getvalue()


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as exited:
        main(args)
    return int(exited.value.code or 0)


# --- folders ---------------------------------------------------------------------------------------------------------


def test_nothing_is_found_where_all_is_well(folder_of_pairs: Path):
    found, source = check(str(folder_of_pairs), batch_size=32)
    assert found.findings == () and found.would_run
    assert (found.pairs, found.checked, found.captions) == (40, 40, 40) and found.fingerprint == source.fingerprint
    assert found.formats == {"PNG": 40} and found.bytes == sum(pair.size for pair in source)
    assert found.copies == found.alike == found.frequent == found.unreadable == ()
    assert found.shown == tuple(range(40))


def test_missing_and_empty_captions_are_told_apart(folder_of_pairs: Path):
    (folder_of_pairs / "03.txt").unlink()
    (folder_of_pairs / "07.txt").write_text(" \n")
    found, _ = check(str(folder_of_pairs), batch_size=32)
    finding = of(found)["left out: no caption"]
    assert (finding.severity, finding.count, finding.share) == ("warning", 2, 2 / 40)
    assert finding.examples == ("03.png", "07.png (empty .txt)")
    assert found.would_run and found.skipped_share == 2 / 40


def test_training_stops_where_too_many_pairs_cannot_be_used(folder_of_pairs: Path):
    for number in range(3):
        (folder_of_pairs / f"{number:02d}.txt").unlink()
    found, _ = check(str(folder_of_pairs), batch_size=32)
    error = of(found)["more unusable pairs than the 5 % that training goes on with"]
    assert error.severity == "error" and error.count == 3 and "--max-dropped 0.11" in error.advice
    assert not found.would_run and found.findings[0] == error


def test_links_out_of_the_folder_and_empty_files(folder_of_pairs: Path):
    (folder_of_pairs / "link.png").symlink_to("/etc/hosts")
    (folder_of_pairs / "05.png").write_bytes(b"")
    found = of(check(str(folder_of_pairs), batch_size=32)[0])
    assert found[f"left out: {LEADS_OUT}"].count == 1
    assert found["left out: empty picture file"].advice == "Fetch these files again."


def test_unreadable_pictures_by_reason(folder_of_pairs: Path, picture: Callable[..., bytes]):
    (folder_of_pairs / "00.png").write_bytes(b"<html>not found</html>")
    (folder_of_pairs / "01.png").write_bytes(picture(seed=1)[:900])
    (folder_of_pairs / "02.png").write_bytes(picture(400, 20))
    (folder_of_pairs / "03.png").write_bytes(b"<html>")
    found, _ = check(str(folder_of_pairs), batch_size=32)
    named = of(found)
    assert named["unreadable: not a picture"].count == 2
    assert named["unreadable: not a picture"].examples == ("00.png", "03.png")
    assert named["unreadable: damaged picture"].examples == ("01.png",)
    assert named["unreadable: longer than 16 to 1"].share == 1 / 40
    assert named["more unreadable pictures than the 5 % that training goes on with"].severity == "error"
    assert [one.key for one in found.unreadable] == ["00.png", "01.png", "02.png", "03.png"]
    assert found.unreadable_share == 0.1 and not {0, 1, 2, 3} & set(found.shown)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Opened at the end of the test, so that threads which stand still there go on and end."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines of tenths of a second."""
    for name in ("DEADLINE_SECONDS", "PATIENCE_SECONDS"):
        monkeypatch.setattr(reading, name, 0.3)
    monkeypatch.setattr(reading, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(reading, "CLOSE_SECONDS", 0.1)


def test_pictures_that_stand_still_are_left(
    folder_of_pairs: Path, monkeypatch: pytest.MonkeyPatch, quick: None, gate: threading.Event
):
    decode, slow_one = signals.decode, (folder_of_pairs / "09.png").read_bytes()

    def slow(content: bytes, *args: Any, begun: Callable[[], None], **more: Any) -> np.ndarray:
        begun()
        if content == slow_one:
            gate.wait(60)
        return decode(content, *args, **more)

    monkeypatch.setattr(signals, "decode", slow)
    found, _ = check(str(folder_of_pairs), batch_size=32, workers=2)
    assert [(one.key, one.reason) for one in found.unreadable] == [("09.png", reading.LATE)]


def test_a_read_that_never_returns_would_stop_training(
    folder_of_pairs: Path, monkeypatch: pytest.MonkeyPatch, quick: None, gate: threading.Event
):
    read = Pair.read

    def slow(pair: Pair) -> bytes:
        if pair.key == "09.png":
            gate.wait(60)
        return read(pair)

    monkeypatch.setattr(Pair, "read", slow)
    found, _ = check(str(folder_of_pairs), batch_size=32, workers=2)
    assert of(found)["unreadable: over 60 s to read"].severity == "error" and not found.would_run


def test_copies_and_pictures_that_look_alike(folder_of_pairs: Path):
    for number in (10, 20, 30):
        (folder_of_pairs / f"{number}.png").write_bytes(photo(1))
    (folder_of_pairs / "11.png").write_bytes(photo(1, size=100))
    (folder_of_pairs / "21.png").write_bytes(photo(2))
    (folder_of_pairs / "31.png").write_bytes(photo(2, format="WEBP"))
    found, source = check(str(folder_of_pairs), batch_size=32)
    assert [(group.count, group.keys) for group in found.copies] == [(3, ("10.png", "20.png", "30.png"))]
    assert {group.keys for group in found.alike} == {("10.png", "11.png"), ("21.png", "31.png")}
    assert tuple(source[index].key for index in found.copies[0].indices) == found.copies[0].keys
    assert of(found)["copies of an earlier picture"].count == 2
    assert of(found)["copies of an earlier picture"].examples == ("10.png = 20.png = ...",)
    assert of(found)["pictures that look like an earlier one"].severity == "note"


def test_flat_pictures_are_not_said_to_look_alike(folder_of_pairs: Path):
    for number in range(10):
        Image.new("RGB", (40 + number, 40), (number * 20, 0, 0)).save(folder_of_pairs / f"{number:02d}.png")
    assert check(str(folder_of_pairs), batch_size=32)[0].alike == ()
    assert look_of(np.full((64, 64, 3), 200, dtype=np.uint8)) == 0


def test_the_same_caption_on_several_pictures(folder_of_pairs: Path):
    for number in range(20):
        (folder_of_pairs / f"{number:02d}.txt").write_text("a dog")
    (folder_of_pairs / "39.txt").write_text("picture number 38")
    found, _ = check(str(folder_of_pairs), batch_size=32)
    assert [(group.count, group.caption) for group in found.frequent] == [(20, "a dog"), (2, "picture number 38")]
    finding = of(found)["captions that an earlier picture has too"]
    assert (finding.severity, finding.count, finding.examples[0]) == ("warning", 20, "20 x a dog")
    assert f"{31 * (20 * 19 + 2) / (40 * 39):.2g} other pairs" in finding.advice


def test_a_pictures_own_caption_twice_is_no_copy(folder_of_pairs: Path):
    rows = [{"path": f"{number:02d}.png", "caption": [f"number {number}"] * 2} for number in range(40)]
    rows[0]["caption"] = ["number 0", "another", "Number  0"]
    (folder_of_pairs / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found, source = check(str(folder_of_pairs / "list.jsonl"), batch_size=32)
    assert different(source[0]) == ["number 0", "another"]
    assert found.captions == 41 and found.frequent == ()


def test_captions_that_differ_in_capitals_and_blanks_are_the_same(folder_of_pairs: Path):
    for number, caption in enumerate(["A dog", "a  dog", "a DOG &amp; cat", "a dog & cat"]):
        (folder_of_pairs / f"{number:02d}.txt").write_text(caption)
    found, _ = check(str(folder_of_pairs), batch_size=32)
    assert [(group.count, group.caption) for group in found.frequent] == [(2, "A dog"), (2, "a DOG &amp; cat")]


def test_captions_that_are_not_utf_8(folder_of_pairs: Path):
    (folder_of_pairs / "04.txt").write_bytes(b"K\xe4se")
    finding = of(check(str(folder_of_pairs), batch_size=32)[0])[
        "caption that is not UTF-8 (a sign stands for each bad byte)"
    ]
    assert finding.count == 1 and finding.examples == ("04.png",) and finding.advice == "Save captions as UTF-8."


def test_languages_and_long_captions(folder_of_pairs: Path):
    for number in range(40):
        german, english = "ein schwarzer Hund läuft über die Wiese", "a black dog runs over the meadow in the sun"
        (folder_of_pairs / f"{number:02d}.txt").write_text(f"{german if number < 8 else english} {number}")
    (folder_of_pairs / "39.txt").write_text("dog " * 100)
    found, _ = check(str(folder_of_pairs), batch_size=32)
    assert found.languages is not None and found.languages["de"] == 8 and found.languages["en"] >= 31
    finding = of(found)["captions in another language than most (en)"]
    assert finding.severity == "note" and finding.count >= 8 and finding.examples[0].startswith("de: ein schwarzer")
    assert of(found)["captions over 77 tokens, the start and end token included"].count == 1


def test_without_the_extra_languages_are_left_out_and_said_to_be(
    folder_of_pairs: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "py3langid", None)
    found, _ = check(str(folder_of_pairs), batch_size=32)
    assert found.languages is None and found.would_run
    assert "pip install 'limner[data]'" in of(found)["captions whose language was not looked at"].advice


@pytest.mark.parametrize(("batch_size", "severity"), [(41, "error"), (40, "warning"), (38, None)])
def test_fewer_pairs_than_a_batch(folder_of_pairs: Path, batch_size: int, severity: str | None):
    found, _ = check(str(folder_of_pairs), batch_size=batch_size)
    assert [finding.severity for finding in found.findings] == ([severity] if severity else [])


def test_a_batch_that_the_ranks_cannot_share(folder_of_pairs: Path):
    found = of(check(str(folder_of_pairs), batch_size=32, ranks=3)[0])
    assert "30" in found["a batch of 32 that 3 ranks cannot share alike"].advice


def test_no_usable_pair(folder_of_pairs: Path):
    for text in folder_of_pairs.glob("*.txt"):
        text.unlink()
    found, _ = check(str(folder_of_pairs))
    assert not found.would_run and found.pairs == found.checked == 0
    assert of(found)["left out: no caption"].count == 40
    assert "with captions, got none" in found.findings[0].what
    with pytest.raises(DataError, match="must exist"):
        check(str(folder_of_pairs / "none"))


def test_a_sample(folder_of_pairs: Path):
    found, _ = check(str(folder_of_pairs), batch_size=32, sample=12)
    again, _ = check(str(folder_of_pairs), batch_size=32, sample=12, workers=3)
    assert found.checked == 12 and found.pairs == 40 and len(set(found.shown)) == 12 and found == again
    assert max(found.shown) > 24 and min(found.shown) < 16


def test_numbers_that_cannot_be(folder_of_pairs: Path):
    for wrong in ({"ranks": 0}, {"workers": 0}, {"batch_size": 1}, {"sample": 0}):
        with pytest.raises(ConfigError, match="must be at least"):
            check(str(folder_of_pairs), **wrong)


def test_sizes_are_those_of_the_upright_picture(folder_of_pairs: Path, picture: Callable[..., bytes]):
    exif = Image.Exif()
    exif[0x0112] = 6
    for number in range(40):
        Image.open(io.BytesIO(picture(40, 30, seed=number))).save(folder_of_pairs / f"{number:02d}.jpg", exif=exif)
        (folder_of_pairs / f"{number:02d}.png").unlink()
    charts = {chart.name: chart for chart in check(str(folder_of_pairs), batch_size=32)[0].histograms}
    assert charts["width, pixels"].median == 30 and charts["height, pixels"].median == 40
    assert charts["width by height"].counts == (40,)
    assert all(sum(chart.counts) == 40 and len(chart.edges) == len(chart.counts) + 1 for chart in charts.values())


# --- shards ----------------------------------------------------------------------------------------------------------


def test_faults_of_members(tmp_path: Path, picture: Callable[..., bytes]):
    odd = {
        "a.b.png": picture(seed=90),
        "a.b.txt": b"dotted",
        "c.txt": b"no picture",
        "d.png": picture(seed=91),
        "e.png": picture(seed=92),
        "e.txt": b" ",
        "f.png": picture(seed=93),
        "f.txt": b"f",
        "f.json": b"{",
    }
    path = tar(tmp_path / "0.tar", {**pairs(picture, 0, 60), **odd})
    with tarfile.open(path, "a") as writer:
        for name, kind in (("l.png", tarfile.SYMTYPE), ("p.png", tarfile.FIFOTYPE)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "/etc/hosts"
            writer.addfile(link)
    found, _ = check(str(path), batch_size=32, workers=1)
    named = of(found)
    counted = {what: (finding.count, finding.examples) for what, finding in named.items() if "more" not in what}
    assert counted == {
        "left out: no caption": (2, ("d", "e")),
        "left out: no picture (dots in the name: the key ends at the first)": (1, ("0.tar: 1",)),
        "left out: no picture": (1, ("0.tar: 1",)),
        "shard member that is not a plain file": (2, ("0.tar: 2",)),
        "unreadable .json (the pair's .txt is used)": (1, ("0.tar: 1",)),
    }
    assert "first dot" in named["left out: no picture (dots in the name: the key ends at the first)"].advice


def test_shards_cut_short_and_shards_that_are_none(tmp_path: Path, picture: Callable[..., bytes]):
    for number in range(3):
        tar(tmp_path / f"{number}.tar", pairs(picture, 20 * number, 20))
    (tmp_path / "1.tar").write_bytes((tmp_path / "1.tar").read_bytes()[:40_000])
    (tmp_path / "3.tar").write_bytes(b"<html>" * 100)
    named = of(check(str(tmp_path), batch_size=32, workers=1)[0])
    assert named["shard that is no tar file"].examples == ("3.tar",)
    assert named["shard cut short"].count == 1 and named["shard cut short"].examples[0].startswith("1.tar: ")
    assert all(finding.severity == "warning" for finding in named.values())


def test_shards_that_are_not_what_their_manifest_says(tmp_path: Path, picture: Callable[..., bytes]):
    for number in range(3):
        tar(tmp_path / f"{number}.tar", pairs(picture, 20 * number, 20))
    manifest = {"shards": [{"name": f"{n}.tar", "sha256": sha256_of(tmp_path / f"{n}.tar")} for n in range(3)]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    what = "shards that are not what their manifest.json says"
    assert what not in of(check(str(tmp_path), batch_size=32)[0])
    content = bytearray((tmp_path / "1.tar").read_bytes())
    before = (tmp_path / "1.tar").stat()
    content[600] ^= 1
    (tmp_path / "1.tar").write_bytes(content)
    os.utime(tmp_path / "1.tar", ns=(before.st_atime_ns, before.st_mtime_ns))  # the index notices all the same
    (tmp_path / "2.tar").unlink()
    finding = of(check(str(tmp_path), batch_size=32)[0])[what]
    assert finding.examples == ("1.tar", "2.tar (missing)") and finding.severity == "warning"
    assert of(check(str(tmp_path), batch_size=32, sample=30)[0])[what].examples == finding.examples
    (tmp_path / "manifest.json").write_text("[]")
    assert what not in of(check(str(tmp_path), batch_size=32)[0])


def test_keys_that_come_in_several_shards(tmp_path: Path, picture: Callable[..., bytes]):
    tar(tmp_path / "a" / "0.tar", pairs(picture, 0, 20))
    tar(tmp_path / "a" / "1.tar", {**pairs(picture, 50, 20), "007.png": picture(seed=80), "007.txt": b"seven"})
    tar(tmp_path / "b" / "0.tar", pairs(picture, 100, 20) | pairs(picture, 0, 1))
    found = of(check(str(tmp_path / "a"), batch_size=32)[0])
    finding = found["keys that come in several shards"]
    assert (finding.severity, finding.count, finding.examples) == ("note", 1, ("0/007",))
    mixed = of(check(f"{tmp_path / 'a'}::{tmp_path / 'b'}", batch_size=32)[0])
    assert mixed["keys that come in several shards"].examples == ("0/0/007",)  # 000 is of two sources
    assert mixed["copies of an earlier picture"].examples == ("0/0/000 = 1/000",)


def test_fewer_shards_than_readers_is_no_matter(tmp_path: Path, picture: Callable[..., bytes]):
    for number in range(3):
        tar(tmp_path / f"{number}.tar", pairs(picture, 20 * number, 20))
    found, _ = check(str(tmp_path), batch_size=32, ranks=2, workers=2)
    finding = of(found)["fewer shards than the 4 readers of all ranks"]
    assert finding.severity == "note" and finding.count == 3 and "No matter for limner" in finding.advice
    assert not check(str(tmp_path), batch_size=32, ranks=1, workers=3)[0].findings


# --- the command line ------------------------------------------------------------------------------------------------


def test_data_check(
    folder_of_pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert run("data", "check", str(folder_of_pairs), "--batch-size", "32", "--json") == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert told["would_run"] and told["pairs"] == 40 and told["findings"] == []
    assert (tmp_path / "pairs-check.html").is_file() and "Wrote pairs-check.html." in captured.err
    (folder_of_pairs / "00.png").write_bytes(b"x")
    assert run("data", "check", str(folder_of_pairs), "--out", str(tmp_path / "other.html")) == 1
    captured = capsys.readouterr()
    lines = [line.split()[0] for line in captured.out.splitlines() if line.startswith(("error", "warning"))]
    assert lines == ["error", "warning"] and "not a picture" in captured.out
    assert "must be fit for training. Got 1 error." in captured.err and (tmp_path / "other.html").is_file()
    assert run("data", "check", str(folder_of_pairs), "--json") == 1
    assert json.loads(capsys.readouterr().out)["findings"][0]["severity"] == "error"
    assert run("data", "check", str(tmp_path / "none")) == 2


def test_findings_are_plain_values(folder_of_pairs: Path):
    (folder_of_pairs / "00.png").write_bytes(b"x")
    (folder_of_pairs / "01.png").write_bytes((folder_of_pairs / "02.png").read_bytes())
    found, _ = check(str(folder_of_pairs), batch_size=32)
    assert json.loads(json.dumps(dataclasses.asdict(found)))["unreadable"][0][:2] == ["00.png", "not a picture"]


def test_the_first_pairs_are_shown_as_they_were_read(
    folder_of_pairs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    rows = "path,caption,label\n" + "".join(f'0{number}.png,"a ""big"" dog, {number}",hound\n' for number in range(5))
    (folder_of_pairs / "list.csv").write_text(rows)
    found, _ = check(str(folder_of_pairs / "list.csv"), batch_size=4)
    assert found.first[0] == First("00.png", ('a "big" dog, 0',), "hound") and len(found.first) == 3
    monkeypatch.chdir(folder_of_pairs.parent)
    with pytest.raises(SystemExit, match="0"):
        main(["data", "check", str(folder_of_pairs / "list.csv"), "--batch-size", "4"])
    assert 'a "big" dog, 2' in capsys.readouterr().out
    assert "a &#34;big&#34; dog, 2" in Path("list-csv-check.html").read_text()


def test_what_was_found_is_printed_where_no_page_can_be_written(
    folder_of_pairs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def refused(*_: object) -> None:
        raise StorageError("The file x", must="be written whole", got="Read-only file system", then="Choose another.")

    monkeypatch.setattr("limner.report.check.write_sheet", refused)
    with pytest.raises(SystemExit, match="0"):
        main(["data", "check", str(folder_of_pairs), "--batch-size", "4"])
    told = capsys.readouterr()
    assert "picture number 2" in told.out and "There is no page: The file x must be written whole" in told.err
    with pytest.raises(SystemExit, match="1"):
        main(["data", "check", str(folder_of_pairs), "--batch-size", "4", "--out", "there.html"])
