"""An adapter: one method, or a list of methods trained and saved as one, with its parameters."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llm_adapters.adapters.base import Base
from llm_adapters.adapters.forms import KeyValues, VirtualTokens
from llm_adapters.adapters.method import Method, Parts, Placed, SiteForms


class Adapter(nn.Module):
    """A named instance of one or more methods; its ``state_dict`` *is* the adapter.

    Attributes:
        name: the name under which it is attached.
        methods: its recipes, in order.
        base: the base that it was built for.
    """

    def __init__(self, name: str, methods: Sequence[Method], base: Base, parts: Sequence[Parts]) -> None:
        super().__init__()
        self.name = name
        self.methods = tuple(methods)
        self.base = base
        for key, part in zip(_keys(methods), parts, strict=True):
            self.add_module(key, part)

    @classmethod
    def build(cls, name: str, methods: Sequence[Method], base: Base) -> Adapter:
        """A new adapter with freshly initialised parameters."""
        # Parameters are drawn on the CPU, so that one seed gives one adapter on every device – but not for ``meta``.
        with torch.device("meta") if base.device.type == "meta" else nullcontext():
            return cls(name, methods, base, [method.build(base) for method in methods])

    def __deepcopy__(self, memo: dict[int, Any]) -> Adapter:
        """A copy for averaging or keeping the best; the base is shared, unless it is being copied too."""
        if id(self.base.model) not in memo:
            memo[id(self.base)] = self.base
            memo |= {id(item.site): item.site for item in self.placed()}
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__ = copy.deepcopy(self.__dict__, memo)
        return twin

    def parts(self) -> Iterator[Parts]:
        """What the methods built, in their order."""
        for part in self.children():
            assert isinstance(part, SiteForms | KeyValues | VirtualTokens)
            yield part

    def placed(self) -> Iterator[Placed]:
        """Every form with its site and insertion."""
        for part in self.parts():
            if isinstance(part, SiteForms):
                yield from part.placed

    @property
    def virtual_tokens(self) -> int:
        """How many positions its prefixes and prompts take before the input."""
        return sum(len_of(part) for part in self.parts())

    def count(self) -> int:
        """Number of parameters."""
        return sum(parameter.numel() for parameter in self.parameters())

    def folded(self) -> Adapter:
        """The adapter as it is saved: reparametrizations and encoders folded away."""
        pairs = [method.fold(part) for method, part in zip(self.methods, self.parts(), strict=True)]
        if all(part is old for (_, part), old in zip(pairs, self.parts(), strict=True)):
            return self
        return Adapter(self.name, [m for m, _ in pairs], self.base, [part for _, part in pairs])

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write ``adapter.json`` and ``adapter.safetensors`` into ``folder``; see :mod:`.store`."""
        from llm_adapters.adapters.store import save

        return save(self, Path(folder), overwrite=overwrite)


def len_of(part: Parts) -> int:
    """Positions that one part takes before the input."""
    if isinstance(part, KeyValues):
        return part.tokens
    return int(part.table.shape[0]) if isinstance(part, VirtualTokens) else 0


def _keys(methods: Sequence[Method]) -> list[str]:
    """``lora``, ``prefix``, ``lora_2``: the method's name, numbered from its second use on."""
    keys: list[str] = []
    for method in methods:
        used = sum(key.partition("_#")[0] == method.name() for key in keys)
        keys.append(method.name() if not used else f"{method.name()}_#{used + 1}")
    return [key.replace("_#", "_") for key in keys]
