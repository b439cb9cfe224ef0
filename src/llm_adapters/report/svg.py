"""Drawing: scales, axes and marks as SVG that follows the theme of the page it stands in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from math import ceil, floor, log10

WIDTH, LEFT, RIGHT, TOP = 460.0, 58.0, 14.0, 12.0
COLOURS = 8
"""Series that have a colour and a shape of their own; further ones are grey."""
LIGHT = ["#0b62a4", "#c4500a", "#0a7f5c", "#a8437f", "#6b5b00", "#5b4bc4", "#2f7a99", "#8a3b3b", "#6b6b6b"]
DARK = ["#6cb4ee", "#f2955b", "#4fc79c", "#e39ac2", "#d6c34a", "#a99cf5", "#86c8de", "#e08c8c", "#a0a0a0"]
STYLE = """
svg.figure text { font: 13px system-ui, sans-serif; fill: var(--ink); }
svg.figure .grid { stroke: var(--rule); stroke-width: 1; }
svg.figure .axis { stroke: var(--soft); stroke-width: 1; }
svg.figure .whisker { stroke: var(--ink); stroke-width: 1.3; fill: none; }
svg.figure .line { fill: none; stroke-width: 2; }
svg.figure .front { fill: none; stroke: var(--soft); stroke-width: 1.3; stroke-dasharray: 5 4; }
""" + "".join(
    f"svg.figure .s{i} {{ fill: var(--s{i}); stroke: var(--s{i}); }} svg.figure .line.s{i} {{ fill: none; }}\n"
    for i in range(COLOURS + 1)
)


def variables(*, dark: bool) -> str:
    """The colours of one theme as CSS variables."""
    plain = {"ink": "#e8e8e6", "soft": "#9a9a98", "rule": "#3a3b3d"} if dark else {
        "ink": "#1c1c1c", "soft": "#6a6a6a", "rule": "#dcdcdc"
    }  # fmt: skip
    series = {f"s{i}": colour for i, colour in enumerate(DARK if dark else LIGHT)}
    return " ".join(f"--{name}: {value};" for name, value in {**plain, **series}.items())


@dataclass(frozen=True)
class Scale:
    """From values to places along an axis."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Where ``value`` stands."""
        low, high, at = (log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * ((at - low) / (high - low) if high > low else 0.5)

    def ticks(self) -> list[float]:
        """About five round values."""
        if self.log:
            powers = range(floor(log10(self.low)), ceil(log10(self.high)) + 1)
            steps = (1, 2, 5) if log10(self.high / self.low) < 2 else (1,)
            found = [step * 10.0**power for power in powers for step in steps]
        else:
            raw = (self.high - self.low) / 5 or 1.0
            unit = 10.0 ** floor(log10(raw))
            step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * 0.999)
            found = [step * i for i in range(ceil(self.low / step - 1e-9), floor(self.high / step + 1e-9) + 1)]
        return [value for value in found if self.low * 0.999 <= value <= self.high * 1.001 or value == 0]


def short(value: float) -> str:
    """A number on an axis: 12, 0.5, 2.4M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (limit if unit != 'k' else 1e3):.3g}{unit}"
    return f"{value:.4g}"


@dataclass
class Canvas:
    """Collects marks; :meth:`finish` wraps them into an ``svg`` element."""

    height: float
    marks: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, text: str, anchor: str = "start", *, turned: bool = False) -> None:
        """Write."""
        turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
        self.marks.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{turn}>{escape(text)}</text>')

    def line(self, points: Sequence[tuple[float, float]], style: str) -> None:
        """Connect points."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.marks.append(f'<polyline points="{path}" class="{style}" fill="none"/>')

    def bar(self, left: float, right: float, y: float, *, series: int, tip: str) -> None:
        """A horizontal bar, 13 high."""
        self.marks.append(
            f'<rect x="{left:.1f}" y="{y:.1f}" width="{max(right - left, 0.5):.1f}" height="13" class="s{series}">'
            f"<title>{escape(tip)}</title></rect>"
        )

    def mark(self, x: float, y: float, series: int, tip: str = "") -> None:
        """A point, whose shape tells its series as its colour does."""
        r = 4.5
        title = f"<title>{escape(tip)}</title>" if tip else ""
        shapes = (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}" class="s{series}">{title}</circle>',
            f'<rect x="{x - r:.1f}" y="{y - r:.1f}" width="{2 * r}" height="{2 * r}" class="s{series}">{title}</rect>',
            f'<path d="M{x:.1f} {y - r - 1:.1f} l{r + 1} {2 * r} h{-2 * r - 2} z" class="s{series}">{title}</path>',
            f'<path d="M{x:.1f} {y - r - 1:.1f} l{r + 1} {r + 1} l{-r - 1} {r + 1} l{-r - 1} {-r - 1} z" '
            f'class="s{series}">{title}</path>',
        )
        self.marks.append(shapes[series % len(shapes)])

    def legend(self, names: Sequence[str], y: float) -> float:
        """Name the series from ``y`` on, in as many lines as it takes; gives the height."""
        x, row = LEFT, 0
        for i, name in enumerate(names):
            wide = 22 + 7.2 * len(name)
            if x > LEFT and x + wide > WIDTH - RIGHT:
                x, row = LEFT, row + 1
            self.mark(x + 5, y + 19 * row - 4, min(i, COLOURS))
            self.text(x + 15, y + 19 * row, name)
            x += wide + 6
        return 19.0 * (row + 1) if names else 0.0

    def finish(self, title: str, *, alone: bool) -> str:
        """The element; ``alone`` gives it the colours of both themes for a file of its own."""
        style = (
            f"<style>svg.figure {{ {variables(dark=False)} }} @media (prefers-color-scheme: dark) "
            f"{{ svg.figure {{ {variables(dark=True)} }} }}{STYLE}</style>"
            if alone
            else ""
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="figure" role="img" aria-label="{escape(title)}" '
            f'viewBox="0 0 {WIDTH:.0f} {self.height:.0f}">{style}{"".join(self.marks)}</svg>'
        )
