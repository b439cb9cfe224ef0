"""Choosing sites by name and layer, and saying precisely what does not fit."""

from __future__ import annotations

from collections.abc import Sequence

from llm_adapters.errors import SiteError
from llm_adapters.model.roles import SETS, SITES
from llm_adapters.model.sites import Site, SiteMap

Layers = str | int | Sequence[int]


def check_site_names(names: Sequence[str]) -> None:
    """Refuse names that no model has, before any model is looked at."""
    for name in names:
        for choice in name.split("|"):
            if choice not in SITES and choice not in SETS:
                raise SiteError(f"unknown site '{choice}'", given=choice, allowed=(*SITES, *SETS))


def check_layers(layers: Layers) -> None:
    """Refuse a layer selection that no model could satisfy."""
    _layer_indices(layers, count=None)


def select(sites: SiteMap, names: Sequence[str], layers: Layers = "all") -> list[Site]:
    """The sites that ``names`` × ``layers`` stand for, layer by layer.

    Args:
        sites: the sites of the model.
        names: site names, sets (``attn.*``, ``ffn.*``, ``linears``), or alternatives ``ffn.up|ffn.gate_up``
            (the first that the model has).
        layers: ``all``, an index, a list of indices (negative ones count from the end), ``"8-15"`` or ``"last:8"``.

    Raises:
        SiteError: a name or layer is unknown, or the model does not have it.
    """
    check_site_names(names)
    indices = _layer_indices(layers, count=len(sites.layers))
    chosen: dict[str, None] = {}
    for name in names:
        chosen |= dict.fromkeys(_resolve(sites, name))
    found = [sites.embed] if "embed" in chosen else []
    for index in indices:
        found += [sites.layers[index][name] for name in chosen if name in sites.layers[index]]
    if layers != "all":
        _refuse_missing_layers(sites, list(chosen), indices)
    return found


def _resolve(sites: SiteMap, name: str) -> list[str]:
    """The plain site names of this model that one entry of the list stands for."""
    have = sites.names()
    for choice in name.split("|"):
        present = [site for site in SETS.get(choice, (choice,)) if site in have]
        if present:
            return present
    raise SiteError(
        f"this model ({sites.model_type}) has no site '{name}'{_why_missing(name, have)}",
        given=name,
        allowed=have,
        mend=f"sites: [{_suggest(name, have)}]",
    )


def _why_missing(name: str, have: list[str]) -> str:
    if name in ("attn.q", "attn.k", "attn.v") and "attn.qkv" in have:
        return ": its query, key and value projections are fused into one site, 'attn.qkv'"
    if name in ("ffn.gate", "ffn.up") and "ffn.gate_up" in have:
        return ": its gate and up projections are fused into one site, 'ffn.gate_up'"
    if name.startswith("ffn.") and "ffn" in have and not any(site.startswith("ffn.") for site in have):
        return ": its feed-forward is a mixture of experts without single linears"
    if name == "ffn.gate":
        return ": its feed-forward has no gate"
    return ""


def _suggest(name: str, have: list[str]) -> str:
    for wanted, instead in (("attn.", "attn.qkv"), ("ffn.", "ffn.gate_up"), ("ffn.", "ffn.up"), ("ffn.", "ffn")):
        if name.startswith(wanted) and instead in have:
            return instead
    return have[0]


def _refuse_missing_layers(sites: SiteMap, chosen: list[str], indices: list[int]) -> None:
    for name in chosen:
        lacking = [i for i in indices if name != "embed" and name not in sites.layers[i]]
        if lacking:
            has = [i for i in range(len(sites.layers)) if name in sites.layers[i]]
            raise SiteError(f"layers {lacking} have no site '{name}'", allowed=has, mend=f"layers: {has}")


def _layer_indices(layers: Layers, count: int | None) -> list[int]:
    """Sorted layer indices; with ``count`` None only the form of the selection is checked."""
    allowed = ["all", "an index", "a list of indices", "'8-15'", "'last:8'"]
    if isinstance(layers, bool):
        raise SiteError(f"layers {layers!r} cannot be read", allowed=allowed)
    if isinstance(layers, int):
        wanted = [layers]
    elif isinstance(layers, str):
        first, dash, last = layers.partition("-")
        if layers == "all":
            return list(range(count or 0))
        if layers.startswith("last:") and layers[5:].isdigit() and int(layers[5:]) > 0:
            wanted = list(range(-int(layers[5:]), 0))
        elif first.isdigit() and not dash:
            wanted = [int(first)]
        elif first.isdigit() and last.isdigit() and int(first) <= int(last):
            wanted = list(range(int(first), int(last) + 1))
        else:
            raise SiteError(f"layers '{layers}' cannot be read", allowed=allowed)
    else:
        wanted = list(layers)
    if not wanted:
        raise SiteError("layers is empty: no layer would be adapted", allowed=allowed)
    if count is None:
        return wanted
    outside = [index for index in wanted if not -count <= index < count]
    if outside:
        raise SiteError(
            f"the model has {count} layers, so there is no layer {', '.join(map(str, outside))}",
            allowed=[f"0-{count - 1}", f"last:{count}"],
        )
    return sorted({index % count for index in wanted})
