"""What a person sees while a run works, and what remains on the screen after it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from merganser import processes
from merganser.cli.output import OutputConsole, ProgressConsole
from merganser.events import Evaluating, Event, Listener, Merged, Notice, RowDone, StepDone, TaskStarted

if TYPE_CHECKING:
    from merganser.config import RunConfig
    from merganser.learner import Learner
    from merganser.runs.record import RunRecord
    from merganser.streams.task import Task

CAUSES = {
    "due": "due",
    "early": "early: the old tasks were being lost",
    "forced": "forced: no alarm for long",
    "end": "end of the task",
}


class LiveView:
    """Shows events: a view that renews itself in a terminal, one line per thing worth knowing elsewhere."""

    def __init__(self, console: Console, title: str) -> None:
        self.console = console
        self.title = title
        self.rows: list[tuple[str, dict[str, float]]] = []
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

    def say(self, text: str) -> None:
        """A line that stays."""
        if self.live is not None:
            self.live.console.print(text, highlight=False, markup=False)
        else:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def __call__(self, event: Event) -> None:
        if isinstance(event, Notice):
            self.say(event.text)
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
        memory = f", {event.memory_examples} remembered" if event.memory_examples else ""
        self.status = Text(f"Task {event.index}: {event.task} ({event.examples} examples{memory})")
        self.progress.update(
            self.bar, description=f"learning {event.task}", total=event.steps, completed=event.step, visible=True
        )
        if self.live is None:
            self.say(
                f"Learning task {event.index}: {event.task} ({event.examples} examples{memory}, {event.steps} steps)"
            )

    def _step(self, event: StepDone) -> None:
        line = f"Task {event.task}: loss {event.loss:.3f}"
        if event.probe is not None:
            line += f", loss on the memory {event.probe:.3f}, merging every {event.interval} steps"
        self.status = Text(line)
        self.progress.update(
            self.bar, description=f"learning {event.task}", total=event.steps, completed=event.step, visible=True
        )

    def _merge(self, event: Merged) -> None:
        line = f"at step {event.step} ({CAUSES[event.cause]}): {event.weight_new:.3g} new + {event.weight_old:.3g} old"
        if event.reason is not None:
            line = f"at step {event.step} ({CAUSES[event.cause]}) refused and taken back, since {event.reason}:"
            line += f" {event.weight_new:.3g} new + {event.weight_old:.3g} old"
        if event.rehearsal_steps or event.cause != "end":
            line += f" after {event.rehearsal_steps} rehearsal steps; next in {event.next_interval}"
        self.merges.append(line)
        if self.live is None:
            self.say(f"  merge {line}")

    def _row(self, event: RowDone) -> None:
        name = f"after {' + '.join(event.learned)}" if event.learned else "before training"
        self.rows.append((name, event.scores))
        self.progress.update(self.bar, visible=False)
        if self.live is None:
            self.say(f"{name}: " + ", ".join(f"{task} {100 * score:.1f}" for task, score in event.scores.items()))


@contextlib.contextmanager
def watching(title: str, console: Console | None = None) -> Iterator[Listener]:
    """A listener that shows what happens inside the block; on standard error, so that output can be piped."""
    view = LiveView(console or ProgressConsole(), title)
    if view.live is None:
        yield view
        return
    with view.live:
        yield view


def score_table(rows: Sequence[tuple[str, dict[str, float]]]) -> Table:
    """Scores in percent: a row per moment, a column per task; the score right after learning a task is underlined."""
    columns = list(dict.fromkeys(task for _, scores in rows for task in scores))
    table = Table(pad_edge=False)
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right", overflow="fold")
    for name, scores in rows:
        learned = name.removeprefix("after ").split(" + ")
        cells = []
        for column in columns:
            style = "bold underline" if column in learned else ""
            cells.append(
                Text(f"{100 * scores[column]:.1f}", style=style) if column in scores else Text("-", style="dim")
            )
        table.add_row(name, *cells)
    return table


def show_result(console: Console, record: RunRecord, baseline: RunRecord | None = None) -> None:
    """The score matrix and the metrics of a run, beside those of a baseline."""
    for each in [record] if baseline is None else [baseline, record]:
        console.print(Text(f"\n{method_title(each)}: scores in percent", style="bold"))
        console.print(score_table(rows_of(each)))
    table = Table(pad_edge=False, title="What was remembered (points; ± standard error from the test counts)")
    table.add_column("")
    for each in [record] if baseline is None else [baseline, record]:
        table.add_column(method_title(each), justify="right")
    beside = {metric.name: metric for metric in baseline.scores.summary} if baseline else {}
    for metric in record.scores.summary:
        if metric.value is None and (metric.name not in beside or beside[metric.name].value is None):
            continue
        cells = [_points(metric.value, metric.stderr)]
        if baseline is not None:
            other = beside.get(metric.name)
            cells.insert(0, _points(other.value, other.stderr) if other else "-")
        table.add_row(metric.name, *cells)
    console.print()
    console.print(table)
    for each in [record] if baseline is None else [baseline, record]:
        if line := stored(each):
            console.print(Text(f"{method_title(each)} {line}"))


def stored(record: RunRecord) -> str:
    """What a run keeps for the tasks to come, part by part and in all; empty before the first task."""
    from merganser.report.formatting import size
    from merganser.report.sections import stored_over_time

    last = max(record.tasks, key=lambda task: task.index, default=None)
    if last is None or not last.method_bytes:
        return ""
    parts = ", ".join(f"{name} {size(count)}" for name, count in last.method_bytes.items())
    return f"stores {parts}: {stored_over_time(record)}."


def method_title(record: RunRecord) -> str:
    """The method of a run as a person calls it."""
    from merganser.methods import METHODS

    return METHODS[record.info.config["method"]["name"]].title


def rows_of(record: RunRecord) -> list[tuple[str, dict[str, float]]]:
    """Names and values of the rows of the matrix."""
    rows = []
    for row in record.scores.rows:
        name = f"after {' + '.join(row.learned)}" if row.learned else "before training"
        rows.append((name, {task: row.scores[task].value for task in record.scores.tasks if task in row.scores}))
    return rows


def _points(value: float | None, stderr: float | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:+.1f}" + (f" ± {100 * stderr:.1f}" if stderr is not None else "")


def learn_stream(
    out: Path, config: RunConfig, tasks: Sequence[Task], *, command: str, fwt: bool = False, summary: bool = True
) -> RunRecord:
    """Learn a stream with a live view, write the report, print the result."""
    from merganser.learner import Learner

    console = ProgressConsole()
    with (
        watching(f"Merganser: {config.method.name} on {len(tasks)} tasks", console) as listener,
        Learner.of_config(out, config, listener=listener, command=command) as learner,
    ):
        learner.learn_stream(tasks)
        if fwt:
            learner.measure_references(tasks)
        record = learner.record
    if summary:
        _finish(out, record)
    return record


def learn_one(run: Path, task: Task, config: RunConfig | None, model: str | None, command: str) -> None:
    """Learn one task with a live view, write the report, print the result."""
    from merganser.errors import InputError
    from merganser.learner import Learner
    from merganser.runs.directory import RunDirectory

    if config is None and not RunDirectory.exists(run):
        raise InputError(f"There is no run in '{run}'.", "Start one with `merganser run`, or give --config FILE.yaml.")

    if config is not None and model is not None:
        raise InputError("--model and --config were both given.", "A new run's model is named in --config.")

    def opened(listener: Listener) -> Learner:
        if config is None:
            return Learner.open(run, listener=listener, model_path=model)
        return Learner.of_config(run, config, listener=listener, command=command)

    with watching(f"Merganser: learning {task.name}") as listener, opened(listener) as learner:
        learner.learn(task)
        record = learner.record
    _finish(run, record)


def _finish(run: Path, record: RunRecord) -> None:
    from merganser.report import write_report

    page = processes.on_main(lambda: write_report(record, run / "report.html"))
    console = OutputConsole()
    show_result(console, record)
    console.print(f"\nThe run is in {run}; open {page} to see it.", highlight=False, soft_wrap=True)
