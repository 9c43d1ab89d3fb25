"""The demo's claim, from three seeds: accuracy on the unseen style, seconds of training, memory.

Trains `limn train demo --seed N` for N = 0, 1, 2, one after the other, and prints JSON with each seed's numbers, their
mean and their standard deviation. Needs npm (or data/demo), about twenty minutes on two cores.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from limn.data.demo import default_folder, write_demo
from limn.run import RunDirectory

SEEDS = (0, 1, 2)


def limn(*args: str) -> str:
    return subprocess.run([sys.executable, "-m", "limn", *args], stdout=subprocess.PIPE, text=True, check=True).stdout


def one_seed(seed: int, out: Path) -> dict[str, float]:
    limn("train", "demo", "--seed", str(seed), "--out", str(out))
    rows = {row["metric"]: row["value"] for row in json.loads(limn("eval", str(out), "--json"))}
    last = RunDirectory(out).read_metrics()[-1]
    return {
        "top1": rows["zero_shot.top1"],
        "top5": rows["zero_shot.top5"],
        "held_out_top5": rows["held_out.top5"],
        "seconds": last["seconds"],
        "pairs_per_second": last["pairs"] / last["seconds"],
        "peak_memory_gb": last["peak_memory_gb"],
    }


def main() -> None:
    write_demo(default_folder("emoji"), source="emoji")
    with tempfile.TemporaryDirectory() as folder:
        runs = [one_seed(seed, Path(folder) / f"seed-{seed}") for seed in SEEDS]
    result = {
        "cores": os.cpu_count(),
        "seeds": dict(zip(SEEDS, runs, strict=True)),
        "mean": {name: statistics.mean(run[name] for run in runs) for name in runs[0]},
        "standard_deviation": {name: statistics.stdev(run[name] for run in runs) for name in runs[0]},
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
