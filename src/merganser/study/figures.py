"""The figures of a study, drawn with matplotlib: ranking, paired differences, score against cost, score matrices."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from merganser.files.atomic import make_folder
from merganser.report.figures import SETTINGS
from merganser.report.files import write_whole
from merganser.report.formatting import literal, score, shortened
from merganser.report.palette import BLUE, GREY, INK, PAPER, RULE, VERMILION
from merganser.study.figure_labels import label_points
from merganser.study.matrices import MeanMatrix, mean_matrices
from merganser.study.results import Axis, MethodResult, StreamResult
from merganser.study.statistics import LEAST_CHANGE, LEAST_SCORE, Estimate, pareto_front

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAGE_SIZE = (300 / 72, 200 / 72)
"""Of a chart of the page in inches; the page scales it to its column."""

WIDE = 5
"""Ratio of the largest to the smallest cost from which on an axis is logarithmic."""

COST_LABELS: dict[Axis, str] = {
    "examples": "examples trained and rehearsed per run",
    "seconds": "{seconds} per run",
    "bytes": "bytes stored after the last task",
}

Coordinate = Callable[[MethodResult], "float | None"]


def scatter(axes: Axes, result: StreamResult, axis: Axis | None, labels: Sequence[str], links: Sequence[str]) -> None:
    """Draw overall performance against a cost, with the Pareto front, or against backward transfer.

    Args:
        axes: empty.
        result: the methods.
        axis: the cost; ``None``: backward transfer.
        labels: written beside each method.
        links: that each point leads to; none: no links.
    """
    known = [
        (number, x, method) for number, method in enumerate(result.methods) if (x := _place(method, axis)) is not None
    ]
    xs, ys = [x for _, x, _ in known], [method.op.mean for _, _, method in known]
    front = [] if axis is None else pareto_front(xs, ys)
    if axis is None:
        axes.axvline(0, color=RULE, linewidth=1, zorder=0)
    elif front:
        axes.step([xs[p] for p in front], [ys[p] for p in front], where="post", color=BLUE, linewidth=1, zorder=1)
    for place, (number, x, method) in enumerate(known):
        colour = BLUE if place in front or axis is None else GREY
        op = method.op.within(LEAST_SCORE)
        if op.low is not None and op.high is not None:
            axes.vlines(x, op.low, op.high, color=colour, linewidth=0.9, zorder=2)
        reference = method.label == result.reference
        point = axes.scatter(
            [x], [op.mean], s=34, facecolors=PAPER if reference else colour, edgecolors=colour, linewidths=1.4, zorder=3
        )
        if links:
            point.set_urls([links[number]])
    if axis is not None:
        _scale(axes, xs)
    axes.margins(0.12)
    label_points(axes, list(zip(xs, ys, strict=True)), [labels[number] for number, _, _ in known])
    axes.yaxis.set_major_formatter(percent_ticks(LEAST_SCORE))
    axes.tick_params(labelsize=9, labelcolor=GREY, color=GREY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)


def percent_ticks(least: float) -> Callable[[float, float], str]:
    """Return a formatter of ticks in percent; those that the metric cannot reach have no number."""

    def shown(value: float, _: float) -> str:
        return f"{100 * value:.4g}".replace("-", "−") if least - 1e-9 <= value <= 1 + 1e-9 else ""

    return shown


def _place(method: MethodResult, axis: Axis | None) -> float | None:
    if axis is not None:
        return method.cost.get(axis)
    return None if method.bwt is None else method.bwt.mean


def _scale(axes: Axes, xs: Sequence[float]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    positive = [x for x in xs if x > 0]
    formatter = FuncFormatter(lambda value, _: _short_number(value))
    if positive and max(positive) > WIDE * min(positive):
        if min(xs) > 0:
            axes.set_xscale("log")
        else:
            axes.set_xscale("symlog", linthresh=min(positive))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(left=min(0.0, *xs) if xs else 0.0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(formatter)


def _short_number(value: float) -> str:
    """Format a tick: ``1.5k``, ``20M``."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def cost_charts(result: StreamResult) -> list[tuple[str, Axis | None, str]]:
    """Return name, axis and label of the charts of score against cost that have something to show."""
    charts: list[tuple[str, Axis | None, str]] = []
    for axis, label in COST_LABELS.items():
        if any(method.cost.get(axis) for method in result.methods):
            charts.append((axis, axis, label.format(seconds=result.seconds)))
    if any(method.bwt is not None for method in result.methods):
        charts.append(("bwt", None, "backward transfer (points)"))
    return charts


def chart_for_page(result: StreamResult, axis: Axis | None, labels: Sequence[str], links: Sequence[str]) -> Figure:
    """Draw one chart of score against cost in the size of the page."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=PAGE_SIZE)
    axes = figure.add_axes((0.1, 0.11, 0.86, 0.84))
    scatter(axes, result, axis, labels, links)
    if axis is None:
        axes.xaxis.set_major_formatter(percent_ticks(LEAST_CHANGE))
    return figure


# For papers ----------------------------------------------------------------------------------------------------------


def _lines(
    result: StreamResult, of: Callable[[MethodResult], Estimate | None], label: str, zero: bool
) -> Figure | None:
    """Draw a mean with its interval per method, the best on top; with a line at zero, of differences."""
    from matplotlib.figure import Figure

    least = LEAST_CHANGE if zero else LEAST_SCORE
    known = [(method, value.within(least)) for method in result.methods if (value := of(method)) is not None]
    if not known:
        return None
    figure = Figure(figsize=(5.6, 0.75 + 0.27 * len(known)), layout="constrained")
    axes = figure.add_subplot()
    if zero:
        axes.axvline(0, color=GREY, linewidth=0.8, zorder=0)
    for y, (method, value) in enumerate(known):
        said = None if method.difference is None else method.difference.verdict
        colour = {"better": BLUE, "worse": VERMILION}.get(said or "", GREY)
        if value.low is not None and value.high is not None:
            axes.hlines(y, value.low, value.high, color=colour, linewidth=1.6)
        marker = "o" if method.label == result.reference else {"better": "^", "worse": "v"}.get(said or "", "s")
        axes.plot([value.mean], [y], marker, color=colour, markersize=5.5, markeredgecolor=PAPER)
    axes.set_yticks(range(len(known)), [literal(shortened(method.label, 40)) for method, _ in known])
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(percent_ticks(least))
    axes.set_xlabel(label)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure


def _named_scatter(result: StreamResult, axis: Axis | None, label: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4, 3.2), layout="constrained")
    axes = figure.add_subplot()
    scatter(axes, result, axis, [shortened(method.label, 24) for method in result.methods], ())
    if axis is None:
        axes.xaxis.set_major_formatter(percent_ticks(LEAST_CHANGE))
    axes.set_xlabel(label)
    axes.set_ylabel("overall performance (percent)")
    return figure


def _matrix_figure(matrices: Sequence[MeanMatrix]) -> Figure:
    """Draw mean score matrices beside each other, framed where a task was just learned."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    columns = min(3, len(matrices))
    lines = math.ceil(len(matrices) / columns)
    tasks, rounds = len(matrices[0].tasks), len(matrices[0].rounds)
    figure = Figure(figsize=(1.2 + columns * (0.4 + 0.38 * rounds), lines * (0.7 + 0.26 * tasks)), layout="constrained")
    shades = LinearSegmentedColormap.from_list("shades", ["#ffffff", "#7fb6d9"])
    for place, matrix in enumerate(matrices):
        axes = figure.add_subplot(lines, columns, place + 1)
        values = [[math.nan if value is None else value for value in line] for line in matrix.values]
        axes.imshow(values, cmap=shades, vmin=0, vmax=1, aspect="auto")
        for y, line in enumerate(matrix.values):
            for x, value in enumerate(line):
                if value is not None:
                    axes.text(x, y, score(value), ha="center", va="center", fontsize=7)
                if matrix.learned.get(matrix.tasks[y]) == x:
                    axes.add_patch(
                        Rectangle((x - 0.46, y - 0.44), 0.92, 0.88, fill=False, edgecolor=INK, linewidth=1.2)
                    )
        axes.set_title(literal(shortened(matrix.method, 24)), loc="left")
        names = [literal(shortened(task)) for task in matrix.tasks] if place % columns == 0 else [""] * tasks
        axes.set_yticks(range(tasks), names, fontsize=7)
        axes.set_xticks(range(rounds), [str(number) for number in range(rounds)], fontsize=7)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    figure.supxlabel("tasks learned", fontsize=8)
    return figure


def draw_study_figures(result: StreamResult) -> dict[str, Figure]:
    """Draw the methods of one stream as figures for papers, by name: ``ranking``, ``differences`` (a forest plot),
    ``examples``, ``seconds``, ``bytes`` and ``bwt`` (overall performance against them), ``matrices_ORDER``.

    A figure with nothing to show is left out.
    """
    import matplotlib

    with matplotlib.rc_context(SETTINGS):
        percent = f"(percent, {100 * result.confidence:g} % interval)"
        figures = {
            "ranking": _lines(result, lambda method: method.op, f"overall performance {percent}", zero=False),
            "differences": _lines(
                result,
                lambda method: None if method.difference is None else method.difference.estimate,
                f"overall performance less that of {literal(result.reference)} (points, {100 * result.confidence:g} % "
                "interval)",
                zero=True,
            ),
        }
        for name, axis, label in cost_charts(result):
            figures[name] = _named_scatter(result, axis, label)
        for order, matrices in mean_matrices(result).items():
            figures[f"matrices_{order}"] = _matrix_figure(matrices)
    return {name: figure for name, figure in figures.items() if figure is not None}


def write_study_figures(results: Sequence[StreamResult], folder: Path) -> list[Path]:
    """Write the figures of each stream as SVG files into a folder, of several streams into one folder each.

    The same results give the same files, byte for byte.

    Raises:
        InputError: the folder cannot be written.
        RunError: the disk is full.
    """
    import matplotlib

    written = []
    for number, result in enumerate(results, 1):
        target = folder if len(results) == 1 else folder / f"stream-{number}"
        make_folder(target)
        for name, figure in draw_study_figures(result).items():
            content = io.BytesIO()
            with matplotlib.rc_context(SETTINGS):
                figure.savefig(content, format="svg", metadata={"Date": None})
            safe = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)
            written.append(write_whole(target / f"{safe}.svg", content.getvalue()))
    return written
