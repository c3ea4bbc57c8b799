"""The score curves, drawn once for the page and for the figures: one small chart per task, all on the same axes."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from merganser.report.formatting import literal, score, shortened
from merganser.report.palette import BLUE, CSS_VARIABLES, GREY, INK, PAPER, RULE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURE_SIZE = (7.5, 9.0)
"""Sizes of tick labels and titles in a figure for papers, in points."""

PAGE_SIZE = (9.0, 9.5)
"""The same in the page, where a point is 4/3 of a pixel."""


def draw_curve(axes: Axes, curve: dict[str, Any], learned: int, sizes: tuple[float, float]) -> None:
    """Draw one task's scores against the number of tasks learned: whiskers of one standard error, a ring around the
    score right after the task was learned, and the baseline dashed with squares where there is one."""
    small, large = sizes
    axes.set(xlim=(-0.4, max(learned, 1) + 0.4), ylim=(0, 1))
    axes.hlines([0.5, 1], -0.4, max(learned, 1) + 0.4, colors=RULE, linewidths=0.6, zorder=0, clip_on=False)
    if curve["baseline"]:
        xs, ys, _ = zip(*curve["baseline"], strict=True)
        axes.plot(xs, ys, color=GREY, linewidth=1, linestyle=(0, (3, 2)), marker="s", markersize=2.5, clip_on=False)
    xs, ys, errors = zip(*curve["points"], strict=True)
    spread = [(x, y - e, y + e) for x, y, e in zip(xs, ys, errors, strict=True) if e]
    if spread:
        at, low, high = zip(*spread, strict=True)
        axes.vlines(at, low, high, colors=BLUE, linewidths=0.8, clip_on=False)
    axes.plot(xs, ys, color=BLUE, linewidth=1.3, marker="o", markersize=2.5, clip_on=False)
    ring = [(x, y) for x, y, _ in curve["points"] if x == curve["own"]]
    if ring:
        axes.plot(*zip(*ring, strict=True), "o", markersize=6, mfc=PAPER, mec=BLUE, markeredgewidth=1.6, clip_on=False)
    axes.set_title(literal(shortened(curve["name"])), loc="left", fontsize=large, color=INK)
    axes.set_xticks(_whole_ticks(learned))
    axes.set_yticks([0, 0.5, 1], ["0", "50", "100"])
    axes.tick_params(labelsize=small, labelcolor=GREY, color=GREY, length=2.5, pad=2)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set(color=GREY, linewidth=0.6)


def _whole_ticks(learned: int) -> list[int]:
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
        draw_curve(figure.add_subplot(lines, columns, index + 1), curve, data["learned"], FIGURE_SIZE)
    figure.supxlabel("tasks learned (ringed: just learned)", fontsize=9)
    figure.supylabel("score in percent", fontsize=9)
    return figure


def curve_images(data: dict[str, Any]) -> list[str]:
    """One inline SVG per task for the page, which lays them out by its width."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    images = []
    for index, curve in enumerate(data["curves"]):
        if not curve["points"]:
            continue
        figure = Figure(figsize=(124 / 72, 108 / 72))
        draw_curve(figure.add_axes((0.2, 0.16, 0.75, 0.66)), curve, data["learned"], PAGE_SIZE)
        # Ids of markers are hashes with this salt: unique in the page, the same each time.
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": f"curve {index}"}):
            images.append(inline_svg(figure, _described(curve["name"], curve["points"])))
    return images


def _described(name: str, points: Sequence[Sequence[float]]) -> str:
    return f"{name}: " + ", ".join(f"{score(value)} percent after {learned}" for learned, value, _ in points)


def inline_svg(figure: Figure, label: str) -> str:
    """A figure as an SVG element for the page: colours are CSS variables, text takes the page's font, and ``label`` is
    what a screen reader reads. Every string of the run is escaped."""
    content = io.BytesIO()
    unset = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(content, format="svg", metadata=unset, transparent=True)
    root = ElementTree.fromstring(content.getvalue())
    root.remove(root[0])  # matplotlib's style element; the page has its own style sheet
    used = {value for node in root.iter() for name, value in node.attrib.items() if name.endswith("}href")}
    for node in root.iter():
        node.tag = node.tag.rpartition("}")[2]
        node.attrib = {
            name.rpartition("}")[2]: _with_variables(value) if name == "style" else value
            for name, value in node.attrib.items()
            if name != "id" or f"#{value}" in used
        }
    root.attrib = {"class": "chart curve", "viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label}
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


def _with_variables(style: str) -> str:
    for colour, variable in CSS_VARIABLES.items():
        style = style.replace(colour, f"var({variable})")
    return style
