"""Kill -9 at random moments of a training run: does what is resumed end with the same weights and the same pairs?

Trains a small model on 640 pairs in five shards (a few of them unreadable) for ten epochs, once without interruption.
Then, for each kill, trains it anew, kills the process at a random moment after the first step (-9, so that nothing can
be saved), resumes it with a random number of reading threads, and compares: the weights bit by bit, and which pairs
each epoch saw, counted by key from what reached the training step. Steps that were done after the last checkpoint are
done again: the later one counts, and must have had the same pairs.

    python benchmarks/kill_and_resume.py [--kills 20] > benchmarks/results/kill_and_resume.json
"""

import argparse
import hashlib
import io
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from limner.data.write import Sample, write_shards

PAIRS, BATCH, EPOCHS = 640, 40, 10
UNREADABLE = {77, 300, 301, 599}

CHILD = """
import torch
torch.set_num_threads(1)
import json, sys
from pathlib import Path
from limner.config import ImageConfig, OptimConfig, RunConfig, TrainConfig
from limner.data import loader
from limner.training.loop import train

folder, workers, seen = sys.argv[1], int(sys.argv[2]), open(sys.argv[3], "a")
batches = loader.Loader.batches

def told(self, first, last):
    for step, batch in enumerate(batches(self, first, last), start=first):
        seen.write(json.dumps([step, batch.keys]) + "\\n")
        seen.flush()
        yield batch

loader.Loader.batches = told
train(
    RunConfig(
        data=f"{folder}/shards", test=f"{folder}/shards", out=Path(sys.argv[4]), model="RN-nano", vocab_size=520,
        cache_mb=0, workers=workers, images=ImageConfig(resize=32, crop_min_area=0.6), optim=OptimConfig(lr=2e-3),
        train=TrainConfig(batch_size=40, epochs=10, precision="fp32", checkpoint_minutes=0.01),
    ),
    resume=Path(sys.argv[4], "config.json").exists(),
)
"""


def write_pairs(folder: Path) -> None:
    rng = np.random.default_rng(0)
    samples = []
    for index in range(PAIRS):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(buffer, "PNG")
        content = buffer.getvalue()
        samples.append(
            Sample(
                image=content[: len(content) // 2] if index in UNREADABLE else content,
                extension="png",
                width=48,
                height=40,
                captions=(f"picture number {index}", f"number {index} again"),
                record={},
            )
        )
    write_shards(samples, folder, origin={"made": "for this benchmark"}, per_shard=128)


def start(folder: Path, run: Path, workers: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", CHILD, str(folder), str(workers), str(run) + ".keys", str(run)]
    return subprocess.Popen(command, stderr=(run.parent / f"{run.name}.log").open("ab"))


def epochs_of(run: Path) -> tuple[list[Counter[str]], int, bool]:
    """How often each epoch saw each key, the steps that were done twice, and whether these had the same pairs."""
    steps: dict[int, list[str]] = {}
    again, same = 0, True
    for line in Path(str(run) + ".keys").read_text().split("\n")[:-1]:
        step, keys = json.loads(line)
        again += step in steps
        same &= steps.get(step, keys) == keys
        steps[step] = keys
    stream = [key for step in sorted(steps) for key in steps[step]]
    number = PAIRS - len(UNREADABLE)
    return [Counter(stream[first : first + number]) for first in range(0, len(stream), number)], again, same


def facts(run: Path) -> dict[str, Any]:
    epochs, again, same = epochs_of(run)
    number = PAIRS - len(UNREADABLE)
    metrics = (run / "metrics.jsonl").read_text().splitlines()
    return {
        "weights": hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()[:16],
        "epochs": len(epochs),
        "missed": sum(number - len(epoch) for epoch in epochs),
        "seen_twice": sum(count - 1 for epoch in epochs for count in epoch.values()),
        "steps_done_again": again,
        "with_the_same_pairs": same,
        "dropped": json.loads(metrics[-1])["dropped"],
    }


def wait_for_a_step(run: Path) -> None:
    while not (Path(str(run) + ".keys").exists() and Path(str(run) + ".keys").stat().st_size):
        time.sleep(0.01)


def one_kill(folder: Path, number: int, seconds: float, rng: random.Random) -> dict[str, Any]:
    run, after = folder / f"run {number}", rng.uniform(0, seconds)
    process = start(folder, run, workers=rng.randint(1, 4))
    wait_for_a_step(run)
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    killed = process.wait() == -signal.SIGKILL
    lines = Path(str(run) + ".keys").read_text().count("\n")
    workers = rng.randint(1, 4)
    if start(folder, run, workers).wait() != 0:
        raise SystemExit((folder / f"run {number}.log").read_text())
    return {"killed": killed, "after_seconds": after, "in_step": lines, "workers_after": workers, **facts(run)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    kills, rng = parser.parse_args().kills, random.Random(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_pairs(folder / "shards")
        process = start(folder, folder / "whole", workers=2)
        wait_for_a_step(folder / "whole")
        began = last = time.monotonic()
        steps = 1
        while process.poll() is None:  # the time from the first step to the last
            done = Path(str(folder / "whole") + ".keys").read_text().count("\n")
            steps, last = (done, time.monotonic()) if done > steps else (steps, last)
            time.sleep(0.02)
        assert process.wait() == 0, (folder / "whole.log").read_text()
        seconds = last - began
        whole = facts(folder / "whole")
        rows = []
        for number in range(kills):
            rows.append(one_kill(folder, number, seconds, rng))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        print(
            json.dumps(
                {
                    "cores": os.cpu_count(),
                    "machine": platform.machine(),
                    "pairs": PAIRS,
                    "unreadable": len(UNREADABLE),
                    "steps": PAIRS * EPOCHS // BATCH,
                    "uninterrupted": whole,
                    "kills": rows,
                    "killed": sum(row["killed"] for row in rows),
                    "same_weights": sum(row["weights"] == whole["weights"] for row in rows),
                    "missed": sum(row["missed"] for row in rows),
                    "seen_twice": sum(row["seen_twice"] for row in rows),
                },
                indent=2,
            )
        )


if __name__ == "__main__":
    main()
