"""Sites: the named places in a decoder where an adapter can stand, found by structure.

No class per architecture: the decoder stack is the ModuleList as long as ``num_hidden_layers``,
sublayers and linears follow from the alias table in :mod:`llm_adapters.model.roles`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from llm_adapters.errors import ModelError
from llm_adapters.model.roles import LINEARS, SITES, SUBLAYERS


@dataclass(frozen=True, eq=False)
class Site:
    """One named place in the model.

    Attributes:
        name: ``attn.q``, ``ffn``, ``block``, ``embed``, …
        layer: index of the decoder layer; None for ``embed``.
        path: name of the module whose output is the site's output.
        input: the module whose input is the site's input.
        output: the module whose output is the site's output. It differs from ``input`` where a sublayer
            is no module of its own (OPT), or adds the residual by itself (BLOOM).
        in_features, out_features: widths of input and output.
    """

    name: str
    layer: int | None
    path: str
    input: nn.Module
    output: nn.Module
    in_features: int
    out_features: int

    @property
    def is_linear(self) -> bool:
        """Whether the site is one linear map, so that a linear form can be merged into its weight."""
        return self.name in LINEARS


@dataclass(frozen=True, eq=False)
class SiteMap:
    """All sites of a model.

    Attributes:
        decoder: the module that owns the layers and takes ``input_ids``, ``attention_mask``, ``position_ids``.
        embed: the token embedding site.
        layers: for every decoder layer, its sites by name.
        width: the hidden size.
        model_type: ``config.model_type``.
        blocks: the decoder layers.
    """

    decoder: nn.Module
    embed: Site
    layers: tuple[dict[str, Site], ...]
    width: int
    model_type: str
    blocks: tuple[nn.Module, ...]

    def __iter__(self) -> Iterator[Site]:
        yield self.embed
        for sites in self.layers:
            yield from sites.values()

    def names(self) -> list[str]:
        """Names of the sites that the model has, in the canonical order."""
        have = {"embed"}.union(*self.layers)
        return [name for name in SITES if name in have]


def find_sites(model: Any) -> SiteMap:
    """Map the sites of a decoder language model.

    Raises:
        ModelError: the model is an encoder–decoder, has no attention (Mamba-like), or an unknown structure.
    """
    config = getattr(model, "config", None)
    if config is None:
        raise ModelError(f"{type(model).__name__} has no config: a transformers model is needed")
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{type(model).__name__} is an encoder–decoder model; adapters go into decoder-only language models",
            mend="use a causal language model (AutoModelForCausalLM)",
        )
    text = config.get_text_config(decoder=True)
    path, stack = _decoder_stack(model, int(text.num_hidden_layers))
    parent = model.get_submodule(path.rpartition(".")[0])
    width = int(text.hidden_size)
    layers = tuple(_layer_sites(block, i, f"{path}.{i}", width) for i, block in enumerate(stack))
    # RWKV calls its recurrence "attention", but has no heads.
    if not any("attn" in sites for sites in layers) or not hasattr(text, "num_attention_heads"):
        _refuse_structure(model, path, stack[0])
    embed = model.get_input_embeddings()
    embed_path = next(name for name, module in model.named_modules() if module is embed)
    embed_width = int(embed.weight.shape[1])
    return SiteMap(
        decoder=parent,
        embed=Site("embed", None, embed_path, embed, embed, embed_width, embed_width),
        layers=layers,
        width=width,
        model_type=str(text.model_type),
        blocks=tuple(stack),
    )


def _decoder_stack(model: nn.Module, length: int) -> tuple[str, nn.ModuleList]:
    lists = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    fitting = [name for name, m in lists.items() if len(m) == length and _named(m[0], SUBLAYERS["attn"])]
    fitting = fitting or [n for n, m in lists.items() if len(m) == length and len(list(m[0].children())) > 1]
    if not fitting:
        found = ", ".join(f"{name} ({len(m)})" for name, m in lists.items()) or "none"
        raise ModelError(
            f"{type(model).__name__} has no list of {length} decoder layers; lists found: {found}",
            mend="if this is a decoder language model, its layers must stand in one ModuleList",
        )
    name = min(fitting, key=lambda candidate: candidate.count("."))
    return name, lists[name]


def _refuse_structure(model: nn.Module, path: str, block: nn.Module) -> None:
    children = ", ".join(f"{name} ({type(child).__name__})" for name, child in block.named_children())
    raise ModelError(
        f"{type(model).__name__}: no layer of '{path}' has an attention sublayer; layer 0 has: {children}",
        allowed=[alias for row in SUBLAYERS.values() for alias in row],
        mend="models without attention (Mamba, RWKV) are not supported; for a new name add it to model/roles.py",
    )


def _layer_sites(block: nn.Module, layer: int, path: str, width: int) -> dict[str, Site]:
    """The sites of one decoder layer, in the order in which the input meets them."""
    attn, ffn = (_named(block, SUBLAYERS[role]) for role in ("attn", "ffn"))
    sites: dict[str, Site] = {}
    for role, names in LINEARS.items():
        kind = role.partition(".")[0]
        owner, name = (attn if kind == "attn" else ffn), ""
        if owner is None and kind == "ffn":
            owner = block  # OPT, XGLM, BioGPT: the feed-forward linears stand in the layer itself
        elif owner is not None:
            name = _name_of(block, owner)
        found = _linear(owner, names, deep=kind == "attn") if owner is not None else None
        if found is not None:
            sub, module = found
            full = ".".join(part for part in (path, name, sub) if part)
            sites[role] = Site(role, layer, full, module, module, *linear_features(module))
    for role, sublayer, last in (("attn", attn, "attn.o"), ("ffn", ffn, "ffn.down")):
        if sublayer is not None:
            exit_ = sites[last] if _adds_residual(sublayer) and last in sites else None
            exit_path = exit_.path if exit_ else f"{path}.{_name_of(block, sublayer)}"
            exit_module = exit_.output if exit_ else sublayer
            sites[role] = Site(role, layer, exit_path, sublayer, exit_module, width, width)
    if ffn is None and {"ffn.up", "ffn.down"} <= sites.keys():
        first, last_site = sites["ffn.up"], sites["ffn.down"]
        sites["ffn"] = Site("ffn", layer, last_site.path, first.input, last_site.output, width, width)
    sites["block"] = Site("block", layer, path, block, block, width, width)
    return sites


def _named(block: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    children = dict(block.named_children())
    return next((children[name] for name in names if name in children), None)


def _name_of(block: nn.Module, child: nn.Module) -> str:
    return next(name for name, module in block.named_children() if module is child)


def _linear(owner: nn.Module, names: tuple[str, ...], *, deep: bool) -> tuple[str, nn.Module] | None:
    """The linear map under one of ``names``: a direct child, or (``deep``) of a child that is no list of experts."""
    found = {n: m for n, m in owner.named_children() if is_linear(m)}
    if deep:
        for child_name, child in owner.named_children():
            if not isinstance(child, nn.ModuleList):
                found |= {f"{child_name}.{n}": m for n, m in child.named_children() if is_linear(m)}
    by_last = {name.rpartition(".")[2]: (name, module) for name, module in reversed(found.items())}
    return next((by_last[name] for name in names if name in by_last), None)


def is_linear(module: nn.Module) -> bool:
    """Whether ``module`` is a linear map: nn.Linear, GPT-2's Conv1D, or a quantised stand-in for either."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D" or _declares_features(module)


def _declares_features(module: nn.Module) -> bool:
    features = (getattr(module, "in_features", None), getattr(module, "out_features", None))
    return all(isinstance(size, int) for size in features) and not list(module.children())


def linear_features(module: Any) -> tuple[int, int]:
    """``(in_features, out_features)``; Conv1D stores its weight as (in, out)."""
    if type(module).__name__ == "Conv1D":
        rows, columns = module.weight.shape
        return int(rows), int(columns)
    return int(module.in_features), int(module.out_features)


def _adds_residual(module: nn.Module) -> bool:
    return "residual" in inspect.signature(module.forward).parameters
