"""The parts of a report, in the form that Markdown, LaTeX and the page have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llm_adapters.report.charts import Figure
from llm_adapters.report.table import Table, latex, markdown


@dataclass(frozen=True)
class Section:
    """A heading, paragraphs, then tables and figures."""

    title: str
    text: Sequence[str] = ()
    items: Sequence[Table | Figure] = ()

    @property
    def tables(self) -> list[Table]:
        """Its tables."""
        return [item for item in self.items if isinstance(item, Table)]

    @property
    def figures(self) -> list[Figure]:
        """Its figures."""
        return [item for item in self.items if isinstance(item, Figure)]


def as_markdown(title: str, sections: Sequence[Section]) -> str:
    """The whole report; figures are linked as ``figures/NAME.svg``."""
    parts = [f"# {title}"]
    for section in sections:
        parts += [f"## {section.title}", *section.text]
        for item in section.items:
            if isinstance(item, Figure):
                parts += [f"![{item.title}](figures/{item.name}.svg)", f"*{item.title}.* {item.note}"]
            else:
                parts += [*([f"### {item.title}"] if len(section.items) > 1 else []), markdown(item)]
    return "\n\n".join(parts) + "\n"


def as_latex(title: str, sections: Sequence[Section]) -> str:
    """All tables, to be read in with ``\\input``."""
    head = f"% {title}: tables, to be read in with \\input; \\usepackage{{booktabs}}"
    return "\n\n".join([head, *(latex(table) for section in sections for table in section.tables)]) + "\n"
