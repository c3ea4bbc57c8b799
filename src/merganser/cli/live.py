"""The view of a running command, and the result that it prints at its end."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from merganser import processes
from merganser.cli.output import OutputConsole, ProgressConsole
from merganser.cli.progress_matrix import Row, delta_table, row_line
from merganser.cli.screen import show_outcome
from merganser.cli.time_left import TimeLeft, left
from merganser.errors import InputError
from merganser.events import Evaluating, Event, Listener, Merged, Notice, RowDone, StepDone, TaskStarted
from merganser.report.formatting import cause_title, plural, shortened, significant
from merganser.runs import RunDirectory

if TYPE_CHECKING:
    from merganser.cli.gate import Gate
    from merganser.config import RunConfig
    from merganser.learner import Learner
    from merganser.metrics.score import ScoreRow
    from merganser.runs.record import RunRecord
    from merganser.streams.task import Task
    from merganser.streams.watch import WatchedTask


@dataclass(frozen=True)
class Stream:
    """What a command is about to learn, for a view of its progress.

    Attributes:
        sizes: task -> its training examples, in the order of learning; tasks learned together have the name of the
            first.
        total: tasks in all.
        joint: whether all of them are learned at once.
        beside: title and directory of another run that learns at the same time.
    """

    sizes: Mapping[str, int]
    total: int
    joint: bool = False
    beside: tuple[str, Path] | None = None

    @classmethod
    def of(cls, tasks: Sequence[Task], joint: bool = False, beside: tuple[str, Path] | None = None) -> Stream:
        """Describe tasks."""
        if joint and tasks:
            return cls({tasks[0].name: sum(len(task.train) for task in tasks)}, len(tasks), True, beside)
        return cls({task.name: len(task.train) for task in tasks}, len(tasks), False, beside)


class LiveView:
    """Shows events: a view that is redrawn in a terminal, one line per task elsewhere.

    Args:
        console: where.
        title: its first line.
        stream: what is learned, to count the tasks and estimate the time; ``None``: one task, or none.
        verbose: every merge, with what its cause means, and all scores.
    """

    def __init__(self, console: Console, title: str, stream: Stream | None = None, verbose: bool = False) -> None:
        self.console = console
        self.title = title
        self.stream = stream
        self.verbose = verbose
        self.rows: list[Row] = []
        self.beside = None if stream is None or stream.beside is None else Beside(*stream.beside, stream.total)
        self.merges: list[str] = []
        self.time = TimeLeft({} if stream is None else stream.sizes)
        self.task = Text("Reading the model ...", style="dim")
        self.status = Text()
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), console=console
        )
        self.bar = self.progress.add_task("", total=None, visible=False)
        # What it shows is shown again by the screen at the end: it leaves nothing behind.
        self.live = Live(self, console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def __rich__(self) -> RenderableType:
        parts: list[RenderableType] = [Text(self.title, style="bold")]
        others = [] if self.beside is None else self.beside.rows()
        tables = [rows for rows in (self.rows, others) if rows]
        most = max(2, (self.console.height - 9) // max(1, len(tables)) - 3)
        if self.rows:
            parts.append(delta_table(self.rows, self.console.width, most))
        if self.beside is not None:
            parts.append(Text(self.beside.place(), style="bold"))
        if others:
            parts.append(delta_table(others, self.console.width, most))
        estimate = left(self.time.seconds())
        parts.append(Text.assemble(self.task, f", {estimate}" if estimate else ""))
        if self.status:
            parts.append(self.status)
        parts += [Text(f"  merge {line}", style="cyan") for line in self.merges[-4 if self.verbose else -1 :]]
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
            self._progress(f"answering {event.task}", event.done, event.total)
        elif isinstance(event, RowDone):
            self._row(event)

    def _place(self, number: int) -> str:
        """Format which task it is of how many: ``task 3 of 15``."""
        if self.stream is not None and self.stream.joint:
            return f"{plural(self.stream.total, 'task')} together"
        total = 0 if self.stream is None else self.stream.total
        return f"task {number} of {total}" if total > 1 and number <= total else f"task {number}"

    def _start(self, event: TaskStarted) -> None:
        self.merges = []
        self.time.begin(event.task, event.step / event.steps if event.steps else 0.0)
        memory = f", {event.memory_examples} in memory" if event.memory_examples else ""
        number = event.index
        if self.stream is not None and self.stream.total > 1 and event.task in self.stream.sizes:
            number = list(self.stream.sizes).index(event.task) + 1
        place = self._place(number)
        sizes = f"({plural(event.examples, 'example')}{memory})"
        self.task = Text(f"{place[0].upper()}{place[1:]}: {event.task} {sizes}")
        self._progress(f"learning {event.task}", event.step, event.steps)
        if self.live is None:
            self.print(f"Learning {place}: {event.task} {sizes[:-1]}, {plural(event.steps, 'step')})")

    def _step(self, event: StepDone) -> None:
        if event.steps:
            self.time.step(event.step / event.steps)
        parts = [] if event.loss is None else [f"loss {event.loss:.3f}"]
        if event.probe is not None:
            parts.append(f"on the memory {event.probe:.3f}")
        if event.interval is not None:
            parts.append(f"a merge planned every {plural(event.interval, 'step')}")
        self.status = Text(", ".join(parts), "dim")
        self._progress(f"learning {event.task}", event.step, event.steps)

    def _progress(self, what: str, done: int, total: int) -> None:
        self.progress.update(self.bar, description=shortened(what, 40), total=total, completed=done, visible=True)

    def _merge(self, event: Merged) -> None:
        cause = cause_title(event.cause) if self.verbose else event.cause
        line = f"at step {event.step} ({cause})"
        if event.reason is not None:
            line += f" refused and undone, since {event.reason}"
        line += f": {significant(event.weight_new)} new + {significant(event.weight_old)} old"
        if event.rehearsal_steps:
            line += f" after {plural(event.rehearsal_steps, 'rehearsal step')}"
        if event.cause != "end":
            line += f"; next in {event.next_interval}"
        self.merges.append(line)
        if self.live is None and self.verbose:
            self.print(f"  merge {line}")

    def _row(self, event: RowDone) -> None:
        self.time.end()
        self.rows.append((event.learned, event.scores))
        self.progress.update(self.bar, visible=False)
        self.status = Text()
        if self.live is None:
            self.print(row_line(self.rows, 10**6 if self.verbose else 80))


class Beside:
    """A run that another process writes, one task after another; its rows are read again at most once a second."""

    def __init__(self, title: str, path: Path, total: int) -> None:
        self._title, self._path, self._total = title, path, total
        self._rows: list[Row] = []
        self._read = -math.inf

    def place(self) -> str:
        """Format the method and the task: ``Sequential fine-tuning: task 3 of 5``."""
        number = max(len(self.rows()), 1)
        return f"{self._title}: {f'task {number} of {self._total}' if number <= self._total else 'done'}"

    def rows(self) -> list[Row]:
        """Return the rows so far."""
        if time.monotonic() - self._read < 1.0:
            return self._rows
        self._read = time.monotonic()
        if RunDirectory.exists(self._path):
            try:
                self._rows = rows_of(RunDirectory.open(self._path).scores().rows)
            except (InputError, OSError):
                # The other process is just writing there; what was read before is still right.
                return self._rows
        return self._rows


def rows_of(rows: Sequence[ScoreRow]) -> list[Row]:
    """Return the tasks learned and the scores of each row of the matrix."""
    return [(row.learned, {task: entry.value for task, entry in row.scores.items()}) for row in rows]


@contextlib.contextmanager
def watching(
    title: str, console: Console | None = None, stream: Stream | None = None, verbose: bool = False
) -> Iterator[Listener]:
    """Yield a listener that shows the events of the block on standard error, so that output can be piped."""
    view = LiveView(console or ProgressConsole(), title, stream, verbose)
    if view.live is None:
        yield view
        return
    with view.live:
        yield view


Output = Literal["screen", "verbose", "json", "none"]
"""How the result is printed: for people, also with everything else, as one JSON document, or not at all."""


def learn_stream(
    out: Path,
    config: RunConfig,
    tasks: Sequence[Task],
    *,
    command: str,
    fwt: bool = False,
    output: Output = "screen",
    watch: Sequence[WatchedTask] = (),
    beside: tuple[str, Path] | None = None,
) -> RunRecord:
    """Learn a stream with a live view, write the report, print the result.

    Args:
        beside: title and directory of a run that learns the same stream at the same time, to show it as well.
    """
    from merganser.learner import Learner
    from merganser.methods import METHODS

    stream = Stream.of(tasks, METHODS[config.method.name].joint, beside)
    title = f"Merganser: {config.method.name} on {plural(len(tasks), 'task')}"
    with (
        watching(title, stream=stream, verbose=output == "verbose") as listener,
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
        view = watching(f"Merganser: learning {task.name}", stream=Stream.of([task]), verbose=output == "verbose")
        with view as listener, opened(listener) as learner:
            learner.watch(*watch)
            if gate is not None:
                gate.prepare(learner.session, [task])
            learner.learn(task, accept=gate)
            record = learner.record
    except RefusedRow:
        if gate is None:
            raise
        gate.print_refusal(as_json=output == "json")
        raise typer.Exit(gate.exit_code) from None
    _finish(run, record, output, gate, learned=[task.name])


def _finish(
    run: Path, record: RunRecord, output: Output, gate: Gate | None = None, learned: Sequence[str] = ()
) -> None:
    from merganser.report import write_report
    from merganser.report.result import run_result

    page = processes.on_main(lambda: write_report(record, run / "report.html"))
    if output == "json":
        checked = {} if gate is None else gate.as_dict(kept=True)
        typer.echo(json.dumps({**run_result(record, page), **checked}, indent=2, allow_nan=False))
        return
    console = OutputConsole()
    show_outcome(console, record, learned=learned, page=page, verbose=output == "verbose")
    if gate is not None:
        gate.print_verdict()
