"""What a manifest says of this process."""

import subprocess
import sys

import pytest

PEAKS = """
import numpy as np
from llm_adapters.runs.manifest import forget_peak_memory, peak_memory_bytes

forget_peak_memory()
print(peak_memory_bytes())
large = np.ones(300 * 2**20, dtype=np.uint8)
print(peak_memory_bytes())
del large
forget_peak_memory()
print(peak_memory_bytes())
"""
MIB = 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets the peak of a process")
def test_a_run_does_not_answer_for_the_memory_of_those_before_it() -> None:
    # In a process of its own: this one's allocator may hold 300 MiB that earlier tests have freed.
    done = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True)
    before, during, after = map(int, done.stdout.split())
    assert during >= before + 290 * MIB
    assert after < before + 100 * MIB
