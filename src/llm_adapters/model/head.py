"""The layer that makes logits of hidden states, where a model does nothing else to either."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llm_adapters.model.sites import SiteMap, is_linear, linear_features
from llm_adapters.model.without_numbers import WithoutNumbers


@dataclass(frozen=True)
class Head:
    """A decoder and the frozen layer behind it, that may be given its states in parts.

    Attributes:
        decoder: gives ``last_hidden_state``.
        layer: gives the logits of those states.
    """

    decoder: Any
    layer: nn.Module

    @property
    def vocabulary(self) -> int:
        """Logits of one state."""
        return linear_features(self.layer)[1]


def find_head(model: Any, sites: SiteMap) -> Head | None:
    """The head of a model, or None if its logits are anything but ``layer(last_hidden_state)`` (soft-capping, scales).

    It is tried: two tokens go through the model, and what the layer takes and gives must be, not equal, but the very
    tensors that the decoder gave and the model gives. So it holds on the meta device too. And the decoder must give the
    same when it is called by itself, as far as there are numbers.
    """
    layer, decoder = model.get_output_embeddings(), sites.decoder
    if layer is None or not is_linear(layer) or any(each.requires_grad for each in layer.parameters()):
        return None
    seen: list[Any] = []

    def watch(module: nn.Module, given: tuple[Any, ...], out: Any) -> None:
        seen.extend((given[0], out) if module is layer and given else [out])

    handles = [module.register_forward_hook(watch) for module in (decoder, layer)]
    was_training, device = model.training, model.get_input_embeddings().weight.device
    model.eval()
    try:
        with torch.no_grad(), WithoutNumbers():
            ids = torch.arange(2, device=device)[None]
            logits = model(input_ids=ids, use_cache=False).logits
            states, taken, given = seen
            plain = given is logits and _one_storage(states.last_hidden_state, taken) and taken.dim() == 3
            if plain and device.type != "meta":
                again = decoder(input_ids=ids, use_cache=False).last_hidden_state
                plain = torch.allclose(again, states.last_hidden_state, rtol=1e-2, atol=1e-2)
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError):
        return None
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return Head(decoder, layer) if plain else None


def _one_storage(first: Tensor, second: Tensor) -> bool:
    return first.untyped_storage()._cdata == second.untyped_storage()._cdata
