import subprocess
import sys
from pathlib import Path

import pytest

from limner.errors import StorageError
from limner.files import replacing, sha256_of, write_bytes, write_json, write_text


def test_written_whole(tmp_path: Path):
    write_text(tmp_path / "deep" / "file.txt", "é")
    assert (tmp_path / "deep" / "file.txt").read_bytes() == "é".encode()
    assert sha256_of(tmp_path / "deep" / "file.txt").startswith(
        "4a99557e4033c3539de2eb65472017cad5f9557f7a0625a09f1c3f6e2ba69c4c"[:8]
    )
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["file.txt"]


def test_a_failure_leaves_what_was_there(tmp_path: Path):
    write_bytes(tmp_path / "file", b"before")
    with pytest.raises(RuntimeError), replacing(tmp_path / "file") as file:
        file.write(b"half")
        raise RuntimeError
    assert (tmp_path / "file").read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


FULL_DISK = """
import resource, sys
from pathlib import Path
from limner.errors import StorageError
from limner.files import write_bytes
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_bytes(Path(sys.argv[1]), b"x" * 5000)
except StorageError as error:
    print(error)
"""


def test_a_full_disk_leaves_what_was_there_and_says_so(tmp_path: Path):
    write_bytes(tmp_path / "file", b"before")
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "file")], capture_output=True, text=True, check=True
    )
    assert "must be written whole" in done.stdout and "make room" in done.stdout
    assert (tmp_path / "file").read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="written whole"):
        write_bytes(tmp_path / "file" / "below", b"x")


def test_names_of_files_that_are_no_utf_8_can_be_written(tmp_path: Path):
    write_json(tmp_path / "a.json", {"path": "caf\udce9"})
    assert "caf\ufffd" in (tmp_path / "a.json").read_text(encoding="utf-8")
