"""An example and where it stands in the user's data, so that a message can name it."""

from __future__ import annotations

from typing import NamedTuple

from llm_adapters.data.encoding import Encoded


class Numbered(NamedTuple):
    """An example and its number in the data, from 1."""

    row: int
    example: Encoded
