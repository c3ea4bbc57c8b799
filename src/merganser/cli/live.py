"""The view of a running command, and the result that it prints at its end."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from merganser import processes
from merganser.cli.output import OutputConsole, ProgressConsole
from merganser.events import Evaluating, Event, Listener, Merged, Notice, RowDone, StepDone, TaskStarted
from merganser.report.formatting import (
    MISSING,
    cause_title,
    finite,
    metric_title,
    plural,
    row_label,
    score,
    score_with_error,
    significant,
    size,
)
from merganser.report.sections import stored_over_time

if TYPE_CHECKING:
    from merganser.cli.gate import Gate
    from merganser.config import RunConfig
    from merganser.learner import Learner
    from merganser.runs.record import RunRecord
    from merganser.streams.task import Task
    from merganser.streams.watch import WatchedTask

NOT_SCORED = "not scored (no test file)"

Row = tuple[Sequence[str], dict[str, float]]
"""Tasks learned since the row before, and a score in [0, 1] of every evaluated task."""


class LiveView:
    """Shows events: a view that is redrawn in a terminal, one line per event elsewhere."""

    def __init__(self, console: Console, title: str) -> None:
        self.console = console
        self.title = title
        self.rows: list[Row] = []
        self.merges: list[str] = []
        self.status = Text("Reading the model ...", style="dim")
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
        )
        self.bar = self.progress.add_task("", total=None, visible=False)
        self.live = Live(self, console=console, refresh_per_second=8) if console.is_terminal else None

    def __rich__(self) -> RenderableType:
        parts: list[RenderableType] = [Text(self.title, style="bold")]
        if self.rows:
            parts.append(score_table(self.rows))
        parts.append(self.status)
        parts += [Text(f"  merge {line}", style="cyan") for line in self.merges[-4:]]
        parts.append(self.progress)
        return Group(*parts)

    def print(self, text: str) -> None:
        """Print a line that stays."""
        if self.live is not None:
            self.live.console.print(text, highlight=False, markup=False)
        else:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def __call__(self, event: Event) -> None:
        if isinstance(event, Notice):
            self.print(event.text)
        elif isinstance(event, TaskStarted):
            self._start(event)
        elif isinstance(event, StepDone):
            self._step(event)
        elif isinstance(event, Merged):
            self._merge(event)
        elif isinstance(event, Evaluating):
            self.progress.update(
                self.bar, description=f"answering {event.task}", total=event.total, completed=event.done, visible=True
            )
        elif isinstance(event, RowDone):
            self._row(event)

    def _start(self, event: TaskStarted) -> None:
        self.merges = []
        memory = f", {event.memory_examples} in memory" if event.memory_examples else ""
        self.status = Text(f"Task {event.index}: {event.task} ({plural(event.examples, 'example')}{memory})")
        self._progress(event)
        if self.live is None:
            sizes = f"{plural(event.examples, 'example')}{memory}, {plural(event.steps, 'step')}"
            self.print(f"Learning task {event.index}: {event.task} ({sizes})")

    def _step(self, event: StepDone) -> None:
        line = f"Task {event.task}: loss {event.loss:.3f}"
        if event.probe is not None:
            line += f", loss on the memory {event.probe:.3f}"
        if event.interval is not None:
            line += f", a merge planned every {plural(event.interval, 'step')}"
        self.status = Text(line)
        self._progress(event)

    def _progress(self, event: TaskStarted | StepDone) -> None:
        self.progress.update(
            self.bar, description=f"learning {event.task}", total=event.steps, completed=event.step, visible=True
        )

    def _merge(self, event: Merged) -> None:
        line = f"at step {event.step} ({cause_title(event.cause)})"
        if event.reason is not None:
            line += f" refused and undone, since {event.reason}"
        line += f": {significant(event.weight_new)} new + {significant(event.weight_old)} old"
        if event.rehearsal_steps or event.cause != "end":
            line += f" after {plural(event.rehearsal_steps, 'rehearsal step')}; next in {event.next_interval}"
        self.merges.append(line)
        if self.live is None:
            self.print(f"  merge {line}")

    def _row(self, event: RowDone) -> None:
        first = not self.rows and not event.learned
        self.rows.append((event.learned, event.scores))
        self.progress.update(self.bar, visible=False)
        if self.live is None:
            scores = [f"{task} {score(value)}" for task, value in event.scores.items()]
            missing = [f"{task} {NOT_SCORED}" for task in event.learned if task not in event.scores]
            label = row_label(event.learned, first)
            self.print(f"{label} (percent): {', '.join([*scores, *missing])}" if scores else f"{label}: {NOT_SCORED}")


@contextlib.contextmanager
def watching(title: str, console: Console | None = None) -> Iterator[Listener]:
    """Yield a listener that shows the events of the block on standard error, so that output can be piped."""
    view = LiveView(console or ProgressConsole(), title)
    if view.live is None:
        yield view
        return
    with view.live:
        yield view


def score_table(rows: Sequence[Row]) -> Table:
    """Tabulate scores in percent: a row per evaluation, a column per task; underlined right after the task."""
    columns = list(dict.fromkeys(task for learned, scores in rows for task in (*scores, *learned)))
    table = Table(pad_edge=False)
    table.add_column("")
    for column in columns:
        scored = any(column in scores for _, scores in rows)
        table.add_column(column if scored else f"{column}: {NOT_SCORED}", justify="right", overflow="fold")
    for number, (learned, scores) in enumerate(rows):
        styles = ["bold underline" if task in learned else "" if task in scores else "dim" for task in columns]
        cells = [Text(score(scores.get(task)), style) for task, style in zip(columns, styles, strict=True)]
        table.add_row(row_label(learned, first=number == 0), *cells)
    return table


def show_result(console: Console, record: RunRecord, baseline: RunRecord | None = None) -> None:
    """Print the score matrix and the metrics of a run, beside those of a baseline."""
    records = [record] if baseline is None else [baseline, record]
    for run in records:
        console.print(Text(f"\n{method_title(run)}: scores in percent", style="bold"))
        console.print(score_table(rows_of(run)))
    _show_metrics(console, records)
    for run in records:
        if line := stored(run):
            console.print(Text(f"{method_title(run)} {line}"))


def _show_metrics(console: Console, records: Sequence[RunRecord]) -> None:
    """Print the metrics of the last run that any of the runs has; nothing where none was measured."""
    table = Table(pad_edge=False, title="Metrics in percent ± standard error over the test examples")
    table.add_column("")
    for run in records:
        table.add_column(method_title(run), justify="right")
    by_name = [{metric.name: metric for metric in run.scores.summary} for run in records]
    for metric in records[-1].scores.summary:
        metrics = [metrics.get(metric.name) for metrics in by_name]
        if all(other is None or finite(other.value) is None for other in metrics):
            continue
        cells = [score_with_error(other.value, other.stderr) if other else MISSING for other in metrics]
        table.add_row(metric_title(metric.name), *cells)
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


def method_title(record: RunRecord) -> str:
    """Return the title of a run's method."""
    from merganser.methods import METHODS

    return METHODS[record.info.config["method"]["name"]].title


def rows_of(record: RunRecord) -> list[Row]:
    """Return the tasks learned and the scores of each row of the matrix."""
    tasks = record.scores.tasks
    return [
        (row.learned, {task: row.scores[task].value for task in tasks if task in row.scores})
        for row in record.scores.rows
    ]


Output = Literal["screen", "json", "none"]
"""How the result is printed: for people, as one JSON document, or not at all."""


def learn_stream(
    out: Path,
    config: RunConfig,
    tasks: Sequence[Task],
    *,
    command: str,
    fwt: bool = False,
    output: Output = "screen",
    watch: Sequence[WatchedTask] = (),
) -> RunRecord:
    """Learn a stream with a live view, write the report, print the result."""
    from merganser.learner import Learner

    console = ProgressConsole()
    with (
        watching(f"Merganser: {config.method.name} on {len(tasks)} tasks", console) as listener,
        Learner.of_config(out, config, listener=listener, command=command) as learner,
    ):
        learner.watch(*watch)
        learner.learn_stream(tasks)
        if fwt:
            learner.measure_references(tasks)
        record = learner.record
    if output != "none":
        _finish(out, record, output)
    return record


def learn_one(
    run: Path,
    task: Task,
    config: RunConfig | None,
    model: str | None,
    *,
    command: str,
    output: Output = "screen",
    watch: Sequence[WatchedTask] = (),
    gate: Gate | None = None,
) -> None:
    """Learn one task with a live view, write the report, print the result.

    Args:
        gate: decides whether it is kept. Where it is not, the verdict is printed and the run is as it was.
    """
    from merganser.errors import InputError
    from merganser.learner import Learner
    from merganser.learner.learn_task import RefusedRow
    from merganser.runs.directory import RunDirectory

    if config is None and not RunDirectory.exists(run):
        raise InputError(f"There is no run in '{run}'.", "Start one with `merganser run`, or give --config FILE.yaml.")

    if config is not None and model is not None:
        raise InputError("--model and --config were both given.", "A new run's model is named in --config.")

    def opened(listener: Listener) -> Learner:
        if config is None:
            return Learner.open(run, listener=listener, model_path=model)
        return Learner.of_config(run, config, listener=listener, command=command)

    try:
        with watching(f"Merganser: learning {task.name}") as listener, opened(listener) as learner:
            learner.watch(*watch)
            if gate is not None:
                gate.prepare(learner.session, [task])
            learner.learn(task, accept=gate)
            record = learner.record
    except RefusedRow:
        if gate is not None:
            gate.print_refusal(as_json=output == "json")
        raise typer.Exit(0 if gate is None else gate.exit_code) from None
    _finish(run, record, output, gate)


def _finish(run: Path, record: RunRecord, output: Output, gate: Gate | None = None) -> None:
    from merganser.report import write_report
    from merganser.report.result import run_result

    page = processes.on_main(lambda: write_report(record, run / "report.html"))
    if output == "json":
        checked = {} if gate is None else gate.as_dict(kept=True)
        typer.echo(json.dumps({**run_result(record, page), **checked}, indent=2, allow_nan=False))
        return
    console = OutputConsole()
    show_result(console, record)
    if gate is not None:
        gate.print_verdict()
    console.print(f"\nThe run is in {run}; open {page} to see it.", highlight=False, soft_wrap=True)
