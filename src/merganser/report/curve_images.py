"""The score curves of the page: one small inline SVG per task, all on the same axes.

Written directly: a page is made after every task, and matplotlib, which draws the same curves for papers, would take
longer for it than all the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from merganser.report.curves import MOST_MARKERS, whole_ticks
from merganser.report.formatting import score, shortened_within
from merganser.report.palette import BASELINE_STYLES

WIDTH, HEIGHT = 124.0, 108.0
LEFT, RIGHT, TOP, BOTTOM = 24.8, 117.8, 19.4, 90.7
"""Of the plot, in units of the image; a unit is 1.2 to 1.8 pixels of the page."""

SMALL, LARGE = 9.0, 9.5
"""Sizes of tick labels and titles."""

AxisScale = Callable[[float], float]


def curve_images(data: dict[str, Any]) -> list[str]:
    """Return an image of each task that was scored; every string of the run is escaped.

    Args:
        data: of :func:`merganser.report.series.chart_data`.
    """
    return [_image(curve, max(data["learned"], 1)) for curve in data["curves"] if curve["points"]]


def _image(curve: dict[str, Any], learned: int) -> str:
    """Draw a ring around the score right after the task was learned, a band around it, and the baselines in grey.

    Within the band a change is noise; each baseline has its dash and marker.
    """

    def x(tasks: float) -> float:
        return LEFT + (tasks + 0.4) / (learned + 0.8) * (RIGHT - LEFT)

    def y(value: float) -> float:
        return BOTTOM - value * (BOTTOM - TOP)

    parts = [_line(LEFT, y(level), RIGHT, y(level), "--rule") for level in (0.5, 1.0)]
    ring = [(tasks, value) for tasks, value, _ in curve["points"] if tasks == curve["own"]]
    if ring and curve["noise"] is not None:
        just_learned, level = ring[0]
        high, low = y(min(1.0, level + curve["noise"])), y(max(0.0, level - curve["noise"]))
        size = f'width="{_short(x(learned) - x(just_learned))}" height="{_short(low - high)}"'
        parts.append(f'<rect x="{_short(x(just_learned))}" y="{_short(high)}" {size} style="fill:var(--band)"></rect>')
    for number, points in enumerate(curve["baselines"]):
        if points:
            parts.append(_baseline(points, number, x, y))
    parts.append(_line(LEFT, BOTTOM, RIGHT, BOTTOM, "--quiet"))
    parts.append(_polyline(curve["points"], x, y, "stroke:var(--accent);stroke-width:1.3"))
    if len(curve["points"]) <= MOST_MARKERS:
        dots = "".join(_circle(x(tasks), y(value), 1.25) for tasks, value, _ in curve["points"])
        parts.append(f'<g style="fill:var(--accent)">{dots}</g>')
    for tasks, value in ring:
        style = ' style="fill:var(--paper);stroke:var(--accent);stroke-width:1.6"'
        parts.append(_circle(x(tasks), y(value), 3.0, style))
    parts += _texts(curve["name"], learned, x, y)
    label = escape(_described(curve["name"], curve["points"]))
    head = f'class="chart curve" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{label}"'
    return f"<svg {head}>{''.join(parts)}</svg>"


def _short(value: float) -> str:
    """Format a coordinate with at most one decimal: finer than a pixel, and the page stays small."""
    return f"{value:.1f}".removesuffix(".0")


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    ends = f'x1="{_short(x1)}" y1="{_short(y1)}" x2="{_short(x2)}" y2="{_short(y2)}"'
    return f'<line {ends} style="stroke:var({colour});stroke-width:.6"></line>'


def _circle(x: float, y: float, radius: float, style: str = "") -> str:
    return f'<circle cx="{_short(x)}" cy="{_short(y)}" r="{radius:g}"{style}></circle>'


def _polyline(points: Sequence[Sequence[float]], x: AxisScale, y: AxisScale, style: str) -> str:
    places = " ".join(f"{_short(x(tasks))},{_short(y(value))}" for tasks, value, _ in points)
    return f'<polyline points="{places}" style="fill:none;{style}"></polyline>'


def _baseline(points: Sequence[Sequence[float]], number: int, x: AxisScale, y: AxisScale) -> str:
    (_, dash), marker = BASELINE_STYLES[number % len(BASELINE_STYLES)]
    lengths = " ".join(f"{length:g}" for length in dash)
    line = _polyline(points, x, y, f"stroke:var(--quiet);stroke-width:1;stroke-dasharray:{lengths}")
    if len(points) > MOST_MARKERS:
        return line
    marks = " ".join(_marker(marker, x(tasks), y(value)) for tasks, value, _ in points)
    return f'{line}<path d="{marks}" style="fill:var(--quiet)"></path>'


def _marker(kind: str, x: float, y: float, size: float = 1.5) -> str:
    """Return the outline of a marker, which has matplotlib's letter."""
    corners = {
        "s": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
        "^": ((0, -1.2), (1.2, 1), (-1.2, 1)),
        "D": ((0, -1.4), (1.4, 0), (0, 1.4), (-1.4, 0)),
        "v": ((0, 1.2), (1.2, -1), (-1.2, -1)),
    }[kind]
    return "M" + "L".join(f"{_short(x + size * dx)},{_short(y + size * dy)}" for dx, dy in corners) + "Z"


def _texts(name: str, learned: int, x: AxisScale, y: AxisScale) -> list[str]:
    ticks = [(x(tasks), 101.5, f"{tasks}") for tasks in whole_ticks(learned)]
    levels = [(LEFT - 3, y(level) + 3.2, f"{100 * level:g}") for level in (0, 0.5, 1)]
    title = escape(shortened_within(name))
    return [
        f'<text x="{LEFT:g}" y="11" style="font-size:{LARGE:g}px">{title}</text>',
        *(_labels(places, anchor) for places, anchor in ((ticks, "middle"), (levels, "end"))),
    ]


def _labels(places: Sequence[tuple[float, float, str]], anchor: str) -> str:
    texts = [f'<text class="quiet" x="{_short(x)}" y="{_short(y)}">{text}</text>' for x, y, text in places]
    return f'<g style="font-size:{SMALL:g}px" text-anchor="{anchor}">{"".join(texts)}</g>'


def _described(name: str, points: Sequence[Sequence[float]]) -> str:
    return f"{name}: " + ", ".join(f"{score(value)} percent after {learned}" for learned, value, _ in _some(points))


def _some(points: Sequence[Sequence[float]], most: int = MOST_MARKERS) -> Sequence[Sequence[float]]:
    """Return a few points to be read aloud, the first and the last among them."""
    stride = math.ceil(len(points) / most)
    return points if stride == 1 else [*points[:-1:stride], points[-1]]
