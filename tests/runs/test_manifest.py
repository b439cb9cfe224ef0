"""What a manifest says of this process."""

import sys

import numpy as np
import pytest

from llm_adapters.runs.manifest import forget_peak_memory, peak_memory_bytes

MIB = 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets the peak of a process")
def test_a_run_does_not_answer_for_the_memory_of_those_before_it() -> None:
    forget_peak_memory()
    before = peak_memory_bytes()
    large = np.ones(300 * MIB, dtype=np.uint8)
    assert peak_memory_bytes() >= before + 290 * MIB
    del large
    forget_peak_memory()
    assert peak_memory_bytes() < before + 100 * MIB
