"""A run on several ranks is the run on one: gradients, whole runs; and a rank that is lost is named."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers.ranks import CASES, run
from helpers.training import ALONE, difference
from limner.demo.pairs import write_demo
from limner.errors import ConfigError
from limner.run import RunDirectory
from limner.training.checkpoint import is_readable
from limner.training.watch import SILENCE_SECONDS, find_lost
from limner.training.world import share_of_rank

TESTS = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def run_ranks(number: int, folder: Path, *command: str) -> None:
    """`command` on every rank, as torchrun starts it."""
    shared = os.environ | {"WORLD_SIZE": str(number), "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    processes = []
    for rank in range(number):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
        with (folder / f"rank-{rank}.log").open("w") as log:
            processes.append(subprocess.Popen([sys.executable, *command], env=shared | own, stderr=log))
    try:
        codes = [process.wait(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    logs = [(folder / f"rank-{rank}.log").read_text() for rank in range(number)]
    assert codes == [0] * number, "\n".join(logs)


@pytest.mark.parametrize("number", [2, 4])
def test_every_gradient_is_that_of_one_process(number: int, tmp_path: Path, request: pytest.FixtureRequest):
    """With DDP and FSDP, in micro-batches, recomputed, with duplicates, and with pairs that could not be read."""
    run_ranks(number, tmp_path, "-m", "helpers.ranks", str(tmp_path))
    for name, case in CASES.items():
        alone, together = run(case, ALONE), load_file(tmp_path / f"{name}.safetensors")
        # measured (benchmarks/results/ranks.json): at most 3e-15 and 2e-6, and 3e-3 where the text encoder is bf16
        tolerance = 1e-12 if case.dtype == torch.float64 else 3e-2 if case.half else 1e-5
        assert together["accuracy"] == alone["accuracy"] and together["found"] == 0, name
        kinds = ("loss", "gradient", "gradient log_logit_scale", "norm", "buffer")
        sides = [
            {kind: {n: t for n, t in side.items() if n.startswith(kind)} for kind in kinds}
            for side in (alone, together)
        ]
        apart = {kind: difference(sides[0][kind], sides[1][kind]) for kind in kinds}
        assert max(apart.values()) < tolerance, (name, apart)
        table = request.config.getoption("--ranks-table")
        if table:
            rows = json.loads(Path(table).read_text()) if Path(table).exists() else {}
            rows.setdefault(f"{number} ranks", {})[name] = apart
            Path(table).write_text(json.dumps(rows, indent=2) + "\n")


# --- whole runs ------------------------------------------------------------------------------------------------------


def torchrun(*args: str, ranks: int = 2, restarts: int = 0, verb: str = "train") -> list[str]:
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)),
        *("--max-restarts", str(restarts), "--master-port", str(free_port()), "-m", "limner", verb, *args),
    ]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A short run, in float32."""
    folder = tmp_path_factory.mktemp("digits")
    write_demo(folder, source="digits", say=lambda _: None)
    data = ["--data", str(folder / "train"), "--test", str(folder / "test")]
    return ["digits", *data, "--train.precision", "fp32"]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_run_on_two_ranks_ends_with_the_weights_of_one(digits: list[str], tmp_path: Path, parallel: str):
    # AdamW's first updates are signs: those of gradients near zero turn with rounding errors unless eps is large; and
    # convolutions sum in another order on two threads than on the one that torchrun gives a rank
    settings = [*digits, "--train.epochs", "0.5", "--train.micro-batch", "64", "--optim.ema-decay", "0.9"]
    settings += ["--optim.eps", "0.01"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    for out, command in (
        ("one", [sys.executable, "-m", "limner", "train", *settings]),
        ("two", torchrun(*settings, "--train.parallel", parallel)),
    ):
        command += ["--out", str(tmp_path / out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
    for folder in ("model", "model-ema"):
        one, two = (load_file(tmp_path / out / folder / "model.safetensors") for out in ("one", "two"))
        # measured 2e-7; it grows with the steps, for a ReLU at zero opens with a rounding error (twelve: 7e-5)
        assert difference(one, two) < 1e-5
    lines = [RunDirectory(tmp_path / out).read_metrics()[-1] for out in ("one", "two")]
    assert lines[0]["loss"] == pytest.approx(lines[1]["loss"], rel=1e-4)
    (checkpoint,) = (tmp_path / "two" / "checkpoints").iterdir()
    assert checkpoint.is_dir() == (parallel == "fsdp")


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_ranks_share_the_pictures_of_an_evaluation(digits: list[str], tmp_path: Path, parallel: str):
    """On the way of a training on two ranks, and alone on two ranks: the rows of one process."""
    settings = [*digits, "--train.epochs", "0.25", "--train.micro-batch", "64", "--evaluate-every", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    run = RunDirectory(tmp_path / "run")
    command = torchrun(*settings, "--train.parallel", parallel, "--out", str(run.path))
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("zero_shot.top1") == len({row["step"] for row in run.read_measured()}) > 1
    last = [row for row in run.read_measured() if row["step"] == run.read_metrics()[-1]["step"]]
    evaluated = [str(run.model), "--data", digits[digits.index("--test") + 1], "--json"]
    rows = []
    for command in ([sys.executable, "-m", "limner", "eval", *evaluated], torchrun(*evaluated, verb="eval")):
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        rows.append([{k: v for k, v in row.items() if k != "seconds"} for row in json.loads(done.stdout)])
    assert rows[0] == rows[1] and len(rows[0]) >= 4
    named = {row["metric"]: row["value"] for row in rows[0]}
    assert {row["metric"]: row["value"] for row in last} == pytest.approx(named, abs=1e-6)


def test_a_sharded_checkpoint_continues_on_another_number_of_ranks(digits: list[str], tmp_path: Path):
    settings = [*digits, "--train.epochs", "1", "--train.micro-batch", "32", "--train.parallel", "fsdp"]
    settings += ["--train.checkpoint-minutes", "1e-6"]
    run = RunDirectory(tmp_path / "run")
    whole = subprocess.run(torchrun(*settings, "--out", str(run.path)), capture_output=True, text=True, check=False)
    assert whole.returncode == 0, whole.stderr
    final = load_file(run.model / "model.safetensors")
    newest = max(run.checkpoints.iterdir())
    assert sorted(p.name for p in newest.iterdir()) == [
        "shard-00001-model-00001-of-00001.safetensors",
        "shard-00002-model-00001-of-00001.safetensors",
        "state.json",
    ]
    shutil.rmtree(run.model)
    next(newest.glob("*.safetensors")).unlink()
    assert not is_readable(newest)  # so the run goes on from the one before
    resumed = subprocess.run(
        [sys.executable, "-m", "limner", "train", "--resume", str(run.path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert resumed.returncode == 0 and "is damaged" in resumed.stderr and "from step 11" in resumed.stderr, (
        resumed.stderr
    )
    assert difference(final, load_file(run.model / "model.safetensors")) < 1e-5


def wait_for_a_step(run: RunDirectory, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not list(run.checkpoints.glob("step-*")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    time.sleep(3)  # a rank notes once a second where it is


def ranks_of(process: subprocess.Popen[str]) -> list[int]:
    """The processes that torchrun started, rank 0 first."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return sorted(map(int, children), key=lambda pid: b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes())


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the ranks' processes in /proc")
def test_a_stopped_rank_is_named_and_the_job_starts_again_from_the_last_checkpoint(digits: list[str], tmp_path: Path):
    run = RunDirectory(tmp_path / "run")
    settings = [*digits, "--train.epochs", "40", "--train.checkpoint-minutes", "0.01", "--out", str(run.path)]
    with subprocess.Popen(torchrun(*settings, restarts=1), stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for_a_step(run, process)
            stopped = time.monotonic()
            os.kill(ranks_of(process)[1], signal.SIGSTOP)
            assert process.stderr is not None
            for line in process.stderr:
                if line.startswith("limner: "):
                    break
            assert time.monotonic() - stopped < 60
            assert line.startswith("limner: Rank 1 of 2 must be alive. Got no sign for") and "after step " in line
            rest = list(process.stderr)
            again = next((line for line in rest if "steps from step" in line), None)
            assert again is not None, "".join(rest)
            assert int(again.split("from step ")[1].split(".")[0]) > 0
        finally:
            process.terminate()  # torchrun ends its ranks
            process.wait(timeout=60)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the ranks' processes in /proc")
def test_a_killed_rank_is_named_and_ends_the_job(digits: list[str], tmp_path: Path):
    run = RunDirectory(tmp_path / "run")
    settings = [*digits, "--train.epochs", "400", "--train.checkpoint-minutes", "0.01", "--out", str(run.path)]
    with subprocess.Popen(torchrun(*settings), stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for_a_step(run, process)
            os.kill(ranks_of(process)[1], signal.SIGKILL)
            _, error = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 1
    assert "limner: Rank 1 of 2 must be alive. Got no sign for" in error and "after step " in error


@pytest.mark.slow
def test_a_stopped_job_saves_and_continues_on_one_rank(digits: list[str], tmp_path: Path):
    run = RunDirectory(tmp_path / "run")
    settings = [*digits, "--train.epochs", "40", "--train.checkpoint-minutes", "0.01", "--out", str(run.path)]
    with subprocess.Popen(torchrun(*settings), stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for_a_step(run, process)
            process.terminate()
            _, error = process.communicate(timeout=60)
        finally:
            process.kill()
    assert "Stopped after step" in error and "must be alive" not in error, error
    stopped = int(error.split("Stopped after step ")[1].split(";")[0])
    config = json.loads(run.config.read_text())
    config["train"]["epochs"] = (stopped + 1) * 128 / 1438  # the end is near
    run.config.write_text(json.dumps(config))
    command = [sys.executable, "-m", "limner", "train", "--resume", str(run.path)]
    resumed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert resumed.returncode == 0 and f"from step {stopped}." in resumed.stderr, resumed.stderr


# --- who is lost -----------------------------------------------------------------------------------------------------


def note(step: int, stage: str, still: float = 0.0, **more: Any) -> dict[str, Any]:
    return {"step": step, "stage": stage, "beat": 1, "still": still, **more}


@pytest.mark.parametrize(
    ("heard", "said"),
    [
        ({0: (note(5, "loss"), 0.0), 1: (note(5, "encoding"), 0.0)}, None),
        # slow, but nobody waits
        ({0: (note(5, "encoding", 80.0), 0.0), 1: (note(5, "encoding", 80.0), 0.0)}, None),
        # slow, but nobody has waited for long
        ({0: (note(5, "loss", 1.0), 0.0), 1: (note(5, "reading pairs", 80.0), 0.0)}, None),
        # slow, and waited for, but saving takes what it takes
        ({0: (note(5, "saving", 80.0), 0.0), 1: (note(6, "loss", 79.0), 0.0)}, None),
        (
            {0: (note(5, "loss", 50.0), 0.0), 1: (note(5, "reading pairs", 51.0), 0.0)},
            "Rank 1 of 2 must not stand still",
        ),
        ({0: (note(5, "loss"), 0.0), 1: (note(5, "loss"), SILENCE_SECONDS + 1)}, "Rank 1 of 2 must be alive"),
        ({0: (note(5, "loss"), 0.0), 1: ({}, SILENCE_SECONDS + 1)}, "after the start"),
        # what rank 0 found out, the others repeat
        ({0: (note(5, "loss", lost="Rank 3 is gone."), 0.0), 2: (note(5, "loss"), 0.0)}, "Rank 3 is gone."),
        ({0: (note(5, "loss"), 0.0), 1: (note(9, "finished"), SILENCE_SECONDS + 1)}, None),
        (
            {0: (note(5, "loss"), 0.0), 1: (note(5, "loss", error="OSError: gone"), 0.0)},
            "Got OSError: gone in step 5, loss",
        ),
    ],
)
def test_who_is_lost(heard: dict[int, tuple[dict[str, Any], float]], said: str | None):
    lost = find_lost(heard, size=2, patience=45.0)
    assert (lost is None) if said is None else (lost is not None and said in lost)


def test_a_batch_is_shared_evenly():
    three = ALONE.__class__(rank=0, size=3, device=ALONE.device, at=ALONE.at)
    assert share_of_rank(96, three) == 32
    with pytest.raises(ConfigError, match=r"multiple of the 3 ranks. Got 128. Take 126"):
        share_of_rank(128, three)


def test_one_process_decides_alone():
    assert ALONE.collect({"a": [1]}) == [{"a": [1]}] and ALONE.any(True, False) == (True, False)
