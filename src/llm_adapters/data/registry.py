"""The registry of benchmark files: which there are, where they lie, whether they are what they should be.

$LLM_ADAPTERS_DATA, or data/ in the cache folder
  gsm8k/test.json             named gsm8k/test; what ``gsm8k`` means where something is evaluated
  gsm8k/train.json            named gsm8k/train; what ``gsm8k`` means where something is trained
  piqa/train_full.json.xz     named piqa/train_full; any file may be xz-compressed
  math_train.json             named math: a mixture, for training only
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llm_adapters.config.cache import cache_root
from llm_adapters.data.example import Example, Split
from llm_adapters.data.files import parse_examples, read_content
from llm_adapters.data.registry_table import BUILT, COPIES, LICENCES, ORIGINALS, REFERENCE
from llm_adapters.errors import DataError

State = Literal["present", "missing", "damaged"]
BENCHMARKS = tuple(name for name in LICENCES if name not in ("math", "commonsense"))


@dataclass(frozen=True)
class BenchmarkFile:
    """One file of the registry.

    Attributes:
        name: its path in the data folder without the ending, or the mixture's name.
        rows: how many examples it holds.
        licence: of the data; the files are never part of this project.
        origin: where it is from, or how it was made.
        address: where to download it; None where no public address serves these bytes.
        sha256: of the JSON, uncompressed.
        git_blob: git's id of the reference's own file, accepted as well where that one could not be hashed.
    """

    name: str
    rows: int
    licence: str
    origin: str
    address: str | None
    sha256: str | None
    git_blob: str | None = None

    @property
    def path(self) -> str:
        """Where it lies in the data folder; ``.xz`` may follow."""
        return f"{self.name}.json" if "/" in self.name else f"{self.name}_train.json"

    def accepts(self, content: bytes) -> bool:
        """Whether this is the file's uncompressed content."""
        if hashlib.sha256(content).hexdigest() == self.sha256:
            return True
        header = f"blob {len(content)}\0".encode()
        return self.git_blob is not None and hashlib.sha1(header + content).hexdigest() == self.git_blob


def _files() -> Iterator[BenchmarkFile]:
    for name, rows, sha256, path in COPIES:
        origin = "AGI-Edgerunners/LLM-Adapters, exact copy"
        yield BenchmarkFile(name, rows, LICENCES[name.split("/")[0]], origin, REFERENCE + path, sha256)
    blobs = {name: (blob, REFERENCE + path) for name, _, blob, path in ORIGINALS}
    for name, rows, sha256, origin in BUILT:
        blob, address = blobs.pop(name, (None, None))
        yield BenchmarkFile(name, rows, LICENCES[name.split("/")[0]], origin, address, sha256, blob)
    for name, rows, blob, path in ORIGINALS:
        if name in blobs:
            origin = "AGI-Edgerunners/LLM-Adapters"
            yield BenchmarkFile(name, rows, LICENCES[name.split("/")[0]], origin, REFERENCE + path, None, blob)


_ORDER = list(LICENCES)
FILES = {
    file.name: file for file in sorted(_files(), key=lambda file: (_ORDER.index(file.name.split("/")[0]), file.name))
}


def data_folder() -> Path:
    """Where the files lie: ``$LLM_ADAPTERS_DATA``, or ``data`` in the cache folder."""
    if chosen := os.environ.get("LLM_ADAPTERS_DATA"):
        return Path(chosen).expanduser()
    return cache_root() / "data"


def benchmark_file(name: str, split: Split = "test") -> BenchmarkFile:
    """The file of a benchmark's split, or the file of that very name ("piqa/train_full", "math").

    Raises:
        DataError: there is none.
    """
    file = FILES.get(name) or FILES.get(f"{name}/{split}")
    if file is not None:
        return file
    if name in BENCHMARKS:
        with_one = [known for known in BENCHMARKS if f"{known}/{split}" in FILES]
        raise DataError(f"the benchmark '{name}' has no {split} file", allowed=with_one)
    raise DataError(f"there is no benchmark '{name}'", given=name, allowed=[*BENCHMARKS, *FILES])


def locate(file: BenchmarkFile) -> Path | None:
    """The file in the data folder, compressed or not; None where it is missing."""
    plain = data_folder() / file.path
    return next((path for path in (plain, plain.with_name(f"{plain.name}.xz")) if path.is_file()), None)


def state(file: BenchmarkFile) -> State:
    """Whether the file is there, and is the registry's; reads all of it."""
    path = locate(file)
    if path is None:
        return "missing"
    try:
        return "present" if file.accepts(read_content(path)) else "damaged"
    except DataError:
        return "damaged"


def load_file(file: BenchmarkFile) -> list[Example]:
    """All rows of a registered file, after its hash was checked.

    Raises:
        DataError: it is missing, or is not the registry's file.
    """
    path = locate(file)
    if path is None:
        raise missing([file])
    content = read_content(path)
    if not file.accepts(content):
        raise DataError(
            f"{path} is damaged, or is another file than the registry's '{file.name}':"
            f" its SHA-256 is {hashlib.sha256(content).hexdigest()}, not {file.sha256 or 'of the original'}",
            mend=f"{_download(file)}; or give the path instead of the name, to use it as it is",
        )
    examples = parse_examples(path, content)
    if len(examples) != file.rows:
        raise DataError(f"{path} has {len(examples)} rows, not {file.rows}", mend=_download(file))
    return examples


def load_benchmark(name: str, split: Split = "test") -> list[Example]:
    """All rows of a benchmark's split, or of the registered file of that very name.

    Raises:
        DataError: unknown name, or a file that is missing or damaged.
    """
    return load_file(benchmark_file(name, split))


def missing(files: list[BenchmarkFile]) -> DataError:
    """The error that says which files are missing and how to get each."""
    names = ", ".join(file.path for file in files)
    ways = [f"llm-adapters data download {' '.join(file.name for file in files if file.address)}"]
    ways = ways if any(file.address for file in files) else []
    ways += [f"make {file.path} ({file.origin}; it has no public address)" for file in files if not file.address]
    return DataError(
        f"the data folder '{data_folder()}' has no {names}",
        mend="; ".join([*ways, "or set LLM_ADAPTERS_DATA to a folder that has it"]),
    )


def _download(file: BenchmarkFile) -> str:
    if file.address is None:
        return f"copy it again; it has no public address ({file.origin})"
    return f"llm-adapters data download {file.name} --force"
