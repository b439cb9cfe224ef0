"""Methods: recipes that say which forms stand where. One file each in ``adapters/methods``, found by themselves."""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import nn

from llm_adapters.adapters.base import Base
from llm_adapters.adapters.forms import Form, KeyValues, VirtualTokens
from llm_adapters.config.strict import Strict
from llm_adapters.errors import MethodError
from llm_adapters.model.selection import check_layers, check_site_names, select
from llm_adapters.model.sites import Site

Insertion = Literal["parallel", "series", "series-in"]
Size = Annotated[int, Field(gt=0, strict=True)]  # strict: True and "8" are no sizes
Dropout = Annotated[float, Field(ge=0, lt=1)]


def _as_names(value: object) -> object:
    names = (value,) if isinstance(value, str) else value
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
        if not names:
            raise MethodError("sites is empty: nothing would be adapted", mend='sites: ["linears"]')
        check_site_names(names)
        return tuple(names)
    return value


def _as_layers(value: object) -> object:
    if isinstance(value, str | int | list | tuple):
        check_layers(value)
    return tuple(value) if isinstance(value, list) else value


Sites = Annotated[tuple[str, ...], BeforeValidator(_as_names)]
LayerChoice = Annotated[str | int | tuple[int, ...], BeforeValidator(_as_layers)]


@dataclass(frozen=True, eq=False)
class Placed:
    """One form at one site."""

    site: Site
    insertion: Insertion
    form: Form


class SiteForms(nn.Module):
    """The forms of one method, by layer and site; parameter names read ``3.attn_q.A``."""

    def __init__(self, placed: Sequence[Placed]) -> None:
        super().__init__()
        self.placed = tuple(placed)
        for item in placed:
            layer = "embed" if item.site.layer is None else str(item.site.layer)
            if layer not in self._modules:
                self.add_module(layer, nn.ModuleDict())
            self.get_submodule(layer).add_module(item.site.name.replace(".", "_"), item.form)


Parts = SiteForms | KeyValues | VirtualTokens
"""What a method builds: forms at sites, keys and values, or virtual tokens."""


class Method(Strict, ABC):
    """A recipe. Its name is the name of its file."""

    starts_at_identity: ClassVar[bool] = True
    """Whether the default initialisation leaves the model's output unchanged."""
    learning_rate: ClassVar[float] = 3e-4
    """The peak learning rate of the reference recipe, used when a recipe names none."""

    @classmethod
    def name(cls) -> str:
        """The name in configurations and on the command line: the file's name."""
        return cls.__module__.rpartition(".")[2]

    @abstractmethod
    def build(self, base: Base) -> Parts:
        """New parameters for ``base``, initialised."""

    @abstractmethod
    def count(self, base: Base) -> int:
        """Number of trained parameters in closed form, without building them."""

    def fold(self, parts: Parts) -> tuple[Method, Parts]:
        """The same function with what only training needs folded away; by default nothing is."""
        return self, parts

    def recipe(self) -> dict[str, Any]:
        """The method as plain data; :func:`parse_method` reads it back."""
        return {"method": self.name(), **self.model_dump(mode="json")}


class SiteMethod(Method):
    """A method that puts one form at every chosen site."""

    insertion: ClassVar[Insertion]
    sites: Sites
    layers: LayerChoice = "all"

    @abstractmethod
    def form(self, site: Site) -> Form:
        """A new form for ``site``."""

    @abstractmethod
    def size(self, site: Site) -> int:
        """Number of parameters at ``site`` in closed form."""

    def chosen(self, base: Base) -> list[Site]:
        """The sites that this method adapts.

        Raises:
            SiteError: the model lacks one.
            MethodError: the embedding is asked for, whose input (token ids) this insertion cannot use.
        """
        found = select(base.sites, self.sites, self.layers)
        if self.insertion != "series" and any(site.name == "embed" for site in found):
            raise MethodError(
                f"'{self.name()}' reads the input of its site, and the input of 'embed' is token ids",
                mend="leave 'embed' out of sites, or use 'series'",
            )
        return found

    def build(self, base: Base) -> SiteForms:
        return SiteForms([Placed(site, self.insertion, self._built(site)) for site in self.chosen(base)])

    def _built(self, site: Site) -> Form:
        form = self.form(site)
        device = device_of(site.output)
        return form if device is None else form.to(device)

    def count(self, base: Base) -> int:
        return sum(self.size(site) for site in self.chosen(base))


def device_of(module: nn.Module) -> torch.device | None:
    """Where ``module`` computes: the device of its weights, or the one that offloading brings them to."""
    weight = next(module.parameters(), None)
    offloaded = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    if weight is not None and weight.is_meta and offloaded is not None:
        return torch.device(offloaded)
    return None if weight is None else weight.device


@cache
def methods() -> Mapping[str, type[Method]]:
    """Every method by name, in alphabetical order."""
    package = importlib.import_module("llm_adapters.adapters.methods")
    found: dict[str, type[Method]] = {}
    for module_info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{module_info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__:
                found[value.name()] = value
    return dict(sorted(found.items()))


def method(name: str, **fields: Any) -> Method:
    """A method by name.

    Args:
        name: ``lora``, ``series``, ``parallel``, ``prefix``, … (``llm-adapters methods`` lists them).
        fields: the fields of the method; see ``llm-adapters methods NAME``.

    Raises:
        MethodError: the name or a field is unknown, or a value is not allowed; all mistakes at once.
    """
    known = methods()
    if name not in known:
        raise MethodError(f"unknown method '{name}'", given=name, allowed=known)
    return known[name].parse(fields, where=f"method '{name}'", error=MethodError)


def parse_method(recipe: Mapping[str, Any]) -> Method:
    """A method from plain data with the key ``method`` and its fields."""
    fields = dict(recipe)
    name = fields.pop("method", None)
    if not isinstance(name, str):
        raise MethodError("a method recipe needs the field 'method'", given=name, allowed=methods())
    return method(name, **fields)
