"""What the bare base answers, once for all runs of a study that ask it the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from llm_adapters.config.schema import RunConfig
from llm_adapters.data.digest import data_digest
from llm_adapters.evaluation.rows import RowWriter, read_rows
from llm_adapters.evaluation.suite import Suite
from llm_adapters.runs.folder import exclusively

_OF_NO_ACCOUNT = {"data", "size", "seed", "batch_size"}  # the suites themselves count, and batches change nothing


def take_over(
    shared: Path, own: Path, config: RunConfig, suites: Sequence[Suite], evaluate: Callable[[Path], object]
) -> None:
    """Put the base's predictions on ``suites`` into a run's folder ``own``.

    Whoever comes first has them made; others wait. A kill leaves the rows that were made.

    Args:
        shared: the folder of all that is shared; in it a folder for each way of asking.
        own: ``eval`` of the run.
        config: of the run.
        suites: that are asked.
        evaluate: answers with the base, and writes the prediction files into the folder that it is given.
    """
    folder = shared / base_id(config, suites)
    folder.mkdir(parents=True, exist_ok=True)
    with exclusively(folder, wait=True):
        evaluate(folder / "eval")
    for suite in suites:
        writer = RowWriter(own / suite.file)
        have = {row["row"] for row in writer.rows if row["adapter"] is None}
        for row in read_rows(folder / "eval" / suite.file):
            if row["row"] not in have:
                writer.add(row)
        writer.finish([None])


def base_id(config: RunConfig, suites: Sequence[Suite]) -> str:
    """Digest of all that what the base answers depends on."""
    asked = [
        config.model.model_dump(mode="json"), config.data.template,
        config.evaluate.model_dump(mode="json", exclude=_OF_NO_ACCOUNT),
        [[suite.file, list(suite.numbers), data_digest(suite.examples)] for suite in suites],
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:10]
