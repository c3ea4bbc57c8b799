"""The screen at the end of a command: what was learned, what was lost, how to undo it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from merganser.metrics.continual import Metric
from merganser.metrics.course import HEAD, WATCHED, TaskCourse, cells, courses, loss_sentence, untested_sentence
from merganser.report.formatting import (
    MISSING,
    finite,
    metric_title,
    plural,
    row_label,
    score,
    score_with_error,
    size,
)
from merganser.report.sections import method_name, method_title, stored_over_time
from merganser.runs.record import RunRecord

SPELLED_OUT = {
    "OP": "Overall performance (OP), mean of all tasks now",
    "BWT": "Backward transfer (BWT), mean change of earlier tasks",
    "retained": "Retained of watched tasks, mean change since before training",
}
"""The metrics of the screen, and how they are written."""

STYLES = {"lost": "bold red", "lower": "red", "gained": "green", "new": "bold"}


def show_outcome(
    console: Console,
    record: RunRecord,
    *,
    baselines: Sequence[RunRecord] = (),
    learned: Sequence[str] = (),
    page: Path | None = None,
    verbose: bool = False,
) -> None:
    """Print what became of the tasks of a run.

    Args:
        record: of the run.
        baselines: other runs over the same tasks, whose scores are shown beside; of more than two the first two, which
            is what a line of 80 characters holds.
        learned: tasks that the command has learned, if it is about these alone.
        page: its report.
        verbose: also all metrics, the score matrix and what the run stores.
    """
    tasks = record.courses()
    beside = baselines[:2]
    console.print(Text(sentence(record, tasks, learned), style="bold"), soft_wrap=False)
    if tasks:
        fresh = [course.task for course in tasks if course.fresh]
        last = fresh[0] if len(fresh) == 1 else "the last tasks"
        if any(course.change is not None for course in tasks):
            _print(console, f"Keep {last}? merganser check {shlex.quote(record.path)}")
        _print(console, f"Undo {last}: merganser undo {shlex.quote(record.path)}")
    console.print()
    if tasks:
        console.print(course_table(tasks, beside))
        console.print(Text(_legend(tasks), style="dim"))
        console.print()
    _show_headline(console, record, beside)
    if verbose:
        _show_everything(console, [*baselines, record])
    if page is not None:
        _print(console, f"Page: {page}")


def _print(console: Console, line: str) -> None:
    """Print a line with a path or a command, which is not broken."""
    console.print(line, highlight=False, soft_wrap=True)


def sentence(record: RunRecord, tasks: Sequence[TaskCourse], learned: Sequence[str] = ()) -> str:
    """Say what was learned and which task lost most by it.

    Args:
        learned: the tasks of the last row, if the sentence is about them: losses are then those since the row before.
    """
    newly_learned = [course for course in tasks if course.task in learned]
    if not tasks:
        return "No task was learned yet."
    alone = len(newly_learned) == 1
    done = [course for course in tasks if not course.watched]
    newest = newly_learned[0] if alone else done[-1]
    now = newest.now
    reached = f": {score(now.value)} %" if now is not None else ", which is not scored (no test file)"
    what = newest.task if alone or len(done) == 1 else f"{plural(len(done), 'task')}, the last {newest.task}"
    lost = loss_sentence(_of_last_row(record), since="before it") if alone else loss_sentence(tasks)
    return f"Learned {what}{reached}. {lost}".rstrip()


def _of_last_row(record: RunRecord) -> list[TaskCourse]:
    """Return the courses of earlier and watched tasks from the row before the last one to the last."""
    rows = record.scores.rows
    earlier = [task for row in rows[:-1] for task in row.learned]
    earlier += [task.name for task in record.scores.watched]
    # As if all of these had been learned in the row before.
    before = rows[-2].model_copy(update={"learned": earlier})
    start = rows[0].model_copy(update={"learned": []})
    return [course for course in courses([start, before, rows[-1]], record.changes("previous")) if not course.fresh]


def course_table(tasks: Sequence[TaskCourse], baselines: Sequence[RunRecord] = ()) -> Table:
    """Tabulate the courses, a row per task, a watched one with its mark; beside each baseline's last scores."""
    last = [baseline.scores.rows[-1].scores if baseline.scores.rows else {} for baseline in baselines]
    rows = [cells(course) for course in tasks]
    used = [number for number in range(len(HEAD)) if number < 5 or any(row[number] for row in rows)]
    table = Table(box=None, pad_edge=False, padding=(0, 1 if baselines else 2, 0, 0))
    for number in used:
        name = HEAD[number] if number != 2 else "right\nafter"
        # The names take what is left; they are broken into lines where that is less than they need.
        ratio = {"overflow": "fold"} if number == 0 else {"no_wrap": True}
        table.add_column(name, justify="left" if number in (0, 6) else "right", vertical="bottom", **ratio)
    for baseline in baselines:
        table.add_column(f"{method_name(baseline)}\nnow", justify="right", no_wrap=True)
    for course, row in zip(tasks, rows, strict=True):
        style = STYLES.get(course.word, "")
        line = [Text(row[number], style if number >= 4 else "") for number in used]
        if course.now is None:
            line[used.index(3)] = Text("no test")
        for scores in last:
            entry = scores.get(course.task)
            line.append(Text(score(None if entry is None else entry.value)))
        table.add_row(*line)
    return table


def _legend(tasks: Sequence[TaskCourse]) -> str:
    parts = ["Percent; ±: one standard error. before: before any training; change: since the task was learned"]
    if any(course.interval for course in tasks):
        parts[0] += ", with its 95 % interval"
    if any(course.watched for course in tasks):
        parts.append(WATCHED)
    meanings = {
        "lost": "lost, gained: beyond chance, at 95 % for all tasks together",
        "gained": "lost, gained: beyond chance, at 95 % for all tasks together",
        "noise": "noise: could be chance",
    }
    parts += dict.fromkeys(meanings[course.word] for course in tasks if course.word in meanings)
    return f"{'; '.join(parts)}. {untested_sentence(tasks)}".rstrip()


def _metric(run: RunRecord, name: str) -> Metric | None:
    return next((metric for metric in run.scores.summary if metric.name == name), None)


def _show_headline(console: Console, record: RunRecord, baselines: Sequence[RunRecord]) -> None:
    for name, title in SPELLED_OUT.items():
        metric = _metric(record, name)
        if metric is None or finite(metric.value) is None:
            continue
        line = f"{title}: {_value(metric)}"
        for baseline in baselines:
            if (other := _metric(baseline, name)) is not None:
                line += f"; {method_name(baseline)}: {_value(other)}"
        console.print(Text(f"{line}."))


def _value(metric: Metric) -> str:
    """Format a mean in percent, a difference in points with its sign."""
    difference = metric.name != "OP"
    error = f" ± {score(metric.stderr)}" if finite(metric.stderr) is not None else ""
    return f"{score(metric.value, signed=difference)}{error}" + ("" if difference else " %")


# Behind --verbose ----------------------------------------------------------------------------------------------------


def _show_everything(console: Console, records: Sequence[RunRecord]) -> None:
    """Print the matrix, the metrics, and what each run stores."""
    for run in records:
        console.print(Text(f"\n{method_title(run)}: scores after each task, in percent", style="bold"))
        console.print(matrix_table(run))
    _show_metrics(console, records)
    for run in records:
        if line := stored(run):
            console.print(Text(f"{method_title(run)} {line}"))
    console.print()


def matrix_table(run: RunRecord) -> Table:
    """Tabulate the whole score matrix with a row per task: its scores before training and after each row.

    The rows are numbered, and named below.
    """
    rows = run.scores.rows
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("row", no_wrap=True)
    table.add_column("", overflow="fold")
    table.add_column("task, score", overflow="fold")
    for number, row in enumerate(rows):
        scores = ", ".join(f"{task} {score(entry.value)}" for task, entry in row.scores.items())
        table.add_row(str(number), row_label(row.learned, first=number == 0), Text(scores or MISSING))
    return table


def _show_metrics(console: Console, records: Sequence[RunRecord]) -> None:
    """Print the metrics of the last run that any of the runs has; nothing where none was measured."""
    table = Table(box=None, pad_edge=False, title="Metrics in percent ± standard error over the test examples")
    table.title_justify = "left"
    table.add_column("", overflow="fold")
    for run in records:
        table.add_column(method_title(run), justify="right")
    by_name = [{metric.name: metric for metric in run.scores.summary} for run in records]
    for metric in records[-1].scores.summary:
        metrics = [metrics.get(metric.name) for metrics in by_name]
        if metric.name in SPELLED_OUT or all(other is None or finite(other.value) is None for other in metrics):
            continue
        numbers = [score_with_error(other.value, other.stderr) if other else MISSING for other in metrics]
        table.add_row(metric_title(metric.name), *numbers)
    if table.row_count:
        console.print()
        console.print(table)


def stored(record: RunRecord) -> str:
    """Describe what a run stores for the tasks to come, part by part and in all; empty before the first task."""
    last = max(record.tasks, key=lambda task: task.index, default=None)
    if last is None or not last.method_bytes:
        return ""
    parts = ", ".join(f"{name} {size(count)}" for name, count in last.method_bytes.items())
    return f"stores {parts}: {stored_over_time(record)}."
