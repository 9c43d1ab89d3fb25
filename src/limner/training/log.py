"""The log of a run: metrics.jsonl and TensorBoard."""

import json
import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tensorboardX import SummaryWriter

from limner.errors import StorageError
from limner.files import write_text
from limner.run import RunDirectory
from limner.training.world import World

LOG_EVERY = 10
"""Steps between two lines of metrics.jsonl."""


def count_of(dropped: Mapping[str, int]) -> dict[str, Any]:
    """Dropped pairs as a line of the log has them: their number, and by reason if there are any."""
    return {"dropped": sum(dropped.values()), **({"dropped_for": dict(dropped)} if dropped else {})}


def describe_metrics(metrics: dict[str, float], speed: float, dropped: int) -> str:
    """The facts beside the progress bar."""
    facts = (
        f"{speed:,.0f} pairs/s loss {metrics['loss']:.2f} acc {metrics['accuracy']:.0%} |g| {metrics['grad_norm']:.1f}"
    )
    return f"{facts} dropped {dropped:,}" if dropped else facts


class MetricsLog:
    """metrics.jsonl and TensorBoard, side by side. `seconds` is the time trained before this process."""

    def __init__(self, run: RunDirectory, first: int) -> None:
        self._run = run
        kept = self._keep(first)
        self.seconds: float = kept[-1]["seconds"] if kept else 0.0
        self._board = SummaryWriter(str(run.tensorboard), purge_step=first + 1 if first else None)

    def drop_after(self, step: int) -> None:
        """Forget the lines of later steps: they are done again."""
        self._file.close()
        self._keep(step)

    def _keep(self, step: int) -> list[dict[str, Any]]:
        kept = [line for line in self._run.read_metrics() if line["step"] <= step]
        write_text(self._run.metrics, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = self._run.metrics.open("a", encoding="utf-8")
        return kept

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
                then="Make room; the last checkpoint stays, and limner train --resume continues from it.",
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
