import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from limner.training.prepare import keep_freed_memory

def step():
    kept = [torch.ones(10_000_000 + 500_000 * i) for i in range(6)]  # 40 to 50 MB each, freed at once

if sys.argv[1] == "keep":
    assert keep_freed_memory()
for repeat in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's allocator")
def test_freed_memory_is_used_again():
    def faults(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults("keep") < faults("give back") / 4  # or the setting is no longer needed: docs/decisions/0007
