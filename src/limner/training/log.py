"""What a run says about itself on its way: the ledger of time and drops, metrics.jsonl, TensorBoard, the bar."""

import json
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from tensorboardX import SummaryWriter

from limner.data.loader import Batch
from limner.errors import StorageError
from limner.evaluation.metrics import Row
from limner.files import write_text
from limner.progress import say
from limner.run import RunDirectory
from limner.training.world import World

LOG_EVERY = 10
"""Steps between two lines of metrics.jsonl."""
BOOKKEEPING = {
    *("step", "pairs", "seconds", "pairs_per_second", "peak_memory_gb", "lr", "batch", "skipped"),
    *("loader_wait", "dropped", "dropped_for", "grad_norm_image", "grad_norm_text"),
}
"""Names of a line that are no curve worth looking at; the others are the objective's, and the gradient's norm."""


class Ledger:
    """What a run costs on its way: seconds, waits for batches, pairs that could not be used."""

    def __init__(self, log: "MetricsLog | NoLog", first: int, batch_size: int) -> None:
        self.log, self.first, self.batch_size = log, first, batch_size
        self.seconds = log.seconds
        """Trained so far, without the time spent on writing checkpoints."""
        self.waited = 0.0
        """Seconds of this process in which training waited for a batch."""
        self.dropped = Counter[str]()
        """Pairs of this rank since the last line of the log."""
        self.skip_time()

    def skip_time(self) -> None:
        """What passed since the last step is not training."""
        self._since = time.monotonic()

    def take(self, batches: Iterator[Batch]) -> Batch:
        """The next batch."""
        asked = time.monotonic()
        batch = next(batches)
        self.waited += time.monotonic() - asked
        self.dropped += batch.dropped
        return batch

    def step_done(self) -> None:
        """A step was taken."""
        self.seconds += time.monotonic() - self._since
        self.skip_time()

    def dropped_so_far(self, before: Mapping[str, int], world: World) -> dict[str, int]:
        """All ranks' pairs that could not be used, by reason, those of `before` included; here counting starts anew."""
        total = dict(sum(world.collect(self.dropped), Counter(before)))
        self.dropped.clear()
        return total

    def pairs_per_second(self, step: int) -> float:
        """The speed of this process, over all ranks."""
        return max(0, step - self.first) * self.batch_size / max(1e-9, self.seconds - self.log.seconds)

    def write(self, step: int, numbers: dict[str, float], dropped: Mapping[str, int]) -> None:
        """A line of the log about `step`."""
        so_far = {"step": step, "pairs": step * self.batch_size, "seconds": self.seconds}
        speed = {"pairs_per_second": self.pairs_per_second(step), "peak_memory_gb": peak_memory_gb()}
        wait = self.waited / max(1e-9, self.seconds - self.log.seconds)
        self.log.write({**so_far, **speed, **numbers, "loader_wait": wait, **count_of(dropped)})


def count_of(dropped: Mapping[str, int]) -> dict[str, Any]:
    """Dropped pairs as a line of the log has them: their number, and by reason if there are any."""
    return {"dropped": sum(dropped.values()), **({"dropped_for": dict(dropped)} if dropped else {})}


def describe_metrics(metrics: dict[str, float], speed: float, dropped: int) -> str:
    """The facts beside the progress bar."""
    accuracy = f" acc {metrics['accuracy']:.0%}" if "accuracy" in metrics else ""
    facts = f"{speed:,.0f} pairs/s loss {metrics['loss']:.2f}{accuracy} |g| {metrics['grad_norm']:.1f}"
    return f"{facts} dropped {dropped:,}" if dropped else facts


class MetricsLog:
    """metrics.jsonl and TensorBoard, side by side. `seconds` is the time trained before this process."""

    def __init__(self, run: RunDirectory, first: int) -> None:
        self._run = run
        kept = self._keep(first, measured=first - 1)  # what is due at the first step is measured at the start
        self.seconds: float = kept[-1]["seconds"] if kept else 0.0
        self._board = SummaryWriter(str(run.tensorboard), purge_step=first + 1 if first else None)

    def drop_after(self, step: int) -> None:
        """Forget the lines of later steps: they are done again."""
        self._file.close()
        self._keep(step, measured=step)

    def _keep(self, step: int, *, measured: int) -> list[dict[str, Any]]:
        kept = [line for line in self._run.read_metrics() if line["step"] <= step]
        write_text(self._run.metrics, "".join(json.dumps(line) + "\n" for line in kept))
        if rows := self._run.read_measured():
            lines = (json.dumps(row) + "\n" for row in rows if row["step"] <= measured)
            write_text(self._run.measured, "".join(lines))
        self._file = self._run.metrics.open("a", encoding="utf-8")
        return kept

    def write_rows(self, step: int, rows: Sequence[Row]) -> None:
        """What was measured at a step."""
        try:
            with self._run.measured.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({"step": step} | asdict(row)) + "\n" for row in rows)
        except OSError as error:
            say(f"What was measured at step {step} is not kept: {error.strerror or error}.")
        for row in rows:
            self._board.add_scalar(f"eval/{row.task}/{row.metric}", row.value, step)

    def write(self, metrics: dict[str, Any]) -> None:
        """One logged step."""
        try:
            self._file.write(json.dumps(metrics) + "\n")
            self._file.flush()
        except OSError as error:
            raise StorageError(
                f"A line of {self._file.name}",
                must="be written",
                got=error.strerror or error,
                then="Make room; the last checkpoint stays, and limner resume RUN continues from it.",
            ) from error
        for name, value in metrics.items():
            if name != "step" and isinstance(value, int | float):
                self._board.add_scalar(f"train/{name}", value, metrics["step"])

    def close(self) -> None:
        """Write what is buffered."""
        self._file.close()
        self._board.close()


class NoLog:
    """The log of every rank but the first, which writes for all."""

    seconds = 0.0

    def write(self, metrics: dict[str, Any]) -> None:
        """Nothing."""

    def write_rows(self, step: int, rows: Sequence[Row]) -> None:
        """Nothing."""

    def drop_after(self, step: int) -> None:
        """Nothing."""


@contextmanager
def metrics_log(run: RunDirectory, first: int, world: World) -> Iterator[MetricsLog | NoLog]:
    """The log of a run that continues after step `first`; lines of later steps, which are done again, are dropped."""
    if world.rank > 0:
        yield NoLog()
        return
    log = MetricsLog(run, first)
    try:
        yield log
    finally:
        log.close()


def peak_memory_gb() -> float:
    """The most memory that this process has held so far, in GB (10**9 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9
