"""The score curves for papers, one small chart per task on the same axes, and figures as elements of a page."""

from __future__ import annotations

import io
import math
import re
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from merganser.report.formatting import literal, shortened
from merganser.report.palette import BAND, BASELINE_STYLES, BLUE, CSS_VARIABLES, GREY, INK, PAPER, RULE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURE_SIZE = (7.5, 9.0)
"""Sizes of tick labels and titles in a figure for papers, in points."""

FONT = re.compile(r"font-family: [^;]*;?\s*")
"""The font that matplotlib writes into each text; the page has its own."""

LONG_NUMBER = re.compile(r"-?\d+\.\d{2,}")
"""Numbers with more decimals than can be seen."""

NO_ROTATION = re.compile(r"rotate\(-?0[ )]")
"""What matplotlib writes at each text that is not rotated."""

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
        just_learned, level = ring[0]
        low, high = max(0.0, level - curve["noise"]), min(1.0, level + curve["noise"])
        axes.fill_between([just_learned, learned], low, high, color=BAND, linewidth=0, zorder=0, clip_on=False)
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
    """Return whole numbers from 0 to ``learned``, at most five of them."""
    return list(range(0, max(learned, 1) + 1, math.ceil(max(learned, 1) / 4)))


def curve_figure(data: dict[str, Any]) -> Figure | None:
    """Draw all curves in one figure for papers; ``None`` where nothing was evaluated."""
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


def inline_svg(figure: Figure, label: str) -> str:
    """Return a figure as an SVG element for the page, with every string of the run escaped.

    Colours are CSS variables, text takes the page's font, and ``label`` is what a screen reader reads.
    """
    content = io.BytesIO()
    unset = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(content, format="svg", metadata=unset, transparent=True)
    root = ElementTree.fromstring(content.getvalue())
    root.remove(root[0])  # matplotlib's style element; the page has its own style sheet
    used = {value for node in root.iter() for name, value in node.attrib.items() if name.endswith("}href")}
    for node in root.iter():
        node.tag = node.tag.rpartition("}")[2]
        node.text, node.tail = (text and (text.strip() or None) for text in (node.text, node.tail))
        for name in ("d", "x", "y"):
            if name in node.attrib:
                node.attrib[name] = " ".join(LONG_NUMBER.sub(_rounded, node.attrib[name]).split())
        if NO_ROTATION.match(node.attrib.get("transform", "")):
            del node.attrib["transform"]
        node.attrib = {
            name.rpartition("}")[2]: _with_variables(value) if name == "style" else value
            for name, value in node.attrib.items()
            if name != "id" or f"#{value}" in used
        }
    root.attrib = {"class": "chart curve", "viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label}
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


def _rounded(number: re.Match[str]) -> str:
    value = float(number[0])
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _with_variables(style: str) -> str:
    style = FONT.sub("", style)
    for colour, variable in CSS_VARIABLES.items():
        style = style.replace(colour, f"var({variable})")
    return style
