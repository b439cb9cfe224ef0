"""``llm-adapters train``: train an adapter, without evaluation."""

from __future__ import annotations

from llm_adapters.cli.options import ConfigFile, Force, Out, Set
from llm_adapters.cli.run import carry_out

NAME = "train"


def command(config: ConfigFile = None, set_: Set = None, out: Out = None, force: Force = False) -> None:
    """Train an adapter only, or go on with it; ``run`` also evaluates before and after."""
    carry_out(config, set_, out, force=force, score=False)
