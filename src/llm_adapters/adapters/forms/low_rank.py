"""The low-rank form of LoRA."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llm_adapters.adapters.forms.dropout import Draw, dropped, set_aside
from llm_adapters.adapters.forms.form import Form
from llm_adapters.model.frozen_linear import FrozenLinear
from llm_adapters.model.recomputed import kept


class LowRank(Form):
    """``x → scale · B A x`` with ``A`` (R, d_in) and ``B`` (d_out, R) (Hu et al. 2022, section 4.1).

    ``A`` starts Kaiming-uniform and ``B`` at zero, as in the LoRA paper and peft.
    """

    def __init__(self, d_in: int, d_out: int, rank: int, *, scale: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, d_in))
        self.B = nn.Parameter(torch.zeros(d_out, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.scale = scale
        self.dropout = dropout

    @property
    def draws(self) -> bool:
        return self.dropout > 0

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale
        if self._drops():
            x, scale = dropped(x, self.dropout), scale / (1 - self.dropout)
        # The scale is applied to the rank, which is narrower than the output.
        return F.linear(F.linear(x, self.A.to(x.dtype)) * scale, self.B.to(x.dtype))

    def add_to(self, out: Tensor, x: Tensor, *, fresh: bool, frozen: FrozenLinear | None = None) -> Tensor:
        if torch.compiler.is_compiling() or x.dtype != out.dtype or _autocast(x):
            return out + self.update(x).to(out.dtype)
        scale, draw, fresh = self.scale, None, fresh and out.is_contiguous()
        if self._drops():
            scale, draw = scale / (1 - self.dropout), Draw.of(self.dropout)
            if not draw.lists(x):
                x, draw, frozen = dropped(x, self.dropout, draw), None, None
        if frozen is not None and fresh:
            out = out.detach()  # its backward pass is done here
        else:
            frozen = None
        result: Tensor = _AddLowRank.apply(out, x, self.A, self.B, scale, fresh, frozen, draw)
        return result

    def _drops(self) -> bool:
        return self.training and self.dropout > 0

    def delta_weight(self) -> Tensor:
        return self.scale * (self.B @ self.A)


class _AddLowRank(torch.autograd.Function):
    """``out + scale · x Aᵀ Bᵀ``, over ``out`` if it is ``fresh``; ``A`` and ``B`` are cast to the dtype of ``x``.

    Of ``x`` a ``draw`` may drop some.

    Autograd's own, for a product that is added in place to a view, copies the gradient of ``out`` twice, and writes
    two dozen small steps where six products do; on a GPU it is their number that costs. The gradient of ``x`` through
    the ``frozen`` map that gave ``out`` is computed here too: what is added to it then takes no pass over memory.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 – autograd hands on by position
        ctx: Any,
        out: Tensor,
        x: Tensor,
        A: Tensor,
        B: Tensor,
        scale: float,
        fresh: bool,
        frozen: FrozenLinear | None,
        draw: Draw | None,
    ) -> Tensor:
        rows, cast_A, cast_B = _rows(x), A.to(x.dtype), B.to(x.dtype)
        with _some_of(rows, draw, _places(draw, x.shape, x.device)) as read:
            h = _scaled(read, cast_A.t(), scale)
        _, of_x, of_A, of_B, *_ = ctx.needs_input_grad
        ctx.x = kept(x) if of_A else None
        ctx.save_for_backward(
            x if of_A and ctx.x is None else None,
            h if of_B else None,
            cast_A if of_x else None,
            cast_B if of_x or of_A else None,
            A,
            B,
        )
        ctx.shape, ctx.scale, ctx.dtypes, ctx.frozen, ctx.draw = x.shape, scale, (A.dtype, B.dtype), frozen, draw
        if fresh:
            ctx.mark_dirty(out)
            _rows(out).addmm_(h, cast_B.t())
            return out
        # Not a view, so that the next form at this site may overwrite it.
        return torch.ops.aten._unsafe_view(torch.addmm(_rows(out), h, cast_B.t()), out.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, h, A, B, *parameters = ctx.saved_tensors
        if ctx.x is not None:
            if torch.is_grad_enabled():
                raise RuntimeError("no second derivatives are taken of states that are computed again instead of held")
            x, ctx.x = ctx.x(), _let_go
        of_out, of_x, of_A, of_B, *_ = ctx.needs_input_grad
        outer = _rows(gradients[0])
        if torch.is_grad_enabled():  # these gradients will be derived too: from what has a history, which h has not
            A, B = (each.to(outer.dtype) for each in parameters)
            if of_B and of_A:
                with _some_of(_rows(x), ctx.draw, None) as read:
                    h = _scaled(read, A.t(), ctx.scale)
            elif of_B and of_x:
                h = _NoHistory.apply(h, B)
        g: Any = None if B is None else _scaled(outer, B, ctx.scale)
        of_factor = of_input = None
        places = _places(ctx.draw, ctx.shape, outer.device)
        if of_A:
            with _some_of(_rows(x), ctx.draw, places) as read:
                of_factor = _factor_gradient(read, g, ctx.dtypes[0])
        if of_x:
            of_input = _input_gradient(ctx, outer, g, A, places).view(ctx.shape)
        of_other = _product(outer.t(), h, ctx.dtypes[1]) if of_B else None
        return gradients[0] if of_out else None, of_input, of_factor, of_other, None, None, None, None


def _let_go() -> Tensor:
    raise RuntimeError("a second backward pass through states that were computed again in the first, and not held")


class _NoHistory(torch.autograd.Function):
    """``h``, whose derivative is not known: where ``A`` is frozen, the states it was computed from are not kept."""

    @staticmethod
    def forward(_: Any, h: Tensor, _with_gradient: Tensor) -> Tensor:
        return h.view_as(h)

    @staticmethod
    def backward(*_: Any) -> Any:
        raise RuntimeError("a second derivative of a LoRA's B needs its A to be trainable too")


_HALF = (torch.float16, torch.bfloat16)
_WIDER = "dtype" in torch.ops.aten.mm.overloads()  # torch 2.8


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """``a @ b`` in another dtype: where it can be, without rounding to that of the factors first."""
    if dtype == torch.float32 and a.dtype in _HALF and a.is_cuda and _WIDER and not torch.is_grad_enabled():
        return torch.mm(a, b, out_dtype=dtype)
    return (a @ b).to(dtype)


def _places(draw: Draw | None, shape: torch.Size, device: torch.device) -> Tensor | None:
    """What is dropped, where no history is kept of it."""
    return None if draw is None or torch.is_grad_enabled() else draw.places(shape.numel(), device)


@contextmanager
def _some_of(rows: Tensor, draw: Draw | None, places: Tensor | None) -> Iterator[Tensor]:
    """``rows`` without what is dropped of them, for as long as it is read."""
    if places is not None:
        rows = rows.contiguous()
        with set_aside(rows, places, zero=True):
            yield rows
    else:
        yield rows if draw is None else draw.mask(rows) * rows


def _input_gradient(ctx: Any, outer: Tensor, g: Tensor, A: Tensor, places: Tensor | None) -> Tensor:
    """``g A``, but for what was dropped, and what comes through the frozen map."""
    if ctx.frozen is not None and not torch.is_grad_enabled():
        inner: Tensor = ctx.frozen.gradient(outer)
        with set_aside(inner, places, zero=False):
            return inner.addmm_(g, A)
    own = g @ A
    if places is not None:
        own.view(-1).index_fill_(0, places, 0.0)
    elif ctx.draw is not None:
        own = ctx.draw.mask(own) * own
    return own if ctx.frozen is None else ctx.frozen.gradient(outer) + own


def _factor_gradient(x: Tensor, g: Tensor, dtype: torch.dtype) -> Tensor:
    """``gᵀ x``: on a CPU the other way round, which is half as fast again; a GPU would have to copy that."""
    return _product(g.t(), x, dtype) if x.is_cuda else _product(x.t(), g, dtype).t()


def _scaled(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """``scale · a @ b``, in one step."""
    return a.new_empty(a.shape[0], b.shape[1]).addmm_(a, b, beta=0, alpha=scale)


def _autocast(x: Tensor) -> bool:
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])
