"""The models of a study without their weights: one a source, to count what a method trains."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from llm_adapters.adapters.base import Base
from llm_adapters.adapters.method import Method
from llm_adapters.config.schema import ModelSection
from llm_adapters.errors import UserError
from llm_adapters.model import empty_model, find_sites


def _empty_base(section: ModelSection) -> Base:
    model = empty_model(section.source, trust_remote_code=section.trust_remote_code)
    return Base(model, find_sites(model))


@dataclass
class Bases:
    """Bases on the meta device, each made once.

    Args:
        make: the base of a model section; tests give their own.
    """

    make: Callable[[ModelSection], Base] = _empty_base
    _made: dict[str, Base | UserError] = field(default_factory=dict)
    _counted: dict[str, int] = field(default_factory=dict)

    def get(self, section: ModelSection) -> Base:
        """The base of a run's model.

        Raises:
            ModelError: it cannot be had.
        """
        key = f"{section.source} {section.trust_remote_code}"
        if key not in self._made:
            try:
                self._made[key] = self.make(section)
            except UserError as failure:
                self._made[key] = failure
        found = self._made[key]
        if isinstance(found, UserError):
            raise found
        return found

    def count(self, section: ModelSection, recipes: tuple[Method, ...]) -> int:
        """Parameters that these methods train on the base.

        Raises:
            SiteError, MethodError, ModelError: as attaching would.
        """
        key = json.dumps([section.source, *(recipe.recipe() for recipe in recipes)])
        if key not in self._counted:
            base = self.get(section)
            self._counted[key] = sum(recipe.count(base) for recipe in recipes)
        return self._counted[key]

    def size(self, section: ModelSection) -> int:
        """Parameters of the base itself."""
        model: Any = self.get(section).model
        return sum(parameter.numel() for parameter in model.parameters())
