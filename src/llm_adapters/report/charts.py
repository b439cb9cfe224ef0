"""Three kinds of charts: bars with intervals, points (curves, scatters with a front), and lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llm_adapters.report.svg import COLOURS, LEFT, RIGHT, TOP, WIDTH, Canvas, Scale, short

PLOT = 230.0


@dataclass(frozen=True)
class Point:
    """A value with its interval; ``tip`` is shown where a pointer rests on it."""

    x: float
    y: float
    low: float
    high: float
    tip: str


@dataclass(frozen=True)
class Figure:
    """A drawing.

    Attributes:
        name: of its file.
        title: above it.
        note: below it: what it shows in words.
        canvas: what is drawn.
    """

    name: str
    title: str
    note: str
    canvas: Canvas

    def svg(self, *, alone: bool) -> str:
        """The ``svg`` element."""
        return self.canvas.finish(self.title, alone=alone)


def bars(
    name: str, title: str, note: str, groups: Sequence[tuple[str, Sequence[tuple[int, Point]]]], *,
    names: Sequence[str], axis: str,
) -> Figure:  # fmt: skip
    """Horizontal bars in groups, with intervals as whiskers.

    Args:
        name, title, note: of the figure.
        groups: label, and (number of the series, value in ``y``) of each bar.
        names: of the series.
        axis: what is measured.
    """
    points = [point for _, group in groups for _, point in group]
    lowest, highest = min(0.0, *(p.low for p in points)), max(0.0, *(p.high for p in points)) or 1.0
    across = Scale(lowest, highest, TOP + 4, WIDTH - RIGHT - 44)
    canvas = Canvas(0.0)
    y = TOP + 12
    body: list[tuple[float, int, Point]] = []
    for label, group in groups:
        canvas.text(TOP, y, label)
        y += 6
        for series, point in group:
            body.append((y, min(series, COLOURS), point))
            y += 17
        y += 18
    bottom = y - 12
    for tick in across.ticks():
        canvas.marks.insert(0, f'<path d="M{across(tick):.1f} {TOP} V{bottom:.1f}" class="grid"/>')
        canvas.text(across(tick), bottom + 16, short(tick), "middle")
    for top, series, p in body:
        left, right = sorted((across(0.0), across(p.y)))
        canvas.bar(left, right, top, series=series, tip=p.tip)
        middle = top + 6.5
        canvas.marks.append(
            f'<path d="M{across(p.low):.1f} {middle - 4:.1f} v8 m0 -4 H{across(p.high):.1f} m0 -4 v8" class="whisker"/>'
        )
        canvas.text(max(across(p.high), across(0.0)) + 6, top + 11, short(float(f"{p.y:.3g}")))
    canvas.text((across.start + across.end) / 2, bottom + 36, axis, "middle")
    canvas.height = bottom + 46
    if len(names) > 1:
        canvas.height += canvas.legend(names, bottom + 58)
    return Figure(name, title, note, canvas)


def points(
    name: str, title: str, note: str, series: Sequence[tuple[str, Sequence[Point]]], axes: tuple[str, str], *,
    log: bool, joined: bool, front: Sequence[Point] = (), whiskers: bool = True, marks: bool = True,
    ticks: Sequence[float] = (),
) -> Figure:  # fmt: skip
    """Points, joined to curves or not, with intervals as whiskers.

    Args:
        name, title, note: of the figure.
        series: name and points.
        axes: what x and y are.
        log: whether x is drawn by its logarithm.
        joined: whether the points of a series make a line.
        front: points of the Pareto front, by rising x.
        whiskers: whether intervals are drawn.
        marks: whether points are drawn.
        ticks: of the x axis; round values if not given.
    """
    every = [point for _, own in series for point in own]
    ys = [y for p in every for y in ((p.low, p.high) if whiskers else (p.y,))]
    xs = [p.x for p in every]
    across, up = _wide(xs, log=log), _tall(ys)
    canvas = Canvas(TOP + PLOT + 48)
    for tick in up.ticks():
        canvas.marks.append(f'<path d="M{LEFT} {up(tick):.1f} H{WIDTH - RIGHT}" class="grid"/>')
        canvas.text(LEFT - 7, up(tick) + 4, short(tick), "end")
    for tick in ticks or across.ticks():
        canvas.marks.append(f'<path d="M{across(tick):.1f} {TOP + PLOT} v5" class="axis"/>')
        canvas.text(across(tick), TOP + PLOT + 19, short(tick), "middle")
    canvas.marks.append(f'<path d="M{LEFT} {TOP + PLOT} H{WIDTH - RIGHT}" class="axis"/>')
    canvas.text((LEFT + WIDTH - RIGHT) / 2, TOP + PLOT + 39, axes[0], "middle")
    canvas.text(15, TOP + PLOT / 2, axes[1], "middle", turned=True)
    if front:
        canvas.line([(across(p.x), up(p.y)) for p in front], "front")
    for i, (_, own) in enumerate(series):  # one without points keeps its colour for other figures
        colour = min(i, COLOURS)
        aside = 4 * (i - (len(series) - 1) / 2) if joined and whiskers else 0.0  # intervals at one x stay apart
        for p in own if whiskers else ():
            x = across(p.x) + aside
            canvas.marks.append(
                f'<path d="M{x - 3:.1f} {up(p.low):.1f} h6 m-3 0 V{up(p.high):.1f} m-3 0 h6" class="whisker" '
                'opacity="0.55"/>'
            )
        if joined:
            canvas.line([(across(p.x) + aside, up(p.y)) for p in own], f"line s{colour}")
        for p in own if marks else ():
            canvas.mark(across(p.x) + aside, up(p.y), colour, p.tip)
    if len(series) > 1:
        canvas.height += canvas.legend([label for label, _ in series], TOP + PLOT + 62)
    return Figure(name, title, note, canvas)


def _wide(xs: Sequence[float], *, log: bool) -> Scale:
    low, high = min(xs), max(xs)
    if log:
        return Scale(low / 1.3, high * 1.3, LEFT, WIDTH - RIGHT, log=True)
    edge = (high - low) * 0.05 or max(abs(high), 1.0) * 0.1
    return Scale(0.0 if low >= 0 > low - edge else low - edge, high + edge, LEFT, WIDTH - RIGHT)


def _tall(ys: Sequence[float]) -> Scale:
    low, high = min(ys), max(ys)
    edge = (high - low) * 0.06 or max(abs(high), 1.0) * 0.1
    return Scale(0.0 if low >= 0 > low - edge else low - edge, high + edge, TOP + PLOT, TOP)


def pareto(candidates: Sequence[Point]) -> list[Point]:
    """The points that no other beats: no smaller x has as high a y. By rising x."""
    front: list[Point] = []
    for point in sorted(candidates, key=lambda p: (p.x, -p.y)):
        if not front or point.y > front[-1].y:
            front.append(point)
    return front
