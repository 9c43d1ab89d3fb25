from collections.abc import Callable
from pathlib import Path

from limner.data.sources.read import read_images, read_pairs


def test_a_folder(folder_of_pairs: Path):
    source = read_pairs(folder_of_pairs)
    assert len(source) == 40 and not source.skipped
    assert source[3].key == "03.png" and source[3].captions == ("picture number 3",)
    assert source[3].read() == (folder_of_pairs / "03.png").read_bytes()


def test_a_folder_within_a_folder(folder_of_pairs: Path):
    source = read_pairs(folder_of_pairs.parent)
    assert source[0].key == "pairs/00.png"


def test_what_cannot_be_used_is_counted(folder_of_pairs: Path):
    (folder_of_pairs / "00.txt").unlink()
    (folder_of_pairs / "01.txt").write_text(" \n")
    (folder_of_pairs / "02.png").write_bytes(b"")
    source = read_pairs(folder_of_pairs)
    assert len(source) == 37
    assert source.skipped == {"no caption": 2, "empty picture file": 1}
    assert len(read_images(folder_of_pairs)) == 39


def test_links_out_of_the_folder_are_not_followed(folder_of_pairs: Path, picture: Callable[..., bytes]):
    outside = folder_of_pairs.parent / "secret.png"
    outside.write_bytes(picture())
    (folder_of_pairs / "link.png").symlink_to(outside)
    source = read_images(folder_of_pairs)
    assert len(source) == 40 and source.skipped == {"broken link, or one that leads out of the folder": 1}


def test_caption_links_out_of_the_folder_are_not_followed(folder_of_pairs: Path):
    (folder_of_pairs.parent / "secret.txt").write_text("secret")
    (folder_of_pairs / "00.txt").unlink()
    (folder_of_pairs / "00.txt").symlink_to(folder_of_pairs.parent / "secret.txt")
    (folder_of_pairs / "circle.png").symlink_to(folder_of_pairs / "circle.png")
    source = read_pairs(folder_of_pairs)
    assert len(source) == 39 and "secret" not in set(source.captions())
