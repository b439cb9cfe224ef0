"""Insertion: how a form enters a site, through forward hooks on the base's own modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from llm_adapters.adapters.forms import Form
from llm_adapters.adapters.routing import Rows
from llm_adapters.adapters.rows import added, apart, by_row, cut
from llm_adapters.model.frozen_linear import FrozenLinear, frozen_linear
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
        self._after: int | None = None  # the number of the hook that sees the output

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
            self._after = handles[-1].id
        return handles

    def before(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        x = _hidden(args, kwargs)
        changed = self._apply(self.series_in, x, None, fresh=False)
        if self.spans and self.parallel:
            self._input = changed
        return None if changed is x else _with_hidden(args, kwargs, changed)

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        y = output[0] if isinstance(output, tuple) else output
        changed = y
        if self.parallel and self.fresh and not torch.compiler.is_compiling() and y._is_view():
            # Of what nobody else has; but some views, as those of bitsandbytes, autograd lets nobody write over.
            changed = torch.ops.aten._unsafe_view(y, y.shape)
        if self.parallel:
            x, self._input = (self._input, None) if self.spans else (_hidden(args, kwargs), None)
            assert x is not None
            frozen = self._frozen(module) if self.fresh else None
            changed = self._apply(self.parallel, changed, x, fresh=self.fresh, frozen=frozen)
        changed = self._apply(self.series, changed, None, fresh=False)
        if changed is y:
            return None
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    def _frozen(self, module: nn.Module) -> FrozenLinear | None:
        """The map whose output the hook sees, if that is a frozen linear one and no other hook came in between."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled() or nn.modules.module._global_forward_hooks:
            return None
        return frozen_linear(module) if next(iter(module._forward_hooks)) == self._after else None

    def _apply(
        self,
        table: Mapping[str, list[Form]],
        y: Tensor,
        x: Tensor | None,
        *,
        fresh: bool,
        frozen: FrozenLinear | None = None,
    ) -> Tensor:
        """Add every form in ``table`` to its rows of ``y``; with ``x`` None the forms read ``y`` itself.

        ``frozen`` is the map that gave ``y`` of ``x``, if that is known.
        """
        acting: list[tuple[str, Form, Rows]] = []
        for adapter, forms in table.items():
            takes_part, rows = self.engine.rows_of(adapter)
            acting += [(adapter, form, rows) for form in forms if takes_part]
        order = apart([rows for _, _, rows in acting]) if len(acting) > 1 else None
        # Who watches operations may keep their results, as selective checkpointing does: then none is overwritten here.
        watched = is_in_torch_dispatch_mode(include_infra_modes=False)
        owned = fresh and not watched
        if order is not None:
            return self._apply_apart([acting[i] for i in order], y, x, owned=owned)
        for adapter, form, rows in acting:
            with self.engine.drawing(adapter, form):
                if rows is None:
                    y = form.add_to(y, y if x is None else x, fresh=owned and x is not None, frozen=frozen)
                else:
                    y = self._add_rows(form, y, x, rows, owned=owned)
            owned, frozen = not watched, None
        return y

    def _apply_apart(
        self, acting: Sequence[tuple[str, Form, Rows]], y: Tensor, x: Tensor | None, *, owned: bool
    ) -> Tensor:
        """Add forms to spans of rows that follow one another; ``owned`` says that ``y`` may be overwritten."""
        batch, spans = self.engine.batch, [rows for _, _, rows in acting if isinstance(rows, slice)]
        updates = []
        for (adapter, form, _), inputs in zip(acting, cut(y if x is None else x, spans, batch), strict=True):
            with self.engine.drawing(adapter, form):
                updates.append(form.update(inputs))
        return added(y if owned else y.clone(), batch, spans, updates)

    def _add_rows(self, form: Form, y: Tensor, x: Tensor | None, rows: slice | Tensor, *, owned: bool) -> Tensor:
        """Add one form to some rows."""
        batch, rows = self.engine.batch, rows if isinstance(rows, slice) else rows.to(y.device)
        inputs = by_row(y if x is None else x, batch)[rows]
        # What the form reads is saved for backward, so it must not be a view of what is overwritten below.
        update = form.update(inputs.clone() if x is None and owned else inputs)
        return added(y if owned else y.clone(), batch, [rows], [update])


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
