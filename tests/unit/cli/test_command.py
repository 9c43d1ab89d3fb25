import subprocess
import sys
from pathlib import Path

import pytest

from limner.cli.command import todays


@pytest.mark.parametrize(
    ("name", "before", "now"),
    [
        ("data shard", "A B", "data shard A --out B"),
        ("data shard", "A B --per-shard 10", "data shard A --out B --per-shard 10"),
        ("data shard", "--per-shard 10 A B", "data shard --per-shard 10 A --out B"),
        ("data shard", "--per-shard=10 A B", "data shard --per-shard=10 A --out B"),
        ("convert", "--onnx A B --int8", "convert --onnx A --out B --int8"),
        ("convert", "A --activation gelu B", "convert A --activation gelu --out B"),
        ("convert", "--allow-pickle A B", "convert --allow-pickle A --out B"),
        ("tokenizer train", "--data A --out B", "tokenizer train A --out B"),
        ("tokenizer train", "--out B --data=A", "tokenizer train A --out B"),
        ("train", "--resume A --other-data", "resume A --other-data"),
        ("train", "--resume=A --max-dropped 0.1", "resume A --max-dropped 0.1"),
        ("train", "--resume", "resume"),
    ],
)
def test_spellings_of_before(name: str, before: str, now: str, capsys: pytest.CaptureFixture[str]):
    new, args = todays(name, before.split())
    assert " ".join([new, *args]) == now
    assert capsys.readouterr().err == f"The new spelling is: limner {now}\n"


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("data shard", "A --out B"),
        ("data shard", "A --out=B"),
        ("data shard", "A --per-shard 10"),
        ("data shard", "A B C"),
        ("convert", "A --onnx --out B"),
        ("convert", "--help"),
        ("tokenizer train", "A --out B"),
        ("train", "small --data A"),
        ("train", ""),
        ("resume", "A"),
        ("eval", "A --data B"),
    ],
)
def test_spellings_of_today_are_left_alone(name: str, args: str, capsys: pytest.CaptureFixture[str]):
    assert todays(name, args.split()) == (name, args.split())
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("closed", [">&-", "2>&-", "2>/dev/full", ">&- 2>&-"])
def test_a_command_ends_well_where_nobody_takes_its_words(folder_of_pairs: Path, closed: str):
    done = subprocess.run(
        f'"{sys.executable}" -m limner data stats "{folder_of_pairs}" {closed}',
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and not done.stderr
    assert (">&-" in closed.replace("2>&-", "")) or "pairs" in done.stdout
