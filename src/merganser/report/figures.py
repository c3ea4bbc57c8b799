"""The figures of a run for papers, drawn with matplotlib: SVG and PNG of each."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merganser.files.atomic import make_folder
from merganser.report.comparison import first_task_figure, memory_loss_figure, parameter_change_figure
from merganser.report.curves import curve_figure
from merganser.report.files import write_whole
from merganser.report.formatting import CAUSE_LETTER, MISSING, finite, literal, row_label, score, shortened
from merganser.report.page import check_comparable
from merganser.report.palette import BLUE, CAUSE_STYLE, GREY
from merganser.report.series import chart_data, learned_before, rows_learned
from merganser.report.verdict import noise_of
from merganser.runs.record import RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LINES = 150
SETTINGS = {
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.0,
    "svg.fonttype": "none",  # text stays text: searchable, and set in the font of the document
    "svg.hashsalt": "merganser",  # the same run gives the same file
}


def _matrix(run: RunRecord) -> Figure | None:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    rows, columns = run.scores.rows, run.scores.tasks
    if not rows or not columns:
        return None
    values = [[finite(row.scores[t].value) if t in row.scores else None for t in columns] for row in rows]
    figure = Figure(figsize=(1.9 + 0.62 * len(columns), 1.1 + 0.36 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    shades = LinearSegmentedColormap.from_list("shades", ["#ffffff", "#7fb6d9"])
    axes.imshow(
        [[math.nan if v is None else v for v in line] for line in values], cmap=shades, vmin=0, vmax=1, aspect="auto"
    )
    row_of = rows_learned(run)
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            just_learned = row_of.get(columns[x]) == y
            text = score(value) if value is not None else MISSING
            axes.text(x, y, text, ha="center", va="center", fontsize=8, fontweight="bold" if just_learned else "normal")
            if just_learned:
                axes.add_patch(
                    Rectangle((x - 0.46, y - 0.44), 0.92, 0.88, fill=False, edgecolor="black", linewidth=1.4)
                )
    labels = [
        row_label([shortened(name) for name in row.learned], first=count == 0)
        for count, row in zip(learned_before(run), rows, strict=True)
    ]
    watched = {task.name for task in run.scores.watched}
    names = [literal(shortened(c)) + (" (watched)" if c in watched else "") for c in columns]
    axes.set_xticks(range(len(columns)), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), [f"{literal(label)}  {index}" for index, label in enumerate(labels)])
    axes.set_xlabel("score in percent, evaluated on (framed: just learned)")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def _offsets(data: dict[str, Any]) -> list[int]:
    """Return the step at which each task begins on the axis that all tasks share, and at the end the total."""
    offsets = [0]
    for task in data["tasks"]:
        offsets.append(offsets[-1] + task["steps"])
    return offsets


def _shared_axis(axes: Axes, data: dict[str, Any], name: bool) -> None:
    offsets = _offsets(data)
    axes.set_xlim(0, max(offsets[-1], 1))
    axes.set_ylim(bottom=0)
    for index, task in enumerate(data["tasks"]):
        if index:
            axes.axvline(offsets[index], color=GREY, linewidth=0.6, alpha=0.6)
        if name:
            many = len(data["tasks"]) > 6
            text = str(index + 1) if many else literal(shortened(task["name"]))
            place = (offsets[index] + task["steps"] / 2, 1.02)
            axes.text(*place, text, transform=axes.get_xaxis_transform(), ha="center", va="bottom", fontsize=8)


def _signals(data: dict[str, Any]) -> Figure | None:
    from matplotlib.figure import Figure

    if not any(task["x"] for task in data["tasks"]):
        return None
    offsets = _offsets(data)
    merges = [merge for merge in data["merges"] if merge["signal"] is not None]
    figure = Figure(figsize=(7.2, 4.7 if merges else 3.0), layout="constrained")
    grid = figure.add_gridspec(2 if merges else 1, 1, height_ratios=[5, 3] if merges else [1])
    top = figure.add_subplot(grid[0])
    kinds = (("loss", GREY, 0.7, "training loss"), ("probe", BLUE, 1.6, "loss on the memory"))
    for start, task in zip(offsets, data["tasks"], strict=False):
        for kind, colour, width, _ in kinds:
            known = [
                (start + x, mean, low, high)
                for x, mean, low, high in zip(task["x"], *(task[kind][p] for p in ("mean", "low", "high")), strict=True)
                if mean is not None
            ]
            if not known:
                continue
            xs, means, lows, highs = zip(*known, strict=True)
            if task["width"] > 1:
                top.fill_between(xs, lows, highs, color=colour, alpha=0.25, linewidth=0)
            top.plot(xs, means, color=colour, linewidth=width, marker="." if len(xs) == 1 else "")
        if task["threshold"]:
            firsts, lasts, levels = zip(*task["threshold"], strict=True)
            begins, ends = [start + first - 1 for first in firsts], [start + last for last in lasts]
            top.hlines(levels, begins, ends, colors="black", linewidths=0.9, linestyles=[(0, (4, 2))])
    for _, colour, width, label in kinds:
        top.plot([], [], color=colour, linewidth=width, label=label)
    if any(task["threshold"] for task in data["tasks"]):
        top.plot([], [], color="black", linewidth=0.9, linestyle=(0, (4, 2)), label="alarm threshold")
    top.set_ylabel("loss (nats)")
    _shared_axis(top, data, name=True)
    if merges:
        bottom = figure.add_subplot(grid[1], sharex=top)
        _merge_markers(bottom, merges, offsets)
        # Past this many the lines would be a grey veil over the signals; the markers below still say when.
        for axes in (top, bottom) if len(merges) <= MOST_LINES else ():
            at = [offsets[merge["task"]] + merge["step"] for merge in merges]
            across = axes.get_xaxis_transform()
            axes.vlines(at, 0, 1, transform=across, colors=BLUE, linewidths=0.5, alpha=0.3, zorder=0)
        bottom.set_ylabel("learning signal")
        _shared_axis(bottom, data, name=False)
    figure.axes[-1].set_xlabel("inner optimizer steps" + _numbered(data))
    figure.legend(loc="outside lower center", fontsize=7.5, frameon=False, ncols=5)
    return figure


def _numbered(data: dict[str, Any]) -> str:
    return "; numbers on top: tasks in order of learning" if len(data["tasks"]) > 6 else ""


def _merge_markers(axes: Axes, merges: list[dict[str, Any]], offsets: list[int]) -> None:
    """Draw each merge at its learning signal: the marker's shape and, where there is room, a letter tell its cause."""
    for index in sorted({merge["task"] for merge in merges}):
        of_task = [merge for merge in merges if merge["task"] == index]
        axes.plot(
            [offsets[index] + m["step"] for m in of_task],
            [m["signal"] for m in of_task],
            color=GREY,
            linewidth=0.7,
            zorder=1,
        )
    for cause, (shape, colour) in CAUSE_STYLE.items():
        for refused in (False, True):
            group = [merge for merge in merges if merge["cause"] == cause and merge["refused"] == refused]
            if not group:
                continue
            label = f"{CAUSE_LETTER[cause]}  {cause}" + (" (refused)" if refused else "")
            axes.scatter(
                [offsets[m["task"]] + m["step"] for m in group],
                [m["signal"] for m in group],
                marker=shape,
                s=26,
                facecolors="white" if refused else colour,
                edgecolors=colour if refused else "white",
                linewidths=0.8,
                label=label,
                zorder=3,
                clip_on=False,
            )
    if len(merges) <= 60:
        for merge in merges:
            place = (offsets[merge["task"]] + merge["step"], merge["signal"])
            axes.annotate(merge["letter"], place, (0, 4), textcoords="offset points", ha="center", fontsize=6.5)
    axes.margins(y=0.2)


def _interval(data: dict[str, Any]) -> Figure | None:
    from matplotlib.figure import Figure

    if not any(task["interval"] for task in data["tasks"]):
        return None
    offsets = _offsets(data)
    figure = Figure(figsize=(7.2, 2.2), layout="constrained")
    axes = figure.add_subplot()
    for start, task in zip(offsets, data["tasks"], strict=False):
        points = [(start + x, value) for first, last, value in task["interval"] for x in (first - 1, last)]
        if points:
            axes.plot(*zip(*points, strict=True), color=BLUE, linewidth=1.4)
    axes.set_ylabel("planned interval (steps)")
    axes.set_xlabel("inner optimizer steps" + _numbered(data))
    _shared_axis(axes, data, name=True)
    return figure


def draw_figures(run: RunRecord, baselines: Sequence[RunRecord] = ()) -> dict[str, Figure]:
    """Draw a run as matplotlib figures, by name, as :func:`write_figures` writes them.

    A notebook shows them after ``%matplotlib inline``.

    Raises:
        InputError: a run learned other tasks or other data.
    """
    import matplotlib

    runs = [run, *baselines]
    for other in baselines:
        check_comparable(run, other)
    data = chart_data(run, baselines, noise_of(run.courses()))
    with matplotlib.rc_context(SETTINGS):
        figures = {
            "matrix": _matrix(run),
            "signals": _signals(data),
            "interval": _interval(data),
            "curves": curve_figure(data),
            "memory_loss": memory_loss_figure(runs),
            "parameter_change": parameter_change_figure(runs),
            "first_task": first_task_figure(runs),
        }
    return {name: figure for name, figure in figures.items() if figure is not None}


def write_figures(run: RunRecord, folder: Path, baselines: Sequence[RunRecord] = ()) -> list[Path]:
    """Draw ``run`` into ``folder`` as ``matrix``, ``signals``, ``interval`` and ``curves``, each as SVG and PNG.

    With baselines, also ``memory_loss`` (with a line fitted to each run's losses) and ``first_task`` (the score of the
    first task as others are learned, joint training as a bound); of runs that never merge ``parameter_change``.
    A figure with nothing to show (no steps, no planned interval) is left out. Tasks of more than 240 steps are drawn as
    means of consecutive steps within a band from their smallest to their largest value. The same run gives the same
    SVG files, byte for byte.

    Args:
        run: the run to draw.
        folder: created where absent.
        baselines: further runs over the same tasks; their scores are dashed in ``curves``.

    Returns:
        the paths written, SVG before PNG.

    Raises:
        InputError: ``folder`` cannot be created or written, or a run learned other tasks or other data.
        RunError: writing stopped half-way (a full disk).
    """
    import matplotlib

    figures = draw_figures(run, baselines)
    make_folder(folder)
    written = []
    with matplotlib.rc_context(SETTINGS):
        for name, figure in figures.items():
            for kind, options in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 200})):
                content = io.BytesIO()
                # A Figure made without pyplot brings its own Agg or SVG canvas: no display and no global state.
                figure.savefig(content, format=kind, **options)
                written.append(write_whole(folder / f"{name}.{kind}", content.getvalue()))
    return written
