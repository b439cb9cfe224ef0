"""Torch's flash attention over sequences of several lengths, in one launch, where a trial shows what it computes.

On a GPU, in half precision. The causal mask is aligned at the end: where there are more keys than queries, the last
query sees all of them. Gradients are added up in a fixed order, so the same numbers give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from llm_adapters.model.trial import passed

_DTYPES = (torch.float16, torch.bfloat16)
_Place = tuple[torch.device, torch.dtype, int]
_tried: dict[_Place, bool] = {}


@dataclass(frozen=True, eq=False)
class Bounds:
    """Where N sequences begin.

    Attributes:
        queries, keys: (N+1,) int32 on the device, the beginnings among all queries and keys, and where all end.
        longest: most queries and most keys of a sequence.
    """

    queries: Tensor
    keys: Tensor
    longest: tuple[int, int]


def forward(q: Tensor, k: Tensor, v: Tensor, *, bounds: Bounds, left: int, scale: float | None) -> tuple[Tensor, ...]:
    """Attention (Q, H, d) of q (Q, H, d) to k and v (K, H_kv, d), and three tensors more for the backward pass.

    Args:
        left: how many keys back a query sees, beside its own; -1 for all.
        scale: of the products; None for 1/√d.
    """
    found: tuple[Tensor, ...] = torch.ops.aten._flash_attention_forward(
        q, k, v, bounds.queries, bounds.keys, *bounds.longest, 0.0, True, False,
        scale=scale, window_size_left=left, window_size_right=0,
    )  # fmt: skip
    return found[:4]


def backward(
    outer: Tensor, q: Tensor, k: Tensor, v: Tensor, found: Sequence[Tensor], *, bounds: Bounds, left: int, scale: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v, from that of the attention and all that :func:`forward` gave."""
    out, sums, state, unused = found
    with _in_fixed_order():
        gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._flash_attention_backward(
            outer, q, k, v, out, sums, bounds.queries, bounds.keys, *bounds.longest, 0.0, True, state, unused,
            scale=scale, window_size_left=left, window_size_right=0,
        )  # fmt: skip
    return gradients


def formula(q: Tensor, k: Tensor, v: Tensor, *, bounds: Bounds, left: int, scale: float | None) -> Tensor:
    """What :func:`forward` gives first, written out."""
    found = []
    starts = zip(pairwise(bounds.queries.tolist()), pairwise(bounds.keys.tolist()), strict=True)
    for (first, last), (start, end) in starts:
        own, seen = last - first, end - start
        mask = torch.ones(own, seen, dtype=torch.bool, device=q.device).tril(seen - own)
        mask = mask if left < 0 else mask.triu(seen - own - left)
        shared = q.shape[1] // k.shape[1]  # heads of a key
        one, other = (states[start:end].repeat_interleave(shared, dim=1).transpose(0, 1) for states in (k, v))
        heads = q[first:last].transpose(0, 1)
        out = functional.scaled_dot_product_attention(heads, one, other, attn_mask=mask, scale=scale)
        found.append(out.transpose(0, 1))
    return torch.cat(found)


_depth, _before, _lock = [0], [(0, False)], Lock()


@contextmanager
def _in_fixed_order() -> Iterator[None]:
    """Let torch add up in a fixed order; its switch is one for all threads, so the last one out puts it back."""
    options: Any = torch.utils.deterministic
    with _lock:
        if not _depth[0]:
            _before[0] = torch.get_deterministic_debug_mode(), options.fill_uninitialized_memory
            torch.set_deterministic_debug_mode("error")
            options.fill_uninitialized_memory = False  # a check for others, which takes time
        _depth[0] += 1
    try:
        yield
    finally:
        with _lock:
            _depth[0] -= 1
            if not _depth[0]:
                torch.set_deterministic_debug_mode(_before[0][0])
                options.fill_uninitialized_memory = _before[0][1]


def works_on(device: torch.device, dtype: torch.dtype, head: int) -> bool:
    """Whether a trial there, with heads of this size, was passed."""
    return _tried.get((device, dtype, head), False)


def try_on(places: Iterable[tuple[torch.device, torch.dtype]], head: int) -> None:
    """Find out whether values and gradients are those of the formula on these devices, with heads of size ``head``.

    A release whose kernel does not is passed over, with a warning. It is for before a training: within a forward pass
    that checkpoints activations, the gradients of a trial would be taken for those of the pass.
    """
    for device, dtype in places:
        if device.type == "cuda" and dtype in _DTYPES and (device, dtype, head) not in _tried:
            refusal = f"torch's attention for several lengths is not used in {dtype} on {device}"
            _tried[device, dtype, head] = passed(partial(_works, device, dtype, head), refusal)


def give_up() -> bool:
    """Take no trial for passed any more; whether one was."""
    passed = any(_tried.values())
    _tried.update(dict.fromkeys(_tried, False))
    return passed


def _works(device: torch.device, dtype: torch.dtype, head: int) -> bool:
    bounds = Bounds(
        torch.tensor([0, 5, 8, 12], dtype=torch.int32, device=device),
        torch.tensor([0, 5, 11, 17], dtype=torch.int32, device=device),
        (5, 6),
    )
    generator = torch.Generator().manual_seed(0)
    q, k, v, outer = (
        torch.randn(tokens, heads, head, generator=generator).to(device, dtype)
        for tokens, heads in ((12, 4), (17, 2), (17, 2), (12, 4))
    )
    works = True
    for left in (-1, 2):
        found = forward(q, k, v, bounds=bounds, left=left, scale=0.2)
        gradients = backward(outer, q, k, v, found, bounds=bounds, left=left, scale=0.2)
        leaves = [states.detach().requires_grad_() for states in (q, k, v)]
        with torch.enable_grad():
            wanted = formula(*leaves, bounds=bounds, left=left, scale=0.2)
        expected = [wanted.detach(), *torch.autograd.grad(wanted, leaves, outer)]
        pairs = zip([found[0], *gradients], expected, strict=True)
        works &= all(
            torch.allclose(a.float(), b.float(), rtol=3e-2, atol=3e-2 * float(b.float().abs().max())) for a, b in pairs
        )
    return works
