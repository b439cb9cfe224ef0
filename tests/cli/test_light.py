"""Commands that only read files answer at once: they load no torch."""

import subprocess
import sys

import pytest

_READERS = ["llm_adapters.cli", "llm_adapters.cli.study", "llm_adapters.report", "llm_adapters.study.status"]


@pytest.mark.parametrize("module", _READERS)
def test_who_only_reads_loads_no_torch(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_status_command_loads_no_torch(tmp_path: object) -> None:
    code = (
        "import sys; from llm_adapters.cli import main\n"
        f"sys.argv = ['x', 'study', 'status', {str(tmp_path)!r}]\n"
        "try: main()\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == ["2", "False"]
