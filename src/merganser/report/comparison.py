"""Figures that compare runs: loss on the memory, change of the weights, and the score of the first task."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merganser.report.formatting import finite, literal, shortened
from merganser.report.names import method_name
from merganser.report.palette import BLUE, GREEN, GREY, INK, ORANGE, VERMILION
from merganser.report.series import POINTS, buckets, learned_before
from merganser.runs.record import RunRecord, SignalRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLES = ((BLUE, "o"), (VERMILION, "^"), (GREEN, "D"), (ORANGE, "s"), (GREY, "v"), (INK, "x"))
"""Colour and marker of each run, in order; they repeat beyond these."""


def run_labels(runs: Sequence[RunRecord]) -> list[str]:
    """Name each run by its method, and by its folder where several have the same one."""
    names = [method_name(run) + (" without merging" if _never_merges(run) else "") for run in runs]
    several = Counter(names)
    return [
        literal(f"{name} ({Path(run.path).name})" if several[name] > 1 else name)
        for name, run in zip(names, runs, strict=True)
    ]


def _method(run: RunRecord) -> dict[str, Any]:
    method = run.info.config.get("method")
    return method if isinstance(method, dict) else {"name": method}


def _never_merges(run: RunRecord) -> bool:
    ablation = _method(run).get("ablation")
    return isinstance(ablation, dict) and ablation.get("merge") is False


def _is_joint(run: RunRecord) -> bool:
    from merganser.methods import METHODS

    name = _method(run).get("name")
    return isinstance(name, str) and name in METHODS and METHODS[name].joint


def fitted_line(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float] | None:
    """Fit a line by least squares.

    Returns:
        slope and intercept; ``None`` with fewer than two different ``xs``.
    """
    if len(set(xs)) < 2:
        return None
    middle, level = math.fsum(xs) / len(xs), math.fsum(ys) / len(ys)
    across = math.fsum((x - middle) * (y - level) for x, y in zip(xs, ys, strict=True))
    slope = across / math.fsum((x - middle) ** 2 for x in xs)
    return slope, level - slope * middle


def _probes(run: RunRecord, task: str) -> list[SignalRecord]:
    return [signal for signal in run.signals.get(task, []) if finite(signal.probe) is not None]


def _means(values: Sequence[float], width: int) -> list[float]:
    """Return the means of ``width`` consecutive values each; the last may be of fewer."""
    return [mean for mean in buckets(values, width)["mean"] if mean is not None]


def memory_loss_figure(runs: Sequence[RunRecord]) -> Figure | None:
    """Draw the loss on the memory over the steps of each task, one chart per task, with a fitted line per run.

    Returns:
        ``None`` where fewer than two runs measured it.
    """
    from matplotlib.figure import Figure

    names = [task.name for task in runs[0].tasks]
    tasks = [name for name in names if sum(bool(_probes(run, name)) for run in runs) > 1]
    if not tasks:
        return None
    columns = min(4, len(tasks))
    lines = math.ceil(len(tasks) / columns)
    figure = Figure(figsize=(max(3.4, 1.9 * columns), 0.9 + 1.6 * lines), layout="constrained")
    labels = run_labels(runs)
    for place, name in enumerate(tasks):
        axes = figure.add_subplot(lines, columns, place + 1)
        for number, (run, label) in enumerate(zip(runs, labels, strict=True)):
            colour, marker = STYLES[number % len(STYLES)]
            probes = _probes(run, name)
            xs, ys = [signal.step for signal in probes], [signal.probe or 0.0 for signal in probes]
            if not probes:
                continue
            width = math.ceil(len(probes) / POINTS)
            axes.plot(
                _means(xs, width),
                _means(ys, width),
                marker,
                color=colour,
                markersize=2.5,
                alpha=0.5,
                linewidth=0,
                label=label,
            )
            line = fitted_line(xs, ys)
            if line is not None:
                ends = [min(xs), max(xs)]
                axes.plot(ends, [line[0] * x + line[1] for x in ends], color=colour, linewidth=1.5)
        axes.set_title(literal(shortened(name)), loc="left")
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=7.5)
    handles = {label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels())}  # noqa: B905
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", fontsize=7.5, frameon=False, ncols=2)
    figure.supxlabel("inner optimizer steps of the task (lines: least squares)", fontsize=9)
    figure.supylabel("loss on the memory (nats)", fontsize=9)
    return figure


def parameter_change_figure(runs: Sequence[RunRecord]) -> Figure | None:
    """Draw the change of the weights per step over all tasks, of the runs that recorded it: those that never merge.

    Returns:
        ``None`` where no run did.
    """
    from matplotlib.figure import Figure

    recorded = [run for run in runs if any(s.change is not None for steps in run.signals.values() for s in steps)]
    if not recorded:
        return None
    figure = Figure(figsize=(7.2, 2.4), layout="constrained")
    axes = figure.add_subplot()
    for number, (run, label) in enumerate(zip(recorded, run_labels(recorded), strict=True)):
        colour, marker = STYLES[number % len(STYLES)]
        start = 0
        for position, task in enumerate(run.tasks):
            signals = run.signals.get(task.name, [])
            points = [(start + s.step, s.change) for s in signals if finite(s.change) is not None]
            if points:
                xs, ys = zip(*points, strict=True)
                axes.plot(xs, ys, color=colour, marker=marker, markersize=2.5, linewidth=1, label=label)
                label = "_" + label  # once in the legend
            if number == 0:
                if position:
                    axes.axvline(start, color=GREY, linewidth=0.6, alpha=0.6)
                steps = max((s.step for s in signals), default=0)
                middle = (start + steps / 2, 1.02)
                text = str(position + 1) if len(run.tasks) > 6 else literal(shortened(task.name))
                axes.text(*middle, text, transform=axes.get_xaxis_transform(), ha="center", va="bottom", fontsize=8)
            start += max((s.step for s in signals), default=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("inner optimizer steps")
    axes.set_ylabel("sum of |weight change| per step")
    axes.legend(fontsize=7.5, frameon=False)
    return figure


def first_task_figure(runs: Sequence[RunRecord]) -> Figure | None:
    """Draw the score of the first task against the number of tasks learned, a line per run; joint training as a bound.

    Returns:
        ``None`` where fewer than two runs scored it.
    """
    from matplotlib.figure import Figure

    first = runs[0].tasks[0].name if runs[0].tasks else None
    curves: list[list[tuple[int, float]]] = []
    for run in runs:
        rows = zip(learned_before(run), run.scores.rows, strict=True)
        curves.append(
            [(n, row.scores[first].value) for n, row in rows if n and first is not None and first in row.scores]
        )
    if first is None or sum(map(bool, curves)) < 2:
        return None
    figure = Figure(figsize=(4.8, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for number, (run, label, curve) in enumerate(zip(runs, run_labels(runs), curves, strict=True)):
        colour, marker = STYLES[number % len(STYLES)]
        if not curve:
            continue
        if _is_joint(run):
            axes.axhline(curve[-1][1], color=INK, linewidth=1.2, linestyle=(0, (1, 2)), label=f"{label} (bound)")
            continue
        axes.plot(*zip(*curve, strict=True), color=colour, marker=marker, markersize=4, linewidth=1.2, label=label)
    learned = max(len(run.tasks) for run in runs)
    axes.set_xlim(0.6, learned + 0.4)
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100"])
    axes.set_xticks(range(1, learned + 1, math.ceil(learned / 10)))
    axes.set_xlabel("tasks learned")
    axes.set_ylabel("score in percent")
    axes.set_title(literal(shortened(first)), loc="left")
    axes.legend(fontsize=7.5, frameon=False)
    return figure
