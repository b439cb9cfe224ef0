"""The report as one HTML page that opens offline: tables that sort, runs that filter, single predictions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from llm_adapters.report.predictions import Drill
from llm_adapters.report.section import Section
from llm_adapters.report.svg import STYLE, variables
from llm_adapters.report.table import Cell, Number, Range, Table, numeric, shown

_FILES = files("llm_adapters.report") / "page_files"


def page(
    title: str, sections: Sequence[Section], drill: Drill, *, filtered: Table, axes: Mapping[str, Sequence[str]]
) -> str:
    """The page.

    Args:
        title: its heading.
        sections: what stands on it.
        drill: predictions that can be opened.
        filtered: the table of runs, whose first column names them.
        axes: those with several values become filters.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"table": lambda table: _table(table, drill if table is filtered else None), "prose": _prose}
    return environment.from_string(_read("page.html.j2")).render(
        title=title, sections=sections, drill=drill, filtered=filtered.name,
        filters=[
            {"name": axis, "column": filtered.heads.index(axis), "values": values}
            for axis, values in axes.items()
            if axis in filtered.heads and len(values) > 1
        ],
        light=Markup(variables(dark=False)), dark=Markup(variables(dark=True)), style=Markup(_read("page.css") + STYLE),
        script=Markup(_read("page.js")), is_figure=lambda item: not isinstance(item, Table),
        anchor=lambda text: re.sub(r"\W+", "-", text.lower()).strip("-"), paths=list(enumerate(drill.runs.items())),
    )  # fmt: skip


def _read(name: str) -> str:
    return (_FILES / name).read_text(encoding="utf-8")


def _prose(text: str) -> Markup:
    """A paragraph with **strong** words, or a fenced block."""
    if fenced := re.fullmatch(r"```\w*\n(.*)\n```", text, re.DOTALL):
        return Markup(f"<pre>{escape(fenced[1])}</pre>")
    return Markup("<p>" + re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escape(text)) + "</p>")


def _table(table: Table, drill: Drill | None) -> Markup:
    """A sortable table; with ``drill``, the first cell of a run with predictions opens them."""
    right = [" class=number" if numeric(table, i) else "" for i in range(len(table.heads))]
    heads = "".join(
        f'<th scope="col"{side}><button type="button">{escape(head)}</button></th>'
        for head, side in zip(table.heads, right, strict=True)
    )
    opened = {name: i for i, name in enumerate(drill.runs)} if drill else {}
    lines = []
    for row in table.rows:
        cells = "".join(f"<td{side}{_order(cell)}>{_shown(cell)}</td>" for cell, side in zip(row, right, strict=True))
        if opened and (place := opened.get(shown(row[0]))) is not None:
            name = escape(shown(row[0]))
            first = f'<td><button type="button" class="open" data-run="{place}">{name}</button></td>'
            cells = first + cells.partition("</td>")[2]
        lines.append(f"<tr>{cells}</tr>")
    return Markup(
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}">'
        f'<table id="table-{table.name}"><caption>{escape(table.title)}</caption><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
        + (f'<p class="note">{escape(table.note)}</p>' if table.note else "")
    )


def _order(cell: Cell) -> str:
    return f" data-v={cell.value:.6g}" if isinstance(cell, Number | Range) else ""


def _shown(cell: Cell) -> str:
    """A cell; an interval is set smaller than its number."""
    text = escape(shown(cell))
    number, bracket, rest = text.partition(" (")
    return f"{number} <small>({rest}</small>" if isinstance(cell, Range) and bracket else text
