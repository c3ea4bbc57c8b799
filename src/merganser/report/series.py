"""The data of the charts: a run as lists of numbers, thinned where it has too many steps or merges for one page."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from merganser.report.formatting import CAUSE_LETTER, finite
from merganser.runs.record import MergeRecord, RunRecord, SignalRecord

POINTS = 240
"""Points drawn per task: more than a phone has pixels for one task, few enough for twenty tasks in one page."""

LEAST_POINTS = 24
"""Points drawn per task, however many tasks there are."""

MERGES = 1000
"""Merges in one page, about: a page of all merges of a long run would be too large for a browser."""

MANY_TASKS = 20
"""Of more tasks than this, a page shows fewer points and merges: its other parts, such as the matrix, grow too."""


def _round(value: float | None) -> float | None:
    """Round to five significant digits: finer than a pixel, and the page stays small."""
    return None if finite(value) is None else float(f"{value:.5g}")


def learned_before(run: RunRecord) -> list[int]:
    """Return for each row of the matrix how many tasks had been learned when it was measured (tasks learned together
    share a row, so this is not always the number of the row)."""
    counts, learned = [], 0
    for row in run.scores.rows:
        learned += len(row.learned)
        counts.append(learned)
    return counts


def rows_learned(run: RunRecord) -> dict[str, int]:
    """Map each task to the row of the matrix that was measured right after it was learned."""
    rows = {name: index for index, row in enumerate(run.scores.rows) for name in row.learned}
    return rows | {task.name: task.row for task in run.tasks}


def task_order(run: RunRecord) -> list[str]:
    """List the names under which steps or merges were recorded, in order of learning (of tasks learned together, only
    the one that carries their steps)."""
    recorded = dict.fromkeys([*(name for name, steps in run.signals.items() if steps), *(m.task for m in run.merges)])
    index = {task.name: task.index for task in run.tasks}
    return sorted(recorded, key=lambda name: index.get(name, len(index) + 1))


def merges_in_order(run: RunRecord) -> list[MergeRecord]:
    """Sort the ledger by task, step and number: the order of the page's table and of its charts."""
    position = {name: index for index, name in enumerate(task_order(run))}
    return sorted(run.merges, key=lambda merge: (position[merge.task], merge.step, merge.merge))


def _room(tasks: int) -> float:
    """Return the share of points per task, and of merges, that a page of so many tasks has room for."""
    return min(1.0, MANY_TASKS / max(1, tasks)) ** 2


def merge_stride(run: RunRecord) -> int:
    """Return ``k`` where a page shows only every k-th merge of a task; 1 where it shows all."""
    return max(1, math.ceil(len(run.merges) / (MERGES * _room(len(run.tasks)))))


def shown_merges(run: RunRecord) -> list[MergeRecord]:
    """Return the merges that a page shows, in order: all, or of each task every k-th from its first, and its last."""
    stride = merge_stride(run)
    by_task = itertools.groupby(merges_in_order(run), key=lambda merge: merge.task)
    shown = []
    for _, group in by_task:
        merges = list(group)
        shown += merges[:-1:stride] + merges[-1:]
    return shown


def buckets(values: Sequence[float | None], width: int) -> dict[str, list[float | None]]:
    """Return mean, minimum and maximum over consecutive groups of ``width`` values; a group without values is ``None``.

    No value is dropped: every step is within the band drawn from low to high.
    """
    out: dict[str, list[float | None]] = {"mean": [], "low": [], "high": []}
    for start in range(0, len(values), width):
        group = [value for value in values[start : start + width] if value is not None and math.isfinite(value)]
        out["mean"].append(_round(math.fsum(group) / len(group)) if group else None)
        out["low"].append(_round(min(group)) if group else None)
        out["high"].append(_round(max(group)) if group else None)
    return out


def segments(signals: Sequence[SignalRecord], key: str) -> list[list[float]]:
    """Join equal values of consecutive steps into ``[first step, last step, value]``; see :func:`thinned`."""
    out: list[list[float]] = []
    for signal in signals:
        value = _round(getattr(signal, key))
        if value is None:
            continue
        if out and out[-1][2] == value and out[-1][1] == signal.step - 1:
            out[-1][1] = signal.step
        else:
            out.append([signal.step, signal.step, value])
    return out


def thinned(levels: Sequence[list[float]], most: int = 4 * POINTS) -> list[list[float]]:
    """Replace groups of consecutive segments by one with their mean over steps where there are more than ``most``."""
    width = max(1, math.ceil(len(levels) / most))
    out: list[list[float]] = []
    for start in range(0, len(levels), width):
        group = levels[start : start + width]
        steps = [last - first + 1 for first, last, _ in group]
        mean = sum(number * value for number, (_, _, value) in zip(steps, group, strict=True)) / sum(steps)
        out.append([group[0][0], group[-1][1], float(f"{mean:.5g}")] if width > 1 else group[0])
    return out


def _task_series(
    name: str, signals: Sequence[SignalRecord], merges: Sequence[MergeRecord], points: int
) -> dict[str, Any]:
    ordered = sorted(signals, key=lambda signal: signal.step)
    width = max(1, math.ceil(len(ordered) / points))
    return {
        "name": name,
        "steps": max([ordered[-1].step if ordered else 0, *(merge.step for merge in merges)]),
        "merges": len(merges),
        "width": width,
        # A point lies in the middle of the steps that it is the mean of.
        "x": [
            (ordered[start].step + ordered[min(start + width, len(ordered)) - 1].step) / 2
            for start in range(0, len(ordered), width)
        ],
        "loss": buckets([signal.loss for signal in ordered], width),
        "probe": buckets([signal.probe for signal in ordered], width),
        "interval": thinned(segments(ordered, "interval"), 4 * points),
        "threshold": thinned(segments(ordered, "threshold"), 4 * points),
    }


def _curve(run: RunRecord, task: str) -> list[list[float | None]]:
    """Return ``[tasks learned, score, standard error]`` for each row that has a score of ``task``."""
    points: list[list[float | None]] = []
    for learned, row in zip(learned_before(run), run.scores.rows, strict=True):
        entry = row.scores.get(task)
        if entry is not None and finite(entry.value) is not None:
            points.append([learned, _round(entry.value), _round(entry.stderr)])
    return points


def points_per_task(run: RunRecord) -> int:
    """Return how many points of a task's steps a page draws: fewer of many tasks, so that the page stays small."""
    return max(LEAST_POINTS, int(POINTS * _room(len(task_order(run)))))


def chart_data(
    run: RunRecord, baselines: Sequence[RunRecord] = (), noise: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Return the data of all charts as plain JSON values without NaN or infinity.

    Args:
        run: the run.
        baselines: runs whose score curves are drawn beside.
        noise: task -> smallest change since it was learned that could be told from none.
    """
    points = points_per_task(run)
    names = task_order(run)
    index = {name: position for position, name in enumerate(names)}
    of_task: dict[str, list[MergeRecord]] = {name: [] for name in names}
    for merge in run.merges:
        of_task[merge.task].append(merge)
    learned = learned_before(run)
    row_of = {**rows_learned(run), **{task.name: 0 for task in run.scores.watched}}
    # Tasks learned together share one training, which is recorded under the first one's name.
    sharing = [row.learned for row in run.scores.rows if len(row.learned) > 1]
    shown = {group[0]: f"{group[0]} and {len(group) - 1} more" for group in sharing}
    return {
        "tasks": [
            _task_series(shown.get(name, name), run.signals.get(name, []), of_task[name], points) for name in names
        ],
        "merges": [
            {
                "task": index[merge.task],
                "step": merge.step,
                "cause": merge.cause,
                "letter": CAUSE_LETTER[merge.cause],
                "refused": merge.status == "refused",
                "signal": _round(merge.learning_signal),
            }
            for merge in shown_merges(run)
        ],
        "curves": [
            {
                "name": task,
                "own": learned[row_of[task]] if row_of.get(task, len(learned)) < len(learned) else None,
                "points": _curve(run, task),
                "baselines": [_curve(baseline, task) for baseline in baselines],
                "noise": _round((noise or {}).get(task)),
            }
            for task in run.scores.tasks
        ],
        "learned": learned[-1] if learned else 0,
    }
