"""Hostile data, the whole way from a path to batches, each case in a process of its own, as JSON.

The cases are those of tests/helpers/hostile.py, in their big form. A process has as much memory and time as --memory
and --seconds say. `peak_mb` is its highest memory above that of one that has only imported. `outcome` is what came of
it in words; `ok` says whether that was expected, the peak stayed below `limit_mb`, and nothing was unpickled, started,
connected to, or written outside of the folder.

    python benchmarks/hostile.py [CASE ...] [--memory 8] [--seconds 120] [--table]
"""

import argparse
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from limner.data.tokenizer import Tokenizer
from limner.progress import say

ROOT = Path(__file__).resolve().parents[1]
CONTROL = "nothing-hostile"
FORBIDDEN = ("pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect")


def corpus() -> Any:
    """The module of the cases."""
    sys.path.insert(0, str(ROOT / "tests"))
    return importlib.import_module("helpers.hostile")


def memory_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def watch(folder: Path) -> list[str]:
    """What the process does from now on that it must not."""
    found: list[str] = []
    allowed = (str(folder.resolve()), os.environ["LIMNER_CACHE"], "/dev/null")

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in FORBIDDEN:
            found.append(f"{event} {args[0]}")
        elif event == "open" and isinstance(args[0], str | bytes) and _writes(args):
            path = os.path.realpath(os.fsdecode(args[0]))
            if not path.startswith(allowed):
                found.append(f"wrote {path}")

    sys.addaudithook(hook)
    return found


def _writes(args: tuple[Any, ...]) -> bool:
    flags = args[2] if isinstance(args[2], int) else 0
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def alone(folder: Path, memory_gb: float) -> dict[str, Any]:
    """Run the case in `folder`, in this process, which has done nothing else."""
    hostile = corpus()
    tokenizer = Tokenizer.train(["a picture of a dog"] * 3, vocab_size=600)
    expected = hostile.Expected(**json.loads((folder.parent / "expected.json").read_text()))
    before, length = memory_mb("VmRSS"), memory_mb("VmSize")
    limit = int((length / 1024 + memory_gb) * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    found = watch(folder)
    start = time.perf_counter()
    try:
        told = hostile.through(folder / expected.opens, tokenizer)
        outcome, is_right = _in_words(told), hostile.is_as(told, expected)
    except BaseException as error:  # is what the benchmark is there to tell
        outcome, is_right = f"CRASH {type(error).__name__}: {error}"[:160], False
    took, peak = time.perf_counter() - start, memory_mb("VmHWM") - before
    outcome = "; ".join([outcome, *(f"FORBIDDEN {one}" for one in dict.fromkeys(found))])
    return {"outcome": outcome, "seconds": took, "peak_mb": peak, "as_expected": is_right and not found}


def _in_words(told: dict[str, Any]) -> str:
    if told["error"]:
        return f"DataError: {told['error'].partition(' must ')[2][:90]}"
    parts = [f"{told['pairs']:,} pairs"]
    for kind in ("skipped", "noted", "dropped"):
        parts += [f"{count:,} {kind}: {reason}" for reason, count in told[kind].items()]
    return "; ".join(parts)


def measure(name: str, case: Callable[[Path, bool], Any], args: argparse.Namespace) -> dict[str, Any]:
    """Write a case's files, run it in a process of its own, say what came of it."""
    with tempfile.TemporaryDirectory(prefix="limner-hostile-") as place:
        folder = Path(place) / "data"
        folder.mkdir()
        environment = os.environ | {"LIMNER_CACHE": str(Path(place) / "cache")}
        expected = vars(case(folder, True))
        (Path(place) / "expected.json").write_text(json.dumps(expected))
        command = [sys.executable, __file__, name, "--alone", str(folder), "--memory", str(args.memory)]
        start = time.perf_counter()
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=args.seconds)
            row = json.loads(done.stdout) if done.returncode == 0 else {"outcome": f"DIED with {done.returncode}"}
        except subprocess.TimeoutExpired:
            row = {"outcome": "HANGS"}
        row = {"seconds": time.perf_counter() - start, "peak_mb": 0.0, "as_expected": False} | row
    return {"input": name, **row, "limit_mb": expected["megabytes"]}


def judged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Limits count from what good pairs take: the libraries that are loaded when the first picture is decoded."""
    control = next(row["peak_mb"] for row in rows if row["input"] == CONTROL)
    return [
        row
        | {
            "limit_mb": row["limit_mb"] + round(control),
            "ok": row["as_expected"] and row["peak_mb"] <= row["limit_mb"] + control,
        }
        for row in rows
    ]


def table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'':4} {'input':38} {'seconds':>8} {'peak MB':>8} {'limit':>6}  outcome"]
    lines += [
        f"{'ok' if row['ok'] else 'NOT':4} {row['input']:38} {row['seconds']:8.2f} {row['peak_mb']:8.0f} "
        f"{row['limit_mb']:6}  {row['outcome']}"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*", help="all of them, if none is named")
    parser.add_argument("--memory", type=float, default=8, help="GB of address space above what imports take")
    parser.add_argument("--seconds", type=float, default=120, help="that a case may take")
    parser.add_argument("--table", action="store_true", help="print a table in place of JSON")
    parser.add_argument("--alone", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        print(json.dumps(alone(args.alone, args.memory)), flush=True)
        os._exit(0)  # whatever still stands in a thread
    cases = corpus().CASES
    rows = []
    for name in dict.fromkeys([CONTROL, *(args.cases or cases)]):
        rows.append(measure(name, cases[name], args))
        say(f"{name}: {rows[-1]['outcome'][:100]} ({rows[-1]['seconds']:.1f} s, {rows[-1]['peak_mb']:.0f} MB)")
    rows = judged(rows)
    print(table(rows) if args.table else json.dumps({"memory_gb": args.memory, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
