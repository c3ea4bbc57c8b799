"""The first screen of the page: verdict, a dumbbell per task, the two headline metrics of each run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from merganser.metrics.course import TaskCourse, untested
from merganser.metrics.score import Score
from merganser.report.formatting import MISSING, finite, metric_title, percent, score, score_with_error, seconds, size
from merganser.report.sections import merging_share, method_title
from merganser.report.verdict import keep_sentence, last_check, verdict_sentence
from merganser.runs.record import RunRecord

MOST_ROWS = 16
"""Tasks with a dumbbell on the first screen; of more, the largest losses are shown and the rest is folded."""

WORST = 6
"""Largest losses that are shown then."""

MOST_WATCHED = 3
"""Watched tasks that are shown besides, those that lost most."""

SIGNS = {"lost": "▼", "lower": "▼", "gained": "▲", "higher": "▲", "noise": "≈", "same": "=", "new": "new", "": ""}
"""What a change is -> sign beside its number, so that nothing is said by colour alone."""

WORDS = {"noise": "noise", "same": "unchanged", "lower": "untested", "higher": "untested"}

HEADLINES = {
    "OP": ("overall performance", "mean score over all tasks now"),
    "BWT": ("backward transfer", "mean change of the earlier tasks since each was learned; negative: forgotten"),
}
"""Metric -> its name and what it is, as somebody outside the field understands it."""


def verdict(run: RunRecord, tasks: Sequence[TaskCourse]) -> dict[str, Any]:
    """Return the sentence of the page, whether to keep the last task, and what is missing for it."""
    check = last_check(run, tasks)
    missing = untested(tasks)
    fresh = [task.task for task in tasks if task.fresh]
    return {
        "sentence": verdict_sentence(tasks).replace(" %", "\N{NO-BREAK SPACE}%"),
        "question": f"Keep {fresh[0]}?" if len(fresh) == 1 else "Keep the last tasks?",
        "keep": None if check is None else check.verdict.value,
        "why": "" if check is None else keep_sentence(check, fresh),
        "undo": f"merganser undo {shlex.quote(run.path)}",
        "missing": missing,
        "all_missing": len(missing) == sum(task.change is not None for task in tasks),
    }


def _at(entry: Score | None) -> str | None:
    """Place of a score on the track, in percent of its width."""
    return None if entry is None else f"{100 * entry.value:.1f}"


def _bell(course: TaskCourse, mark: str, others: Sequence[TaskCourse | None]) -> dict[str, Any]:
    word = course.word
    ends = sorted(entry.value for entry in (course.learned, course.now) if entry is not None)
    return {
        "task": course.task,
        "mark": mark,
        "before": _at(course.before),
        "learned": None if course.watched else _at(course.learned),
        "now": _at(course.now),
        "low": f"{100 * ends[0]:.1f}" if ends else "0",
        "width": f"{100 * (ends[-1] - ends[0]):.1f}" if ends else "0",
        "texts": [score(entry.value if entry else None) for entry in (course.before, course.learned, course.now)],
        "change": "" if course.change is None else score(course.change, signed=True),
        "interval": course.interval,
        "word": word,
        "sign": SIGNS[word],
        "said": WORDS.get(word, word),
        "others": [
            {"now": _at(other.now), "text": score(other.now.value if other.now else None)} if other else {}
            for other in others
        ],
    }


def dumbbells(
    tasks: Sequence[TaskCourse], marks: Mapping[str, str], others: Sequence[Sequence[TaskCourse]]
) -> dict[str, Any]:
    """Return a row per task: the scores before training, right after learning and now, and the baselines' now.

    Args:
        tasks: of the run.
        marks: of watched tasks.
        others: of each baseline.
    """
    baselines = [{course.task: course for course in other} for other in others]
    rows = [_bell(task, marks.get(task.task, ""), [of.get(task.task) for of in baselines]) for task in tasks]
    if len(tasks) <= MOST_ROWS:
        return {"rows": rows, "folded": []}
    losses = sorted((task for task in tasks if task.change is not None), key=lambda task: task.change or 0.0)
    watched = [task for task in losses if task.watched][:MOST_WATCHED]
    first = {
        task.task for task in [*losses[:WORST], *watched, *(task for task in tasks if task.fresh)][: MOST_ROWS - 1]
    }
    order = {task.task: place for place, task in enumerate(losses)}
    shown = sorted((row for row in rows if row["task"] in first), key=lambda row: order.get(row["task"], len(order)))
    return {"rows": shown, "folded": rows}


def headlines(runs: Sequence[RunRecord], names: Sequence[str]) -> dict[str, Any]:
    """Return OP and BWT of each run, side by side, with what they mean."""
    rows = []
    for run, name in zip(runs, names, strict=True):
        known = {metric.name: metric for metric in run.scores.summary}
        values = []
        for key in HEADLINES:
            metric = known.get(key)
            value = MISSING if metric is None else score(metric.value, signed=key == "BWT")
            error = score(metric.stderr) if metric is not None and finite(metric.stderr) is not None else ""
            values.append({"value": value, "error": error if value != MISSING else ""})
        rows.append({"name": name, "values": values})
    heads = [
        {"place": place, "short": key, "long": long, "is": what}
        for place, (key, (long, what)) in enumerate(HEADLINES.items())
    ]
    return {"heads": heads, "rows": rows}


def side_by_side(runs: Sequence[RunRecord], names: Sequence[str]) -> list[dict[str, str]]:
    """Return what each run did and took, in a row per run; empty for a run alone."""
    if len(runs) < 2:
        return []
    times = [sum(task.cost.seconds for task in run.tasks) for run in runs]
    rows = []
    for run, name, time in zip(runs, names, times, strict=True):
        last = max(run.tasks, key=lambda task: task.index, default=None)
        factor = f"{time / times[1]:.2f} ×" if times[1] > 0 else MISSING
        rows.append(
            {
                "name": name,
                "method": method_title(run),
                "seed": str(run.info.seed),
                "merges": f"{sum(merge.status == 'applied' for merge in run.merges):,}",
                "seconds": seconds(time),
                "factor": factor,
                "merging": percent(merging_share([task.cost for task in run.tasks])),
                "bytes": size(sum(last.method_bytes.values())) if last and last.method_bytes else MISSING,
                "path": run.path,
            }
        )
    return rows


def definitions(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Return every metric with its definition and source, its value in each run, and the difference to the first
    baseline."""
    beside = [{metric.name: metric for metric in run.scores.summary} for run in runs[1:]]
    rows = []
    for metric in runs[0].scores.summary:
        value = finite(metric.value)
        others = [known.get(metric.name) for known in beside]
        difference = ""
        if others and others[0] is not None and (other := finite(others[0].value)) is not None and value is not None:
            difference = score(value - other, signed=True)
        rows.append(
            {
                "name": metric_title(metric.name),
                "values": [
                    MISSING if entry is None else score_with_error(entry.value, entry.stderr)
                    for entry in (metric, *others)
                ],
                "difference": difference,
                "definition": metric.definition,
                "source": metric.source,
            }
        )
    return rows


def run_names(runs: Sequence[RunRecord]) -> list[str]:
    """Name each run by the title of its method, and by its folder where several have the same one."""
    titles = [method_title(run) for run in runs]
    return [
        f"{title} ({Path(run.path).name})" if titles.count(title) > 1 else title
        for run, title in zip(runs, titles, strict=True)
    ]
