"""A run directory and what makes a run repeatable.

```
RUN/config.json      the resolved config, defaults included
RUN/env.json         versions, machine, command line, source revision
RUN/data.json        the training data's fingerprint, counts, what was skipped and why
RUN/manifest.json    the parts of that data, each with its sha256 and number of pairs
RUN/tokenizer.json   the tokenizer of this run
RUN/metrics.jsonl    one line for each logged step
RUN/tensorboard/     the same, for TensorBoard
RUN/checkpoints/     weights and optimizer state; the newest ones are kept
RUN/model/           the trained model: what `limner.load` reads
RUN/model-ema/       the same with averaged weights, if optim.ema_decay is set
RUN/eval/            one JSON file for each task
RUN/eval.jsonl       what was measured on the way, a row a line with its step
RUN/report.html
```
"""

import json
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limner.config import RunConfig, from_json
from limner.files import read_json, write_json
from limner.version import __version__


@dataclass(frozen=True)
class RunDirectory:
    """The paths inside a run directory; see the module's docstring."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.path / "config.json"

    @property
    def data(self) -> Path:
        """The training data's fingerprint and counts."""
        return self.path / "data.json"

    @property
    def manifest(self) -> Path:
        """The parts of the training data and what tells them from others."""
        return self.path / "manifest.json"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer of this run."""
        return self.path / "tokenizer.json"

    @property
    def metrics(self) -> Path:
        """One JSON line for each logged step."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard event files."""
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The folder of the trained model."""
        return self.path / "model"

    @property
    def model_ema(self) -> Path:
        """The folder of the averaged model, where the run keeps one."""
        return self.path / "model-ema"

    @property
    def evaluations(self) -> Path:
        """The folder of evaluation results."""
        return self.path / "eval"

    @property
    def measured(self) -> Path:
        """The rows that were measured on the way."""
        return self.path / "eval.jsonl"

    @property
    def report(self) -> Path:
        """The report page."""
        return self.path / "report.html"

    def read_config(self) -> RunConfig:
        """The config of the run."""
        return from_json(read_json(self.config), RunConfig, where=str(self.config))

    def read_metrics(self) -> list[dict[str, Any]]:
        """The logged steps; a last line cut short by a crash is left out."""
        return _lines_in(self.metrics)

    def read_measured(self) -> list[dict[str, Any]]:
        """The rows that were measured on the way, with their steps; likewise."""
        return _lines_in(self.measured)

    @property
    def is_finished(self) -> bool:
        """Whether there is a trained model here."""
        return (self.model / "config.json").is_file()

    def describe_environment(self) -> None:
        """Write env.json, unless it is there: what a person needs to know to repeat the run."""
        import torch

        if (self.path / "env.json").exists():
            return

        write_json(
            self.path / "env.json",
            {
                "limner": __version__,
                "revision": _git_revision(),
                "command": sys.argv,
                "python": platform.python_version(),
                "torch": torch.__version__,
                "machine": platform.machine(),
                "processor": torch.backends.cpu.get_cpu_capability(),
                "threads": torch.get_num_threads(),
                "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            },
        )


def _lines_in(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def _git_revision() -> str | None:
    """The revision of limner's own source, "+changes" when files differ from it, None outside a checkout."""
    here = Path(__file__).parent
    try:
        git = ["git", "-C", str(here)]
        subprocess.run([*git, "ls-files", "--error-unmatch", __file__], capture_output=True, timeout=10, check=True)
        revision = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        changes = subprocess.run(
            [*git, "status", "--porcelain", "--", str(here)], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return revision.stdout.strip() + ("+changes" if changes.stdout.strip() else "")
