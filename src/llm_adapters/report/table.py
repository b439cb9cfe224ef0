"""One small kind of table, and what it looks like in Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from llm_adapters.evaluation.statistics import Estimate

SHOWN = 60
"""Rows that Markdown and LaTeX show at most; CSV and the page hold all."""


@dataclass(frozen=True)
class Number:
    """A number and how it is shown."""

    value: float
    text: str


@dataclass(frozen=True)
class Range:
    """A number with its 95 % interval, in the unit that is shown (percent, points)."""

    value: float
    low: float
    high: float
    sign: bool = False

    @property
    def text(self) -> str:
        """``29.0 (23.2–35.6)``; differences have signs: ``+3.0 (-1.2 to +7.2)``."""
        if self.sign:
            return f"{self.value:+.1f} ({self.low:+.1f} to {self.high:+.1f})"
        return f"{self.value:.1f} ({self.low:.1f}–{self.high:.1f})"


Cell = str | Number | Range | None


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: of its file.
        title: above it.
        heads: of the columns.
        rows: cells, as many as heads; None is empty.
        note: below it.
    """

    name: str
    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


def percent(estimate: Estimate, *, sign: bool = False) -> Range:
    """A share, or a difference of shares, in percent."""
    low, high = estimate.interval
    return Range(100 * estimate.value, 100 * low, 100 * high, sign)


def share(value: float) -> Number:
    """A share in percent."""
    return Number(100 * value, f"{100 * value:.1f}")


def shown(cell: Cell) -> str:
    """The text of a cell."""
    return "" if cell is None else cell if isinstance(cell, str) else cell.text


def numeric(table: Table, column: int) -> bool:
    """Whether a column holds numbers, and so stands to the right."""
    cells = [row[column] for row in table.rows if row[column] not in (None, "")]
    return bool(cells) and all(not isinstance(cell, str) for cell in cells)


def markdown(table: Table) -> str:
    """The table as Markdown, without its title."""
    rule = ["---:" if numeric(table, i) else "---" for i in range(len(table.heads))]
    body = [[_markdown(shown(cell)) for cell in row] for row in table.rows[:SHOWN]]
    lines = ["| " + " | ".join(line) + " |" for line in [list(map(_markdown, table.heads)), rule, *body]]
    return "\n\n".join(filter(None, ["\n".join(lines), _left_out(table), table.note]))


def latex(table: Table) -> str:
    """The table as a ``table`` environment; it needs the package booktabs."""
    align = "".join("r" if numeric(table, i) else "l" for i in range(len(table.heads)))
    lines = [" & ".join(_latex(shown(cell)) for cell in row) + r" \\" for row in table.rows[:SHOWN]]
    note = " ".join(filter(None, [_left_out(table), table.note]))
    return "\n".join([
        r"\begin{table}", r"  \centering\small", rf"  \caption{{{_latex(table.title)}. {_latex(note)}}}",
        rf"  \label{{tab:{table.name}}}", rf"  \begin{{tabular}}{{{align}}}", r"    \toprule",
        "    " + " & ".join(map(_latex, table.heads)) + r" \\", r"    \midrule", *(f"    {line}" for line in lines),
        r"    \bottomrule", r"  \end{tabular}", r"\end{table}",
    ])  # fmt: skip


def as_csv(table: Table) -> str:
    """The whole table as CSV: numbers in full, an interval as two more columns."""
    ranged = [any(isinstance(row[i], Range) for row in table.rows) for i in range(len(table.heads))]
    out = io.StringIO()
    write = csv.writer(out, lineterminator="\n").writerow
    write([name for i, h in enumerate(table.heads) for name in ([h, f"{h} low", f"{h} high"] if ranged[i] else [h])])
    for row in table.rows:
        write([value for i, cell in enumerate(row) for value in _fields(cell, ranged=ranged[i])])
    return out.getvalue()


def _fields(cell: Cell, *, ranged: bool) -> list[object]:
    if isinstance(cell, Range):
        return [float(f"{value:.6g}") for value in (cell.value, cell.low, cell.high)]
    value = float(f"{cell.value:.10g}") if isinstance(cell, Number) else cell or ""
    whole = int(value) if isinstance(value, float) and value.is_integer() else value
    return [whole, "", ""] if ranged else [whole]


def _left_out(table: Table) -> str:
    return (
        f"{SHOWN} of {len(table.rows):,} rows; all are in tables/{table.name}.csv." if len(table.rows) > SHOWN else ""
    )


def _markdown(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "→": r"$\to$", "·": r"$\cdot$", "×": r"$\times$",
    "α": r"$\alpha$", "Δ": r"$\Delta$", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "\n": " ",
}  # fmt: skip


def _latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)
