"""The engine of one model: installs the hooks, and prepares every forward pass for them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from llm_adapters.adapters.adapter import Adapter
from llm_adapters.adapters.attention import AttentionHook
from llm_adapters.adapters.base import Base
from llm_adapters.adapters.checkpointing import remember_pass_in_checkpoints, without_checkpointing
from llm_adapters.adapters.forms import Form, VirtualTokens
from llm_adapters.adapters.forms.key_values import KeyValue
from llm_adapters.adapters.insertion import SiteHook
from llm_adapters.adapters.prefixes import StackPrefix, join_rows, join_spans, stack_prefix
from llm_adapters.adapters.quantised_base import QuantisedBase
from llm_adapters.adapters.routing import Pass, Route, Rows, Spans, Stack, resolve
from llm_adapters.adapters.streams import Stream
from llm_adapters.errors import MethodError, UserError
from llm_adapters.model.exceptions import family


class Engine:
    """Hooks and state of the adapters attached to one model.

    Attributes:
        base: the frozen base.
        quantised: its quantised linear maps.
        adapters: the attached adapters by name, in the order of attaching.
        enabled: names that act when no route is given.
        route: the route in force, or None.
        current: what the hooks need to know about the forward pass under way; None outside of one.
        streams: by adapter, random numbers of its own for its forms; where there is none, they draw torch's.
        layers_compiled: whether the layers are compiled one by one, those of one kind together.
    """

    def __init__(self, base: Base) -> None:
        self.base = base
        self.quantised = QuantisedBase(base.model)
        self.adapters: dict[str, Adapter] = {}
        self.enabled: dict[str, None] = {}
        self.merged: dict[str, list[tuple[Any, Tensor]]] = {}
        self.route: Route | None = None
        self.current: Pass | None = None
        self.streams: Mapping[str, Stream] = {}
        self.layers_compiled = False
        self._handles: list[Any] = []
        self._prefixes: WeakKeyDictionary[Any, dict[Stack, StackPrefix]] = WeakKeyDictionary()
        self._decoder_names = list(inspect.signature(base.sites.decoder.forward).parameters)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle takes along: all but the prefixes of caches that stay behind, and compiled layers."""
        return {**self.__dict__, "_prefixes": None, "layers_compiled": False}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= {**state, "_prefixes": WeakKeyDictionary()}

    @property
    def batch(self) -> int:
        """Rows of the pass under way."""
        assert self.current is not None, "rows are routed only inside a forward pass of the model"
        return self.current.batch

    def rows_of(self, adapter: str) -> tuple[bool, Rows]:
        """Whether ``adapter`` takes part in the pass under way, and on which rows."""
        if self.current is None:  # a part of the model is called by itself
            return adapter in self.enabled and adapter not in self.merged, None
        if adapter not in self.current.rows or adapter in self.merged:
            return False, None
        return True, self.current.rows[adapter]

    def drawing(self, adapter: str, form: Form) -> AbstractContextManager[None]:
        """What a form runs in, so that it draws from its adapter's own stream, if that has one."""
        stream = self.streams.get(adapter)
        if stream is None or self.current is None or not form.draws:
            return nullcontext()
        return stream.drawing(self.current.drawn, form)

    def rebuild(self) -> None:
        """Install exactly the hooks that the attached adapters need."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._prefixes.clear()
        hooks: dict[tuple[int | None, str], SiteHook] = {}
        for name, adapter in self.adapters.items():
            for placed in adapter.placed():
                key = (placed.site.layer, placed.site.name)
                hook = hooks.setdefault(key, SiteHook(self, placed.site))
                hook.add(name, placed.insertion, placed.form)
        if not self.adapters:
            return
        decoder = self.base.sites.decoder
        self._handles.append(decoder.register_forward_pre_hook(self._enter, with_kwargs=True))
        self._handles.append(decoder.register_forward_hook(self._leave, always_call=True))
        # Outer sites first: their hooks nest around those of the linears inside.
        for hook in hooks.values():
            self._handles += hook.install()
        self._handles += self.quantised.hooks()
        if any(adapter.virtual_tokens for adapter in self.adapters.values()):
            self._refuse_lost_tokens()
            for layer in self.base.kv_shapes:
                self._handles.append(self._hook_attention(layer))

    def _hook_attention(self, layer: int) -> Any:
        module = self.base.sites.layers[layer]["attn"].input
        return module.register_forward_pre_hook(AttentionHook(self, layer, module).before, with_kwargs=True)

    def _refuse_lost_tokens(self) -> None:
        """What comes after virtual tokens sees them through keys and values alone; no other state carries them on."""
        parts = (part for adapter in self.adapters.values() for part in adapter.parts())
        lacking = set(range(len(self.base.sites.layers))) - self.base.kv_shapes.keys()
        if lacking and any(isinstance(part, VirtualTokens) for part in parts):
            raise MethodError(
                f"layers {sorted(lacking)} of this {self.base.sites.model_type} model keep no keys and values of their "
                "own (they are recurrent, or share another layer's), so virtual tokens would be lost there",
                mend="use prefix, lora, series or parallel",
            )

    # -- one forward pass -------------------------------------------------------------------------

    def _enter(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before the decoder: resolve the route, compute the prefixes, move the positions behind them."""
        named = {**dict(zip(self._decoder_names, args, strict=False)), **kwargs}
        inputs = named.get("inputs_embeds")
        inputs = named["input_ids"] if inputs is None else inputs
        if getattr(decoder, "_is_replica", False):
            raise UserError(
                "the model runs in torch.nn.DataParallel, whose copies share one adapter state",
                mend="one process a GPU (torchrun, accelerate launch), or CUDA_VISIBLE_DEVICES=0",
            )
        self.current = None
        route = tuple(self.enabled) if self.route is None else self.route
        current = resolve(route, inputs.shape[0], inputs.device, inputs.shape[1])
        if decoder.training:
            remember_pass_in_checkpoints(self)
        lengths = {stack: self._virtual_tokens(stack) for stack in current.stacks}
        changed = None
        if any(lengths.values()):
            self.base.refuse_unmasked_attention()
            cache = named.get("past_key_values")
            computed = self._stack_prefixes(current, cache)
            join = join_rows if current.spans is None else join_spans
            current.prefix, shift = join(current, computed, inputs.device)
            if "position_ids" in self._decoder_names:
                named["position_ids"] = self._positions(named, inputs, shift)
            changed = (), named
        self.current = current
        return changed

    def _positions(self, named: dict[str, Any], inputs: Tensor, shift: Tensor) -> Tensor:
        """Position ids (B, T) behind ``shift`` (B or 1, 1 or T) virtual tokens: as given, or else counted.

        A row with virtual tokens counts its real tokens only, so that padding does not come between; a row without
        keeps the positions that the base by itself would give it.
        """
        given, mask, cache = (named.get(key) for key in ("position_ids", "attention_mask", "past_key_values"))
        if given is not None:
            return given + shift
        tokens = inputs.shape[1]
        past = 0 if cache is None else int(cache.get_seq_length())
        columns = torch.arange(past, past + tokens, device=inputs.device)[None]
        if not isinstance(mask, Tensor) or mask.dim() != 2:
            return columns + shift
        real = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -tokens:]
        if family(self.base.sites.model_type).positions_from_mask:
            return real + shift
        return torch.where(shift > 0, real + shift, columns)

    def _leave(self, _decoder: nn.Module, _args: Any, _output: Any) -> None:
        self.current = None

    def routed_stacks(self) -> list[Stack]:
        """The stacks that the route in force names; none without a route."""
        if self.route is None:
            return []
        if isinstance(self.route, Spans):
            return [stack for stack, _ in self.route.spans]
        return self.route if isinstance(self.route, list) else [self.route]

    def _virtual_tokens(self, stack: Stack) -> int:
        return sum(self.adapters[name].virtual_tokens for name in stack)

    def _stack_prefixes(self, current: Pass, cache: Any) -> dict[Stack, StackPrefix]:
        """The prefix of every stack; while decoding with a cache, those computed when it was empty."""
        decoding = cache is not None and not torch.is_grad_enabled() and cache.get_seq_length() > 0
        known = self._prefixes.get(cache, {}) if decoding else {}
        found = {
            stack: known[stack]
            if stack in known
            else stack_prefix([self.adapters[name] for name in stack], partial(self._virtual_pass, stack))
            for stack in current.stacks
        }
        if cache is not None and not torch.is_grad_enabled():
            self._prefixes[cache] = {**known, **found}
        return found

    def _virtual_pass(self, stack: Stack, prefix: StackPrefix, embeddings: Tensor) -> dict[int, KeyValue]:
        """The keys and values that the model gives to virtual tokens (P, D) standing behind ``prefix``.

        Virtual tokens come before everything else, so what later tokens see of them – their keys and values –
        depends on them alone: one pass over P tokens serves every row, document and decoding step.
        """
        alone = resolve(stack, 1, embeddings.device)
        alone.prefix, shift = join_rows(alone, {stack: prefix}, embeddings.device)
        named: dict[str, Any] = {"inputs_embeds": embeddings[None].to(self.base.dtype)}
        if "position_ids" in self._decoder_names:
            named["position_ids"] = torch.arange(embeddings.shape[0], device=embeddings.device)[None] + shift
        # Compiled layers would be compiled anew, one after the other, for a cache that is being filled.
        plain = plain_layers() if self.layers_compiled else nullcontext()
        with self.during(alone), without_checkpointing(self), plain:
            return self.base.key_values_of(**named)

    @contextmanager
    def during(self, current: Pass) -> Iterator[None]:
        """Let the hooks act as in ``current``, for a pass that does not come through the decoder's hooks."""
        before, self.current = self.current, current
        try:
            yield
        finally:
            self.current = before

    def suspended(self) -> AbstractContextManager[None]:
        """Let no adapter act."""
        return self.during(Pass(1, {}, {(): None}))


@contextmanager
def plain_layers() -> Iterator[None]:
    """While it lasts, what is compiled runs as it was written."""
    with torch.compiler.set_stance("force_eager"):
        yield
