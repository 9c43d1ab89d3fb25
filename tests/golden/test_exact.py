"""Ten steps on one thread give these very weights: a change of a single bit does not go unnoticed.

Recorded for one version of torch and one kind of processor, whose kernels sum in an order of their own; on others the
test is skipped, and tests/golden/test_loss_curve.py holds the mathematics with a tolerance. Write it anew with
--update-snapshots, and say why in CHANGELOG.md.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

GOLDEN = Path(__file__).parent / "weights" / "digits.json"
SCRIPT = """
import dataclasses, sys, torch
from pathlib import Path
torch.set_num_threads(1)
from limner.config import TrainConfig
from limner.demo.pairs import write_demo
from limner.recipes import digits
from limner.training.loop import train
folder = Path(sys.argv[1])
write_demo(folder, source="digits", say=lambda _: None)
train(dataclasses.replace(
    digits(), data=str(folder / "train"), test=str(folder / "test"), out=folder / "run", workers=1,
    train=TrainConfig(batch_size=64, epochs=640 / 1438, precision="fp32", micro_batch=40),
))
"""


def here() -> dict[str, str]:
    """What decides on the order of sums."""
    return {"torch": torch.__version__.split("+")[0], "capability": torch.backends.cpu.get_cpu_capability()}


def test_ten_steps_end_with_the_same_bits(tmp_path: Path, request: pytest.FixtureRequest):
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    update = request.config.getoption("--update-snapshots")
    key = " ".join(here().values())
    if not update and key not in golden:
        pytest.skip(f"the weights are recorded for {', '.join(golden)}; this is {key}")
    subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], check=True, capture_output=True)
    weights = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    found = hashlib.sha256(weights).hexdigest()
    if update:
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps({**golden, key: found}, indent=2) + "\n")
        golden[key] = found
    assert found == golden[key]
