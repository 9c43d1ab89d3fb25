"""The demo's claims from three seeds, with float32 AdamW and with the paper's half precision, as JSON.

Trains `limner train demo --seed N` for N = 0, 1, 2, one after the other, first as the recipe is and then with bfloat16
moments and text encoder, and prints each seed's accuracy on the unseen style, loss curve, seconds and memory, means and
standard deviations, and what the paired differences between the two are worth (Student's t with two degrees of freedom:
beyond 4.3 is significant at 5 %). Needs npm (or data/demo), about half an hour on two cores.

    python benchmarks/demo_seeds.py > benchmarks/results/demo_seeds.json
    python benchmarks/demo_seeds.py --float32 > benchmarks/results/demo.json     a quarter of an hour: the demo as it is
    python benchmarks/demo_seeds.py --draw docs/half_precision.svg     draws those results again, trains nothing
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from limner.demo.pairs import default_folder, write_demo
from limner.run import RunDirectory

SEEDS = (0, 1, 2)
ARMS = {
    "float32": (),
    "bf16 moments and text encoder": ("--optim.moments", "bf16", "--optim.bf16-weights", "text"),
}
METRICS = ("top1", "top5", "held_out_top5", "last_loss", "seconds", "peak_memory_gb", "checkpoint_mb")
RESULTS = Path(__file__).with_name("results") / "demo_seeds.json"
COLOURS = ("#1f6feb", "#d1242f")


def limner(*args: str) -> str:
    return subprocess.run([sys.executable, "-m", "limner", *args], stdout=subprocess.PIPE, text=True, check=True).stdout


def one_seed(seed: int, flags: tuple[str, ...], out: Path) -> dict[str, Any]:
    limner("train", "demo", "--seed", str(seed), "--out", str(out), *flags)
    rows = {row["metric"]: row["value"] for row in json.loads(limner("eval", str(out), "--json"))}
    run = RunDirectory(out)
    lines = run.read_metrics()
    return {
        "top1": rows["zero_shot.top1"],
        "top5": rows["zero_shot.top5"],
        "held_out_top5": rows["held_out.top5"],
        "last_loss": statistics.mean(line["loss"] for line in lines[-10:]),
        "seconds": lines[-1]["seconds"],
        "pairs_per_second": lines[-1]["pairs"] / lines[-1]["seconds"],
        "peak_memory_gb": lines[-1]["peak_memory_gb"],
        "checkpoint_mb": max(run.checkpoints.iterdir()).stat().st_size / 1e6,
        "curve": [[line["step"], round(line["loss"], 4)] for line in lines[::4]],
    }


def summary(arm: str, folder: Path) -> dict[str, Any]:
    seeds = [one_seed(seed, ARMS[arm], folder / f"{arm} {seed}") for seed in SEEDS]
    return {
        "flags": " ".join(ARMS[arm]),
        "seeds": dict(zip(map(str, SEEDS), seeds, strict=True)),
        "mean": {name: statistics.mean(seed[name] for seed in seeds) for name in METRICS},
        "standard_deviation": {name: statistics.stdev(seed[name] for seed in seeds) for name in METRICS},
    }


def paired(one: dict[str, Any], other: dict[str, Any], metric: str) -> dict[str, float]:
    """The mean difference over seeds, and that over its standard error."""
    apart = [other["seeds"][str(seed)][metric] - one["seeds"][str(seed)][metric] for seed in SEEDS]
    error = statistics.stdev(apart) / len(apart) ** 0.5
    return {"mean": statistics.mean(apart), "t": statistics.mean(apart) / error if error else 0.0}


def draw(results: dict[str, Any]) -> str:
    """The loss curves of all seeds, as SVG."""
    width, height, left, top, bottom = 760, 360, 50, 40, 40
    curves = [(arm, seed["curve"]) for arm, each in results["arms"].items() for seed in each["seeds"].values()]
    last = max(step for _, curve in curves for step, _ in curve)
    low, high = 0.0, max(loss for _, curve in curves for _, loss in curve)

    def place(step: float, loss: float) -> str:
        x = left + (width - left - 15) * step / last
        return f"{x:.1f},{top + (height - top - bottom) * (1 - (loss - low) / (high - low)):.1f}"

    colour = dict(zip(results["arms"], COLOURS, strict=True))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="13"><rect width="{width}" height="{height}" fill="white"/>'
    ]
    for loss in range(int(high) + 1):
        x, y = place(0, loss).split(",")
        parts.append(f'<path d="M{x},{y}H{width - 15}" stroke="#e5e5e5"/><text x="{left - 20}" y="{y}">{loss}</text>')
    for arm, curve in curves:
        points = " ".join(place(step, loss) for step, loss in curve)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour[arm]}" stroke-width="1" opacity="0.7"/>')
    for number, arm in enumerate(results["arms"]):
        means = results["arms"][arm]["mean"]
        text = f"{arm}: top-1 {means['top1']:.1%}, top-5 {means['top5']:.1%}"
        parts.append(f'<text x="{left + 280}" y="{top + 20 + 22 * number}" fill="{colour[arm]}">{text}</text>')
    parts.append(f'<text x="{left}" y="22">Loss of the demo, three seeds each</text>')
    parts.append(f'<text x="{width - 90}" y="{height - 12}">step {last:,}</text></svg>')
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--draw", type=Path, metavar="FILE")
    parser.add_argument("--float32", action="store_true", help="the first of the two alone")
    asked = parser.parse_args()
    if asked.draw is not None:
        asked.draw.write_text(draw(json.loads(RESULTS.read_text())))
        return
    write_demo(default_folder("emoji"), source="emoji")
    with tempfile.TemporaryDirectory() as folder:
        arms = {arm: summary(arm, Path(folder)) for arm in list(ARMS)[: 1 if asked.float32 else 2]}
    results: dict[str, Any] = {"cores": os.cpu_count(), "arms": arms}
    if len(arms) == 2:
        one, other = arms.values()
        results["differences"] = {metric: paired(one, other, metric) for metric in METRICS}
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
