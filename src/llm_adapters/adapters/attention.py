"""Prefixes in attention: keys and values before the cache's, a wider mask, a longer ALiBi bias."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from llm_adapters.adapters.routing import LayerPrefix, Stack
from llm_adapters.errors import MethodError, RouteError
from llm_adapters.model.exceptions import family
from llm_adapters.model.packing import PACKED, WIDENED, Documents, Unguarded

if TYPE_CHECKING:
    from llm_adapters.adapters.engine import Engine

_CACHE_NAMES = ("past_key_values", "layer_past", "past_key_value")


class PrefixedCache:
    """A cache that answers with the prefix before what it holds; the cache itself never sees the prefix.

    So positions, lengths, sliding windows and cropping of the real cache stay as the model expects them.
    ``length`` cuts off slots that a static cache has not filled yet; None where the mask hides them.
    """

    def __init__(self, inner: Any, prefix: LayerPrefix, length: int | None) -> None:
        self._inner, self._prefix, self._length = inner, prefix, length

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store keys and values (B, H, T, d) in the real cache, if there is one; return them after the prefix."""
        if self._inner is not None:
            keys, values = self._inner.update(keys, values, *args, **kwargs)
            place = args[0] if args else kwargs.get("layer_idx")
            layer = self._inner.layers[place] if isinstance(place, int) and hasattr(self._inner, "layers") else None
            behind = getattr(layer, "behind", None)
            if behind is not None:  # it has room before its columns, so that nothing need be copied
                joined: tuple[Tensor, Tensor] = behind(self._prefix.keys.to(keys), self._prefix.values.to(values))
                return joined
        if self._length is not None:
            keys, values = keys[:, :, : self._length], values[:, :, : self._length]
        return (
            torch.cat([self._prefix.keys.to(keys), keys], dim=2),
            torch.cat([self._prefix.values.to(values), values], dim=2),
        )

    def get_seq_length(self, *args: Any, **kwargs: Any) -> int:
        """Length of the real cache."""
        return 0 if self._inner is None else self._inner.get_seq_length(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class UntracedCache(PrefixedCache):
    """The same, for a layer that is compiled by itself: what is returned depends on the layer and on the pass."""

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """As for a layer that is not compiled."""
        return super().update(keys, values, *args, **kwargs)


class AttentionHook:
    """Puts the prefix of the pass under way before one layer's keys and values."""

    def __init__(self, engine: Engine, layer: int, module: nn.Module) -> None:
        self.engine, self.layer = engine, layer
        self.names = list(inspect.signature(module.forward).parameters)
        accepted = [name for name in _CACHE_NAMES if name in self.names]
        if not accepted:
            raise MethodError(
                f"{type(module).__name__} takes no key–value cache, so a prefix cannot enter it",
                mend="use lora, series or parallel",
            )
        self.cache_name = accepted[0]
        self.true_hides = family(engine.base.sites.model_type).mask_true_hides

    def before(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        return self._untraced(args, kwargs) if self.engine.layers_compiled else self._prefixed(args, kwargs)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # or else every layer is compiled anew
    def _untraced(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        return self._prefixed(args, kwargs)

    def _prefixed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        current = self.engine.current
        prefix = current.prefix.get(self.layer) if current is not None else None
        if current is None or prefix is None:
            return None
        # Decoder layers pass some of these by position (BLOOM, MPT): name them all, then change them.
        named = {**dict(zip(self.names, args, strict=False)), **kwargs}
        hidden = named["hidden_states"]
        inner, queries, mask = named.get(self.cache_name), hidden.shape[1], named.get("attention_mask")
        # Without a mask the model counts on causal attention over what the cache has been given.
        length = None if mask is not None else queries + (0 if inner is None else int(inner.get_seq_length(self.layer)))
        documents: Documents | None = named.get("documents")
        if prefix.seen is not None:
            named["virtual"] = self._seen(prefix.seen, documents)
        elif documents is not None and mask is None and prefix.visible is None and self._packs():
            # All see all virtual tokens.
            named["virtual"] = Unguarded([[(0, prefix.keys.shape[2])] * len(row) for row in documents])
        else:
            named["attention_mask"] = self._mask(mask, prefix, length, queries, hidden.device)
        if named.get("alibi") is not None:
            named["alibi"] = _longer_alibi(named["alibi"], prefix, current.batch)
        cache = UntracedCache if self.engine.layers_compiled else PrefixedCache
        named[self.cache_name] = cache(inner, prefix, length)
        return (), named

    def _packs(self) -> bool:
        decoder: Any = self.engine.base.sites.decoder
        return decoder.config._attn_implementation in (PACKED, WIDENED)

    def _seen(self, seen: Mapping[Stack, tuple[int, int]], documents: Documents | None) -> list[list[tuple[int, int]]]:
        """The virtual tokens (from, to) that each document of the one row sees."""
        current = self.engine.current
        assert current is not None
        assert current.spans is not None
        if documents is None:
            raise RouteError(
                "a route by spans needs packed documents", mend="run the model inside packing(), with documents=[…]"
            )
        return [[seen.get(stack, (0, 0)) for stack in current.spans.stacks_of(documents[0])]]

    def _mask(
        self, mask: Tensor | None, prefix: LayerPrefix, length: int | None, queries: int, device: torch.device
    ) -> Tensor | None:
        current = self.engine.current
        assert current is not None
        width = prefix.keys.shape[2]  # layers may have prefixes of different lengths
        for known, known_prefix, known_queries, widened in current.masks:
            same = known_prefix.visible is prefix.visible and known_prefix.keys.shape[2] == width
            if known is mask and same and known_queries == queries:
                return widened
        full = mask
        if length is not None and (queries > 1 or prefix.visible is not None):
            full = torch.ones(queries, length, dtype=torch.bool, device=device).tril(length - queries)[None, None]
        widened = None if full is None else self._widen(full, prefix)
        current.masks.append((mask, prefix, queries, widened))
        return widened

    def _widen(self, mask: Tensor, prefix: LayerPrefix) -> Tensor:
        """Columns for the prefix on the left of a (B or 1, H or 1, Q, K) mask."""
        if mask.dim() != 4:
            raise MethodError(
                f"prefixes need a 4-dimensional attention mask; this attention uses {mask.dim()} dimensions",
                mend="load the model with attn_implementation='sdpa' or 'eager'",
            )
        batch, length = prefix.keys.shape[0], prefix.keys.shape[2]
        heads, queries = mask.shape[1:3]
        if prefix.visible is None:
            seen = torch.ones(mask.shape[0], 1, 1, length, dtype=torch.bool, device=mask.device)
        else:
            seen = prefix.visible.to(mask.device)[:, None, None]
            mask = mask.expand(batch, -1, -1, -1)
        seen = seen.expand(-1, heads, queries, -1)
        if mask.dtype == torch.bool:
            return torch.cat([~seen if self.true_hides else seen, mask], dim=-1)
        hidden = torch.finfo(mask.dtype).min
        columns = torch.zeros(seen.shape, dtype=mask.dtype, device=mask.device).masked_fill(~seen, hidden)
        return torch.cat([columns, mask], dim=-1)


def _longer_alibi(alibi: Tensor, prefix: LayerPrefix, batch: int) -> Tensor:
    """BLOOM's bias (B·H, 1, K) with columns for P virtual tokens at positions −P … −1."""
    length, heads = prefix.keys.shape[2], alibi.shape[0] // batch
    positions = torch.arange(-length, 0, device=alibi.device)
    bias = alibi_slopes(heads).to(alibi.device)[:, None, None] * positions
    return torch.cat([bias.repeat(batch, 1, 1).to(alibi.dtype), alibi], dim=-1)


def alibi_slopes(heads: int) -> Tensor:
    """Slopes (H,) of ALiBi (Press et al. 2022, section 3), also for a number of heads that is no power of two."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2 ** (-4 * (2 * i + 1) / power) for i in range(heads - power)]
    return torch.tensor(slopes, dtype=torch.float32)
