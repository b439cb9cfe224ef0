"""``llm-adapters sites``: where adapters can stand in a model, and what a method would train there."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import Annotated, Any

import typer

from llm_adapters.cli.options import Set

NAME = "sites"


def command(
    model: Annotated[str, typer.Argument(help="A hub id, a folder, a .gguf file, or smollm2-135m-instruct.")],
    method: Annotated[str | None, typer.Option("--method", "-m", help="Show what this method would train.")] = None,
    set_: Set = None,
) -> None:
    """Show a model's sites; with --method, what it would train where. Loads no weights.

    Fields of the method are set as --set rank=16 or --set sites=[attn.q,attn.v].
    """
    from llm_adapters.adapters.base import Base
    from llm_adapters.adapters.method import SiteMethod, parse_method
    from llm_adapters.config.files import override
    from llm_adapters.model import empty_model, find_sites

    recipe = parse_method(override({"method": method}, set_ or [])) if method else None
    bare = empty_model(model)
    sites = find_sites(bare)
    total = sum(parameter.numel() for parameter in bare.parameters())
    typer.echo(f"{type(bare).__name__} ({sites.model_type}): {len(sites.layers)} layers, {total:,} parameters\n")
    base = Base(bare, sites)
    trained: dict[str, int] = defaultdict(int)
    if isinstance(recipe, SiteMethod):
        for site in recipe.chosen(base):
            trained[_pattern(site)] += recipe.size(site)
    groups: dict[str, list[Any]] = defaultdict(list)
    for site in sites:
        groups[_pattern(site)].append(site)
    wide = max(map(len, groups))
    for pattern, members in groups.items():
        first = members[0]
        layers = "" if first.layer is None else f"layers {_ranges([site.layer for site in members])}"
        adds = f"   + {trained[pattern]:,}" if trained[pattern] else ""
        typer.echo(
            f"  {first.name:12} {pattern:{wide}}  {first.in_features:>6} → {first.out_features:<6} {layers}{adds}"
        )
    if recipe is not None:
        count = recipe.count(base)
        typer.echo(f"\n{method} trains {count:,} parameters, {count / total:.3%} of the base")


def _pattern(site: Any) -> str:
    """The module path with the layer's number left open."""
    return site.path if site.layer is None else site.path.replace(f".{site.layer}", ".*", 1)


def _ranges(layers: list[int]) -> str:
    """``0-5, 8`` for [0, 1, 2, 3, 4, 5, 8]."""
    breaks = [i for i, (a, b) in enumerate(pairwise(layers), start=1) if b != a + 1]
    runs = [layers[a:b] for a, b in zip([0, *breaks], [*breaks, len(layers)], strict=True)]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
