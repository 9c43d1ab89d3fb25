import base64
import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from helpers.vocabulary import openai
from limner.curate.check import check
from limner.curate.findings import Histogram
from limner.errors import StorageError
from limner.report.check import default_file, write_sheet
from limner.report.html import Chart, number, percent, thumbnail


@pytest.fixture(autouse=True)
def one_tokenizer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("limner.curate.check.Tokenizer.openai", openai)


def sheet(path: Path, out: Path) -> str:
    found, source = check(str(path), batch_size=32)
    assert write_sheet(out, found, source) == out
    return out.read_text()


def test_a_sheet_shows_what_was_found(folder_of_pairs: Path, tmp_path: Path):
    (folder_of_pairs / "00.png").write_bytes(b"<html>")
    (folder_of_pairs / "01.png").write_bytes((folder_of_pairs / "02.png").read_bytes())
    (folder_of_pairs / "03.txt").write_text("picture number 4")
    html = sheet(folder_of_pairs, tmp_path / "check.html")
    assert "Training would run." in html and str(folder_of_pairs) in html
    for expected in ("unreadable: not a picture", "copies of an earlier picture", "2.6 %", "picture number 17"):
        assert expected in html, expected
    for heading in ("Findings", "Sizes and lengths", "Pictures and their captions", "Copies", "Frequent captions"):
        assert f"<h2>{heading}</h2>" in html, heading
    assert "<h2>Unreadable pictures</h2>" in html and "<h2>Alike</h2>" not in html
    assert html.count("data:image/webp;base64,") == 39 + 2 + 2
    assert html.count("<svg") == 8


def test_captions_and_keys_are_text_not_code(folder_of_pairs: Path, tmp_path: Path):
    attack = '<script>alert("1")</script><img src=x onerror=alert(1)>'
    (folder_of_pairs / "07.txt").write_text(attack)
    (folder_of_pairs / "08.txt").write_text(attack)
    (folder_of_pairs / '"><b onclick=x>.png').write_bytes((folder_of_pairs / "09.png").read_bytes())
    (folder_of_pairs / '"><b onclick=x>.txt').write_text("' onload='x")
    (folder_of_pairs / "<i>.png").write_bytes(b"x")
    (folder_of_pairs / "<i>.txt").write_text("{{ 7 * 7 }}")
    html = sheet(folder_of_pairs, tmp_path / "check.html")
    assert "&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt;" in html and "&lt;i&gt;.png" in html
    tags = re.findall(r"<[a-z!/][^<>]*>", html, flags=re.I)
    assert not any(re.match(r"<(script|i>|b onclick|img src=x)", tag) for tag in tags)
    assert not any(re.search(r"\son\w+\s*=(?![^<]*&#)", re.sub(r'"[^"]*"', '""', tag)) for tag in tags)
    assert html.replace("&lt;script", "").count("<script") == 0


def test_a_sheet_needs_no_network(folder_of_pairs: Path, tmp_path: Path):
    html = sheet(folder_of_pairs, tmp_path / "check.html")
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:image/webp;base64,)", html)
    assert "http" not in html and "@import" not in html and "url(" not in html


def test_a_sheet_is_whole_or_not_there(folder_of_pairs: Path, tmp_path: Path):
    found, source = check(str(folder_of_pairs), batch_size=32)
    (tmp_path / "taken.html").mkdir()
    (tmp_path / "taken.html" / "file").touch()
    with pytest.raises(StorageError, match="written whole"):
        write_sheet(tmp_path / "taken.html", found, source)
    assert [path.name for path in tmp_path.iterdir() if path != folder_of_pairs] == ["taken.html"]


def test_pictures_that_went_away_leave_a_place(folder_of_pairs: Path, tmp_path: Path):
    found, source = check(str(folder_of_pairs), batch_size=32)
    (folder_of_pairs / "07.png").unlink()
    assert write_sheet(tmp_path / "check.html", found, source).read_text().count('class="gone"') == 1


def test_a_sheet_about_nothing(folder_of_pairs: Path, tmp_path: Path):
    for text in folder_of_pairs.glob("*.txt"):
        text.unlink()
    html = sheet(folder_of_pairs, tmp_path / "check.html")
    assert "Training would stop." in html and "<svg" not in html and "with captions, got none" in html


def test_thumbnails_of_strips_stay_small(tmp_path: Path, picture: Callable[..., bytes], folder_of_pairs: Path):
    (folder_of_pairs / "00.png").write_bytes(picture(1500, 100))
    _, source = check(str(folder_of_pairs), batch_size=32)
    data = thumbnail(source[0], 112).removeprefix("data:image/webp;base64,")
    assert max(Image.open(io.BytesIO(base64.b64decode(data))).size) <= 224


def test_the_file_is_named_after_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert default_file("data/train.tar") == Path("train-check.html")
    assert default_file("data/train/") == Path("train-check.html")
    assert default_file("s3://bucket/a/{00000..00099}.tar") == Path("00000-00099-check.html")
    assert default_file("one::two") == Path("one-check.html")
    assert default_file(".") == Path(f"{re.sub('[^a-zA-Z0-9_-]+', '-', tmp_path.name)}-check.html")


def test_numbers_for_people():
    assert [percent(share) for share in (0.0, 0.0001, 0.123, 0.9999, 1.0)] == [
        "0.0 %",
        "< 0.1 %",
        "12.3 %",
        "> 99.9 %",
        "100.0 %",
    ]
    assert [number(value) for value in (3.0, 1234.5, 0.6667)] == ["3", "1,234", "0.667"]


def test_the_bars_of_a_chart_fill_its_box():
    chart = Chart.of(Histogram("x", 1.0, 5.0, 99.0, tuple(map(float, range(1, 12))), (1, 2, 0, 4, 0, 0, 0, 0, 0, 8)))
    assert chart.bars[-1][2] == 40 and sum(width for _, width, _, _ in chart.bars) == pytest.approx(100)
    assert chart.bars[-1][3] == "10 to 99: 8"
