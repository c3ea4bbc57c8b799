"""The score curves for papers: one small chart per task, all on the same axes, in one figure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from merganser.report.formatting import literal, shortened
from merganser.report.palette import BAND, BASELINE_STYLES, BLUE, GREY, INK, PAPER, RULE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURE_SIZE = (7.5, 9.0)
"""Sizes of tick labels and titles in a figure for papers, in points."""

MOST_MARKERS = 21
"""Points of a curve that are marked; of more, only the line is drawn."""


def draw_curve(axes: Axes, curve: dict[str, Any], learned: int) -> None:
    """Draw one task's scores against the number of tasks learned: a ring around the score right after the task
    was learned, a band around that within which a change is noise, and the baselines dashed, each with its marker."""
    small, large = FIGURE_SIZE
    axes.set(xlim=(-0.4, max(learned, 1) + 0.4), ylim=(0, 1))
    axes.hlines([0.5, 1], -0.4, max(learned, 1) + 0.4, colors=RULE, linewidths=0.6, zorder=0, clip_on=False)
    ring = [(x, y) for x, y, _ in curve["points"] if x == curve["own"]]
    if ring and curve["noise"] is not None:
        own, level = ring[0]
        low, high = max(0.0, level - curve["noise"]), min(1.0, level + curve["noise"])
        axes.fill_between([own, learned], low, high, color=BAND, linewidth=0, zorder=0, clip_on=False)
    for number, points in enumerate(curve["baselines"]):
        if points:
            xs, ys, _ = zip(*points, strict=True)
            dash, marker = BASELINE_STYLES[number % len(BASELINE_STYLES)]
            few = marker if len(points) <= MOST_MARKERS else ""
            axes.plot(xs, ys, color=GREY, linewidth=1, linestyle=dash, marker=few, markersize=2.5, clip_on=False)
    xs, ys, _ = zip(*curve["points"], strict=True)
    dots = "o" if len(xs) <= MOST_MARKERS else ""
    axes.plot(xs, ys, color=BLUE, linewidth=1.3, marker=dots, markersize=2.5, clip_on=False)
    if ring:
        axes.plot(*zip(*ring, strict=True), "o", markersize=6, mfc=PAPER, mec=BLUE, markeredgewidth=1.6, clip_on=False)
    axes.set_title(literal(shortened(curve["name"])), loc="left", fontsize=large, color=INK)
    axes.set_xticks(whole_ticks(learned))
    axes.set_yticks([0, 0.5, 1], ["0", "50", "100"])
    axes.tick_params(labelsize=small, labelcolor=GREY, color=GREY, bottom=False, left=False, pad=3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set(color=GREY, linewidth=0.6)


def whole_ticks(learned: int) -> list[int]:
    """Whole numbers from 0 to ``learned``, at most five of them."""
    return list(range(0, max(learned, 1) + 1, math.ceil(max(learned, 1) / 4)))


def curve_figure(data: dict[str, Any]) -> Figure | None:
    """All curves in one figure for papers; ``None`` where nothing was evaluated."""
    from matplotlib.figure import Figure

    curves = [curve for curve in data["curves"] if curve["points"]]
    if not curves:
        return None
    columns = min(5, len(curves))
    lines = math.ceil(len(curves) / columns)
    figure = Figure(figsize=(max(2.6, 1.55 * columns), 0.5 + 1.4 * lines), layout="constrained")
    for index, curve in enumerate(curves):
        draw_curve(figure.add_subplot(lines, columns, index + 1), curve, data["learned"])
    figure.supxlabel("tasks learned (ringed: just learned)", fontsize=9)
    figure.supylabel("score in percent", fontsize=9)
    return figure
