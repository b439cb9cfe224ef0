"""What a method may ask of the frozen base while it builds its parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from llm_adapters.adapters.forms import KVShape
from llm_adapters.adapters.forms.key_values import KeyValue
from llm_adapters.errors import MethodError, UserError
from llm_adapters.model.exceptions import family
from llm_adapters.model.packing import PACKED, WIDENED
from llm_adapters.model.quantised_linears import quantization_of
from llm_adapters.model.row_blocks import BLOCKWISE
from llm_adapters.model.sites import SiteMap


@dataclass(frozen=True, eq=False)
class Base:
    """A frozen base model as methods see it.

    Attributes:
        model: the transformers model.
        sites: its sites.
        tokenizer: needed only to initialise virtual tokens from text.
    """

    model: Any
    sites: SiteMap
    tokenizer: Any = None

    @property
    def token_width(self) -> int:
        """Width of an input embedding."""
        return self.sites.embed.out_features

    @property
    def device(self) -> torch.device:
        """Where the input embedding lives."""
        return self._table.device

    @cached_property
    def kv_shapes(self) -> dict[int, KVShape]:
        """Shape of the key–value cache of every layer that has one, read from a pass over one token.

        Raises:
            MethodError: this base has no cache of keys and values that a prefix could join.
        """
        model_type, config = self.sites.model_type, self.model.config.get_text_config(decoder=True)
        flag = family(model_type).no_prefix_with
        if flag and getattr(config, flag, False):
            raise MethodError(
                f"keys and values cannot be put before the input of a {model_type} model with {flag}=True",
                mend="use lora, series or parallel",
            )
        self.refuse_unmasked_attention()
        ids = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        with self._evaluating():
            found = self.key_values_of(input_ids=ids)
        if not found:
            raise MethodError(
                f"no layer of this {model_type} model keeps keys and values that a prefix could join",
                mend="use lora, series or parallel",
            )
        return {i: KVShape(kv.keys.shape[1], kv.keys.shape[2], kv.values.shape[2]) for i, kv in found.items()}

    def refuse_unmasked_attention(self) -> None:
        """Prefixes widen the attention mask, so there must be one.

        Raises:
            MethodError: the attention implementation takes no mask of its own.
        """
        kind = getattr(self.model.config, "_attn_implementation", "eager")
        if kind not in ("sdpa", "eager", PACKED, WIDENED, BLOCKWISE):
            raise MethodError(
                f"prefix and prompt methods do not run with attn_implementation='{kind}'",
                allowed=["sdpa", "eager"],
                mend="load the model with attn_implementation='sdpa'",
            )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of input embeddings."""
        return self._table.dtype

    @cached_property
    def quantization(self) -> str | None:
        """The kind of its quantised linear maps, or None."""
        return quantization_of(self.model)

    @property
    def _table(self) -> Tensor:
        """The weight of the input embedding."""
        weight = self.sites.embed.output.weight
        assert isinstance(weight, Tensor)
        return weight

    def key_values_of(self, **inputs: Tensor) -> dict[int, KeyValue]:
        """Keys (T, H, d) and values that the decoder gives to one row, for every attention layer that caches them.

        Goes round the hooks of the decoder itself: no route is resolved, no position moved.
        """
        # Without the config every layer keeps all its tokens; only hybrids need to be told their layers' kinds.
        hybrid = not all("attn" in layer for layer in self.sites.layers)
        config = self.model.config.get_text_config(decoder=True)
        cache = DynamicCache(config=config) if hybrid else DynamicCache()
        try:
            self.sites.decoder.forward(past_key_values=cache, use_cache=True, **inputs)
        except UserError:
            raise
        except (TypeError, ValueError, IndexError, AttributeError, NotImplementedError) as failure:
            raise MethodError(
                f"a {self.sites.model_type} model has no key–value cache that a prefix could join ({failure})",
                mend="use lora, series or parallel",
            ) from failure
        found = {}
        for layer, (kept, sites) in enumerate(zip(cache.layers, self.sites.layers, strict=False)):
            keys, values = getattr(kept, "keys", None), getattr(kept, "values", None)
            if "attn" in sites and isinstance(keys, Tensor) and isinstance(values, Tensor) and keys.dim() == 4:
                found[layer] = KeyValue(keys[0].transpose(0, 1), values[0].transpose(0, 1))
        return found

    def key_values(self, ids: Tensor) -> dict[int, KeyValue]:
        """Keys and values that the base gives to ``ids`` (P,)."""
        with self._evaluating():
            return self.key_values_of(input_ids=ids[None].to(self.device))

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Without gradients, dropout and checkpointing."""
        before = [(module, module.training) for module in self.sites.decoder.modules()]
        self.sites.decoder.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            for module, training in before:
                module.training = training

    def embeddings(self, ids: Tensor) -> Tensor:
        """The input embeddings (P, D) of ``ids`` (P,), as the first layer receives them from the embedding."""
        with torch.no_grad():
            return self.sites.embed.output(ids.to(self.device))

    def random_ids(self, tokens: int) -> Tensor:
        """``tokens`` ids (P,) of the vocabulary, drawn by torch's seed."""
        return torch.randint(self._table.shape[0], (tokens,))

    def text_ids(self, text: str, tokens: int) -> Tensor:
        """``text`` as exactly ``tokens`` ids (P,): repeated when it is shorter, cut when it is longer."""
        if self.tokenizer is None:
            raise MethodError(
                "initialising from text needs the tokenizer", mend="attach(model, method, tokenizer=tokenizer)"
            )
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise MethodError(f"init_text {text!r} gives no token", given=text)
        return torch.tensor((ids * -(-tokens // len(ids)))[:tokens])
