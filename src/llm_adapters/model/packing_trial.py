"""Whether a model can be packed, and whether its documents can share a beginning: both are tried."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from llm_adapters.model import flash_kernel, packed_flash
from llm_adapters.model.packing import Documents, packing
from llm_adapters.model.quantised_linears import dequantised, quantised_linears, says_its_weight
from llm_adapters.model.sites import SiteMap

PROBE = ((5, 3, 4), (6, 6))
"""The documents of the two rows on which packing is tried."""

PROBE_SHARED, BEGINNINGS = ((8, 3, 4),), ((0, 3, 3),)
"""Those of the row on which a shared beginning is tried, and how long that is."""


def can_pack(model: Any, sites: SiteMap) -> bool:
    """Whether documents packed into rows give this model's hidden states what each alone gives them; it is tried.

    State that is carried on between tokens (convolutions, recurrence), positions that cannot be given, or attention
    that does not come through transformers' interface: all show in the numbers of a few tokens.
    """
    decoder: Any = sites.decoder
    config = decoder.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if config._attn_implementation != "sdpa" or not kinds <= {"full_attention", "sliding_attention"}:
        return False
    if "position_ids" not in inspect.signature(decoder.forward).parameters:
        return False
    packed_flash.try_for(model)
    # A kernel that passed its trial and fails in this model is no reason not to pack.
    return _agrees(model, decoder, PROBE) or (flash_kernel.give_up() and _agrees(model, decoder, PROBE))


def can_share(model: Any, sites: SiteMap) -> bool:
    """Whether a model that can pack also takes documents that share a beginning; it is tried.

    Not one that masks by itself, and not one whose tokens see those behind them.
    """
    return _agrees(model, sites.decoder, PROBE_SHARED, BEGINNINGS)


@torch.no_grad()
def _agrees(model: Any, decoder: Any, documents: Documents, beginnings: Documents | None = None) -> bool:
    """Whether packed documents, each behind so many first tokens of its row, get what each alone gets."""
    device = model.get_input_embeddings().weight.device
    if device.type == "meta":  # no numbers to try it with: what the structure allows
        return True
    width = sum(documents[0])
    ids = torch.arange(len(documents) * width, device=device).view(-1, width)
    ids %= model.get_input_embeddings().weight.shape[0]
    begins = [[0] * len(row) for row in documents] if beginnings is None else beginnings
    positions = [
        [begin + place for begin, length in zip(*pair, strict=True) for place in range(length)]
        for pair in zip(begins, documents, strict=True)
    ]
    was_training, quantised = model.training, quantised_linears(decoder)
    silent = [module for module in quantised if not says_its_weight(module)]
    shared = {} if beginnings is None else {"beginnings": beginnings}

    def states(ids: Tensor, **options: Any) -> Tensor:
        """Hidden states; through maps that do not say their weights as in training, where other kernels may serve."""
        given = {"input_ids": ids}
        if silent:
            given = {"inputs_embeds": model.get_input_embeddings()(ids).detach().requires_grad_()}
        with torch.set_grad_enabled(bool(silent)):
            found: Tensor = decoder(**given, use_cache=False, **options).last_hidden_state
        return found.detach()

    model.eval()
    for module in silent:
        module.train()
    try:
        with _plain(module for module in quantised if says_its_weight(module)):
            with packing(decoder):
                places = torch.tensor(positions, device=device)
                packed = states(ids, position_ids=places, documents=documents, **shared)
            alone = [
                states(torch.cat([row[:begin], part])[None])[0, begin:]
                for row, own, lengths in zip(ids, begins, documents, strict=True)
                for begin, part in zip(own, row.split(list(lengths)), strict=True)
            ]
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError):
        return False
    finally:
        model.train(was_training)
    expected = torch.cat(alone).view_as(packed).float()
    # Half precision rounds otherwise in other shapes; so may quantised maps.
    exact = packed.dtype == torch.float32 and not silent
    tolerance = 1e-4 if exact else 0.05
    return bool((packed.float() - expected).abs().max() <= tolerance * expected.abs().max())


@contextmanager
def _plain(quantised: Iterable[nn.Module]) -> Iterator[None]:
    """While it lasts, these linear maps are products with their weights dequantised.

    For few rows, or without a gradient, bitsandbytes has kernels that round otherwise, and LLM.int8() quantises states
    by what else is in a batch: in a deep model that is more than the trial allows, and says nothing of packing.
    """
    before = {module: vars(module).get("forward") for module in quantised}
    for module in before:
        vars(module)["forward"] = partial(_product, module)
    try:
        yield
    finally:
        for module, forward in before.items():
            del vars(module)["forward"]
            if forward is not None:
                vars(module)["forward"] = forward


def _product(module: Any, states: Tensor) -> Tensor:
    bias = None if module.bias is None else module.bias.to(states.dtype)
    return functional.linear(states, dequantised(module, states.dtype), bias)
