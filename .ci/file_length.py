"""No source file over 300 lines: one concept a file. Prints the median too, which should stay under 120."""

import statistics
import sys
from pathlib import Path

LIMIT = 300
root = Path(__file__).parent.parent
lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (root / "src").rglob("*.py")}
long = {path: length for path, length in lengths.items() if length > LIMIT}
for path, length in long.items():
    print(f"{path.relative_to(root)}: {length} lines, {LIMIT} allowed: split it by concept")
print(f"{len(lengths)} files, median {statistics.median(lengths.values()):.0f} lines, longest {max(lengths.values())}")
sys.exit(bool(long))
