"""Insertion: how a form enters a site, through forward hooks on the base's own modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from llm_adapters.adapters.forms import Form
from llm_adapters.model.sites import Site

if TYPE_CHECKING:
    from llm_adapters.adapters.engine import Engine


class SiteHook:
    """All forms at one site. ``series-in`` changes the input first, ``parallel`` reads it, ``series`` comes last.

    With x the site's input and y its output::

        series-in   x ← x + form(x)     before the site runs
        parallel    y ← y + form(x)
        series      y ← y + form(y)
    """

    def __init__(self, engine: Engine, site: Site) -> None:
        self.engine, self.site = engine, site
        self.series_in: dict[str, list[Form]] = {}
        self.parallel: dict[str, list[Form]] = {}
        self.series: dict[str, list[Form]] = {}
        self.spans = site.input is not site.output
        self._input: Tensor | None = None
        # The output of a linear map is nobody else's tensor and no backward needs it: it may be overwritten.
        self.fresh = site.is_linear

    def add(self, adapter: str, insertion: str, form: Form) -> None:
        """Put one more form of ``adapter`` at this site."""
        table = {"series-in": self.series_in, "parallel": self.parallel, "series": self.series}[insertion]
        table.setdefault(adapter, []).append(form)

    def install(self) -> list[Any]:
        """Register the hooks that are needed; returns their handles."""
        handles = []
        if self.series_in or (self.spans and self.parallel):
            handles.append(self.site.input.register_forward_pre_hook(self.before, with_kwargs=True))
        if self.parallel or self.series:
            handles.append(self.site.output.register_forward_hook(self.after, with_kwargs=True))
        return handles

    def before(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        x = _hidden(args, kwargs)
        changed = self._apply(self.series_in, x, None, fresh=False)
        if self.spans and self.parallel:
            self._input = changed
        return None if changed is x else _with_hidden(args, kwargs, changed)

    def after(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        y = output[0] if isinstance(output, tuple) else output
        changed = y
        if self.parallel:
            x, self._input = (self._input, None) if self.spans else (_hidden(args, kwargs), None)
            assert x is not None
            changed = self._apply(self.parallel, changed, x, fresh=self.fresh)
        changed = self._apply(self.series, changed, None, fresh=False)
        if changed is y:
            return None
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    def _apply(self, table: Mapping[str, list[Form]], y: Tensor, x: Tensor | None, *, fresh: bool) -> Tensor:
        """Add every form in ``table`` to its rows of ``y``; with ``x`` None the forms read ``y`` itself."""
        owned = fresh
        for adapter, forms in table.items():
            takes_part, rows = self.engine.rows_of(adapter)
            for form in forms if takes_part else ():
                with self.engine.drawing(adapter, form):
                    if rows is None:
                        y = form.add_to(y, y if x is None else x, fresh=owned and x is not None)
                    else:
                        y = _add_rows(form, y, x, rows, self.engine.batch, owned=owned)
                owned = True
        return y


def _add_rows(form: Form, y: Tensor, x: Tensor | None, rows: slice | Tensor, batch: int, *, owned: bool) -> Tensor:
    """``y`` with the form's update on some rows; ``owned`` says that ``y`` may be overwritten."""
    rows = rows if isinstance(rows, slice) else rows.to(y.device)
    # Some layers flatten (B, T, D) to (B·T, D) before their feed-forward; rows are found again by their number.
    by_row = y.view(batch, -1, y.shape[-1]) if y.shape[0] != batch else y
    if x is None:
        # What the form reads is saved for backward, so it must not be a view of what is overwritten below.
        inputs = by_row[rows].clone() if owned else by_row[rows]
    else:
        inputs = (x.view(batch, -1, x.shape[-1]) if x.shape[0] != batch else x)[rows]
    update = form(inputs).to(y.dtype)  # under autocast a form may answer in another dtype
    changed = y if owned else y.clone()
    if not torch.is_grad_enabled():
        _add(changed, update, rows, batch)
        return changed
    result: Tensor = AddRows.apply(changed, update, rows, batch)
    return result


class AddRows(torch.autograd.Function):
    """``y[rows] += update``, whose backward pass copies nothing.

    Autograd's own, for a slice that is written in place, copies the whole gradient of ``y`` once for every adapter.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, update: Tensor, rows: slice | Tensor, batch: int) -> Tensor:
        ctx.mark_dirty(y)
        ctx.rows, ctx.batch = rows, batch
        _add(y, update, rows, batch)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (gradient,) = gradients
        by_row = gradient if gradient.shape[0] == ctx.batch else gradient.reshape(ctx.batch, -1, gradient.shape[-1])
        return gradient, by_row[ctx.rows], None, None


def _add(y: Tensor, update: Tensor, rows: slice | Tensor, batch: int) -> None:
    by_row = y if y.shape[0] == batch else y.view(batch, -1, y.shape[-1])
    if isinstance(rows, slice):
        by_row[rows] += update
    else:
        by_row.index_add_(0, rows, update)


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden states among the arguments of a module: first, by their usual name, or the first tensor."""
    if args:
        return args[0]
    return kwargs["hidden_states"] if "hidden_states" in kwargs else next(_tensors(kwargs))[1]


def _with_hidden(
    args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if args:
        return (hidden, *args[1:]), kwargs
    name = "hidden_states" if "hidden_states" in kwargs else next(_tensors(kwargs))[0]
    return args, {**kwargs, name: hidden}


def _tensors(kwargs: dict[str, Any]) -> Any:
    return ((name, value) for name, value in kwargs.items() if isinstance(value, Tensor))
