"""What structure alone cannot tell about a model family: one row a family, keyed by ``config.model_type``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Where a family departs from the common contract of a decoder layer.

    Attributes:
        mask_true_hides: a boolean attention mask marks hidden keys with True (everywhere else: visible ones).
        positions_from_mask: without ``position_ids`` the family counts real tokens, not columns.
        no_prefix_with: the config flag under which keys and values cannot be put before the input, or "".
    """

    mask_true_hides: bool = False
    no_prefix_with: str = ""
    positions_from_mask: bool = False


FAMILIES: dict[str, Family] = {
    "mpt": Family(mask_true_hides=True),
    "opt": Family(positions_from_mask=True),
    "falcon": Family(no_prefix_with="alibi"),  # its ALiBi bias is hidden in the attention mask
}


def family(model_type: str) -> Family:
    """The row of ``model_type``; families without a row follow the common contract."""
    return FAMILIES.get(model_type, Family())
