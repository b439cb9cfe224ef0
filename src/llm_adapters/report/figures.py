"""The figures of a study: placement bars, size curves, accuracy against cost, loss curves, forgetting."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from llm_adapters.report.charts import Figure, Point, bars, pareto, points
from llm_adapters.report.collect import SEED, Collected, Run
from llm_adapters.report.cost import forgotten, memory, over_seeds, parameters, seconds
from llm_adapters.report.pooled import MEAN, Configuration, protocols, ranked

PANELS = 6
"""Bars and curves of one axis, at most: one panel for each point on the axes that it does not show."""
CURVES, LOSS_POINTS, FORGETTING_BARS = 8, 100, 20
_COSTS: tuple[tuple[str, str, Callable[[Run], float]], ...] = (
    ("parameters", "trained parameters", parameters),
    ("memory", "peak memory, GiB", memory),
    ("time", "training, s", seconds),
)


def figures(found: Collected, configurations: Sequence[Configuration]) -> list[Figure]:
    """All figures that the study's axes and measurements allow."""
    leading = ranked(configurations)
    drawn: list[Figure] = []
    if leading:
        protocol = protocols(configurations)[0]
        places = set(map(id, leading))
        complete = [point for point in configurations if id(point) in places]  # in the study's order: stable colours
        axes = {name: values for name, values in found.study.axes.items() if name != SEED and len(values) > 1}
        words = [axis for axis in axes if any(_size(value) is None for value in axes[axis])]
        for axis in (axis for axis in axes if len(words) < 2 or axis != words[0]):  # that one tells the series apart
            drawn += _axis(axis, [name for name in axes if name != axis], complete, protocol)
        if len(complete) > 1:
            drawn += [_against(*cost, complete, protocol) for cost in _COSTS]
    trained = leading or [point for point in configurations if point.runs]
    return [*drawn, *filter(None, [_losses(trained[:CURVES]), _forgetting(trained[:FORGETTING_BARS])])]


@dataclass(frozen=True)
class _Panel:
    """Configurations that differ on one axis, and on the one that tells the series apart (``by``), alone."""

    name: str
    title: str
    note: str
    axis: str
    by: str | None
    names: Sequence[str]
    own: Sequence[Configuration]
    protocol: str

    def series(self, point: Configuration) -> int:
        """The number of its series."""
        return self.names.index(point.axes.get(self.by, "")) if self.by else 0

    def bars(self) -> Figure:
        """A group of bars for each value."""
        groups: dict[str, list[tuple[int, Point]]] = {}
        for point in self.own:
            bar = (self.series(point), _point(point, self.protocol, 0.0))
            groups.setdefault(point.axes[self.axis], []).append(bar)
        ordered = [(value, sorted(group, key=lambda bar: bar[0])) for value, group in groups.items()]
        return bars(
            self.name, self.title, self.note, ordered, names=self.names if self.by else [],
            axis=_measure(self.own, self.protocol),
        )  # fmt: skip

    def curves(self, sizes: Mapping[str, float]) -> Figure:
        """A curve for each series."""
        lines: dict[int, list[Point]] = {i: [] for i in range(len(self.names))}
        for point in self.own:
            lines[self.series(point)].append(_point(point, self.protocol, sizes[point.axes[self.axis]]))
        drawn = [(self.names[i], sorted(line, key=lambda point: point.x)) for i, line in lines.items()]
        return points(
            self.name, self.title, self.note, drawn, (self.axis, _measure(self.own, self.protocol)),
            log=max(sizes.values()) >= 8 * min(sizes.values()) > 0, joined=True, ticks=sorted(set(sizes.values())),
        )  # fmt: skip


def _axis(axis: str, others: Sequence[str], complete: Sequence[Configuration], protocol: str) -> list[Figure]:
    """Bars over an axis of words, curves over an axis of numbers; a panel for each point on the remaining axes."""
    complete = [point for point in complete if axis in point.axes]
    across = {point.axes[axis] for point in complete}
    sizes = {value: size for value in across if (size := _size(value)) is not None}
    by = next((name for name in others if any(_size(point.axes.get(name, "")) is None for point in complete)), None)
    names = list(dict.fromkeys(point.axes.get(by, "") for point in complete)) if by else [axis]
    panels: dict[str, list[Configuration]] = {}
    for point in complete:
        left = [f"{name} {point.axes[name]}" for name in others if name != by and name in point.axes]
        panels.setdefault(", ".join(left), []).append(point)
    shown = {rest: own for rest, own in panels.items() if len({point.axes[axis] for point in own}) > 1}
    drawn = []
    for i, (rest, own) in enumerate(islice(shown.items(), PANELS), 1):
        kind, title = "curve" if len(sizes) == len(across) else "bars", f"Accuracy by {axis}"
        note = _intervals(own) + (f" {PANELS} of {len(shown)} panels are drawn." if i == PANELS < len(shown) else "")
        panel = _Panel(
            f"{kind}-{_slug(axis)}-{i}", f"{title} at {rest}" if rest else title, note, axis, by, names, own, protocol
        )
        drawn.append(panel.curves(sizes) if kind == "curve" else panel.bars())
    return drawn


def _against(
    name: str, label: str, measure: Callable[[Run], float], complete: Sequence[Configuration], protocol: str
) -> Figure:
    """Accuracy against one cost, with the front of what nothing cheaper beats."""
    series: dict[str, list[Point]] = {}
    for point in complete:
        series.setdefault(point.method, []).append(_point(point, protocol, over_seeds(point, measure)))
    every = [point for own in series.values() for point in own]
    front = pareto(every)
    costs = [point.x for point in every]
    listed = "; ".join(point.tip for point in front[:8]) + ("; …" if len(front) > 8 else "")
    return points(
        f"against-{name}", f"Accuracy against {label}", f"Pareto front (dashed): {listed}. {_intervals(complete)}",
        list(series.items()), (label, _measure(complete, protocol)), log=max(costs) > 8 * min(costs) > 0, joined=False,
        front=front, whiskers=len(every) <= 40,
    )  # fmt: skip


def _losses(leading: Sequence[Configuration]) -> Figure | None:
    """Training losses of the first seed of the leading configurations."""
    curves = [(point.label, _loss_curve(point.runs[0])) for point in leading]
    drawn = [(label, curve) for label, curve in curves if len(curve) > 1]
    if not drawn:
        return None
    return points(
        "loss", "Training loss", f"Means over {LOSS_POINTS} stretches of steps at most; the first seed of each of the "
        f"{len(drawn)} configurations with the highest accuracy.",
        drawn, ("step", "loss, nats a token"), log=False, joined=True, whiskers=False, marks=False,
    )  # fmt: skip


def _loss_curve(run: Run) -> list[Point]:
    path = run.trial.folder / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    rows = [row for row in rows if "loss" in row]
    wide = max(1, -(-len(rows) // LOSS_POINTS))
    pieces = [rows[i : i + wide] for i in range(0, len(rows), wide)]
    means = [(piece[-1]["step"], sum(row["loss"] for row in piece) / len(piece)) for piece in pieces]
    return [Point(step, loss, loss, loss, "") for step, loss in means]


def _forgetting(leading: Sequence[Configuration]) -> Figure | None:
    """The change of the cross-entropy on plain text."""
    groups = []
    for point in leading:
        if found := forgotten(point):
            low, value, high = (sum(each[key] for each in found) / len(found) for key in ("low", "difference", "high"))
            tip = f"{point.label}: {value:+.3f} nats a token ({low:+.3f} to {high:+.3f}), {point.seeds}"
            groups.append((point.label, [(0, Point(0.0, value, low, high, tip))]))
    if not groups:
        return None
    return bars(
        "forgetting", "Forgetting", "Cross-entropy on plain text after training less before; to the right is worse. "
        "Whiskers answer for the choice of text, not of the seed.", groups, names=[], axis="nats a token",
    )  # fmt: skip


def _point(configuration: Configuration, protocol: str, x: float) -> Point:
    value, (low, high) = configuration.results[protocol, MEAN].accuracy
    tip = f"{configuration.label}: {100 * value:.1f} ({100 * low:.1f}–{100 * high:.1f}), {configuration.seeds}"
    return Point(x, 100 * value, 100 * low, 100 * high, tip)


def _size(value: str) -> float | None:
    """A value of an axis as a number: ``16``, ``rank=16``."""
    try:
        return float(value.rpartition("=")[2])
    except ValueError:
        return None


def _measure(own: Sequence[Configuration], protocol: str) -> str:
    names = [name for key, name in own[0].results if key == protocol and name != MEAN]
    return f"percent right on {names[0]}" if len(names) == 1 else f"percent right, mean of {len(names)} sets"


def _intervals(own: Sequence[Configuration]) -> str:
    fewest = min(len(point.runs) for point in own)
    said = "Intervals are 95 %"
    return f"{said}; one seed: for the choice of rows alone." if fewest == 1 else f"{said}, for rows and seeds."


def _slug(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text)
