import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from limner.data.sources.read import read_pairs
from limner.demo import pairs as module
from limner.demo.pairs import default_folder, write_demo
from limner.errors import DataError

SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72"><rect width="36" height="72" fill="#{colour}"/></svg>'
)


def test_digits(digits_run: Path):
    folder, said = digits_run.parents[1] / default_folder("digits"), list[str]()
    write_demo(folder, source="digits", say=said.append)
    assert said == [f"{folder} is whole: nothing to do."]
    train, test = read_pairs(folder / "train"), read_pairs(folder / "test")
    assert (len(train), len(test)) == (1438, 359)
    names = (folder / "classnames.txt").read_text().splitlines()
    assert all(pair.captions[0] == names[pair.label or 0] for pair in test)


def archive(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def emoji(code: str, name: str, tags: str, skintone: str = "") -> dict[str, str]:
    return {
        "hexcode": code,
        "annotation": name,
        "tags": tags,
        "openmoji_tags": "",
        "skintone": skintone,
        "subgroups": "face-smiling",
        "group": "x",
    }


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three small archives in the layout of the real packages, and an `npm` that fetches them."""
    store = tmp_path / "registry"
    store.mkdir()
    buffer = io.BytesIO()
    Image.new("RGBA", (64, 64), (0, 200, 0, 128)).save(buffer, "PNG")
    entries = [emoji(f"1F60{i}", f"Face {i}", "happy, smile, x") for i in range(8)]
    entries += [
        emoji("263A-FE0F", "smiling", ""),
        emoji("1F44B-1F3FB", "hand: light", "", "1"),
        emoji("1F3FB", "light skin tone", ""),
    ]
    entries += [emoji("E000", "only here", "extra")]
    svgs = {
        f"{kind}/svg/{e['hexcode']}.svg": SVG.format(colour=f"{i:02d}0000").encode()
        for i, e in enumerate(entries)
        for kind in ("color", "black")
    }
    archive(store / "openmoji-17.0.0.tgz", {"data/openmoji.json": json.dumps(entries).encode(), **svgs})
    codes = [f"1f60{i}" for i in range(8)] + ["263a-fe0f", "1f44b-1f3fb", "1f3fb"]
    for style in ("google", "twitter"):
        archive(
            store / f"emoji-datasource-{style}-16.0.0.tgz",
            {f"img/{style}/64/{c}.png": buffer.getvalue() for c in codes},
        )
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    # called as: npm pack NAME@VERSION --ignore-scripts --pack-destination FOLDER
    copy = f'cp "{store}/$(echo "$2" | tr @ -).tgz" "$5"'
    npm.write_text(f"#!/bin/sh\n{copy}\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{npm.parent}:/usr/bin:/bin")
    for name in ("OPENMOJI", "NOTO", "TWEMOJI"):
        package = getattr(module, name)
        monkeypatch.setattr(module, name, replace(package, sha512=module._sha512(store / package.archive)))
    monkeypatch.setattr(module, "HELD_OUT", 2)
    return store


def test_emoji(packages: Path, tmp_path: Path):
    folder, said = tmp_path / "demo", []
    write_demo(folder, source="emoji", say=said.append)
    train, test = read_pairs(folder / "train"), read_pairs(folder / "test")
    names = (folder / "classnames.txt").read_text().splitlines()
    assert names == [*(f"face {i}" for i in range(8)), "smiling"]  # no skin tones; FE0F does not matter
    assert [pair.label for pair in test] == list(range(9)) and [pair.captions for pair in test] == [
        (name,) for name in names
    ]
    held_out = {pair.captions[0] for pair in test if pair.held_out}
    assert len(held_out) == 2 and not any(set(pair.captions) & held_out for pair in train)
    assert {pair.captions[0] for pair in train} == {*names, "only here"} - held_out
    assert all(len(pair.captions) > 1 for pair in train)
    pixels = Image.open(io.BytesIO(test[0].read()))
    assert pixels.size == (64, 64) and pixels.mode == "RGB" and pixels.getpixel((5, 5)) == (127, 227, 127)
    origin = json.loads((folder / "train" / "manifest.json").read_text())["origin"]
    assert [package["licence"] for package in origin["packages"]] == ["CC BY-SA 4.0", "Apache-2.0", "CC BY 4.0"]
    for path in packages.iterdir():
        path.unlink()  # a second call needs no network
    write_demo(folder, source="emoji", say=said.append)
    assert "nothing to do" in said[-1]


def test_a_changed_archive_is_refused(packages: Path, tmp_path: Path):
    (packages / "openmoji-17.0.0.tgz").write_bytes(b"something else")
    with pytest.raises(DataError, match="have the sha512"):
        write_demo(tmp_path / "demo", source="emoji", say=lambda _: None)
    assert not list((tmp_path / "demo").rglob("*.tgz"))


def test_no_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="--source digits"):
        write_demo(tmp_path / "demo", source="emoji", say=lambda _: None)


def test_npm_fails(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (packages / "openmoji-17.0.0.tgz").unlink()
    with pytest.raises(DataError, match="Check the network"):
        write_demo(tmp_path / "demo", source="emoji", say=lambda _: None)
