"""What a run needs in memory while it is open: its directory, its model, its method, its stored examples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from merganser import processes
from merganser.config import RunConfig
from merganser.errors import InputError
from merganser.evaluation import ScoredTask, score_tasks
from merganser.events import Listener, Notice
from merganser.learner.example_store import read_prototypes, stored_examples
from merganser.learner.shared_parts import SharedParts
from merganser.methods import make_method
from merganser.metrics.function import MetricFunction, is_function_name, metric_name
from merganser.metrics.score import Score
from merganser.models.base import Backbone
from merganser.models.generative import GenerativeBackbone
from merganser.runs.directory import RunDirectory
from merganser.runs.keep_weights import keep_weights
from merganser.runs.removal import WEIGHTS
from merganser.runs.rows import Row
from merganser.streams.answers import CandidatePolicy
from merganser.streams.memory import in_force
from merganser.streams.metric_source import find_metric
from merganser.streams.task import Example, Task
from merganser.streams.watch import WatchedTask
from merganser.weights import Weights


class Session:
    """An open run. Rows and stored examples are read once, and extended after every commit.

    Attributes:
        directory: the run on disk.
        config: the run's options.
        backbone: the model; its weights are those of the row last given to :meth:`use`.
        method: the continual-learning method, with its state between tasks.
        listener: receives events.
        candidates: decides which labels an answer is chosen from.
        future_tasks: tasks to come, which are scored before they are learned.
        new_watched: tasks that are watched from the next row on, by name.
        metrics: task -> the function that scores it, of tasks whose metric is a function: given with the task, or
            imported when it is first needed.
        truncated: task -> numbers of its inputs and answers that are cut, as in its record.
        announced: names of the tasks whose remarks the listener has received.
        noted: kind and task of the remarks that the user has received.
        shared: parts that other runs have made already; ``None``: this run makes all of its own.
    """

    def __init__(self, directory: RunDirectory, config: RunConfig, backbone: Backbone, listener: Listener) -> None:
        self.directory = directory
        self.config = config
        self.backbone = backbone
        self.listener = listener
        self.method = make_method(config.method)
        self.candidates = CandidatePolicy(config.model.candidates, self.method.per_task_models)
        self.future_tasks: list[Task] = []
        self.new_watched: dict[str, WatchedTask] = {}
        self.metrics: dict[str, MetricFunction] = {}
        self.truncated: dict[str, dict[str, int]] = {}
        self.announced: set[str] = set()
        self.noted: set[tuple[str, str]] = set()
        self.shared: SharedParts | None = None
        if isinstance(backbone, GenerativeBackbone) and backbone.engine is not None:
            backbone.engine.notify = lambda text: self.listener(Notice(text))
        self._examples: dict[str, list[tuple[str, Example]]] = {}
        self._weights_of: str | None = None  # name of the row whose weights are in the model; None: of no row

    @property
    def rows(self) -> list[Row]:
        """The rows of the run, row 0 first."""
        return self.directory.rows

    def restore(self) -> None:
        """Read the run again, and put the weights and the method's state of its last row in place."""
        self.directory.reload()
        self._examples.clear()
        self.method = make_method(self.config.method)  # without the records of a task that was interrupted
        self.backbone.load_prototypes({k: vector for row in self.rows for k, vector in read_prototypes(row).items()})
        self.weights_changed()  # another row may have the folder of the one whose weights are in the model
        if self.rows:
            self.use(self.rows[-1])
            if (method := self.rows[-1].checked("method")).is_dir():
                self.method.load(method)
        # A task that is not there any more can be learned again with other examples and another metric.
        known = {*self.learned, *self.new_watched, *(task.name for row in self.rows for task in row.file.watched)}
        self.metrics = {name: metric for name, metric in self.metrics.items() if name in known}
        self.truncated = {name: counts for name, counts in self.truncated.items() if name in known}
        self.announced &= known

    def commit(self, folder: Path) -> None:
        """Make a row count whose weights are in the model."""
        row = self.directory.commit_row(folder)
        self.new_watched = {}  # they are in the row
        for name, examples in self._examples.items():
            examples += stored_examples(row, name)
        self._weights_of = row.folder.name
        processes.on_main(self._remove_old_weights)

    def _remove_old_weights(self) -> None:
        """Remove weights that ``runs.keep_weights`` does not ask for and the method does not read again."""
        # The weights before any merge are apart from those deployed: a method may read those of every task.
        parts = [part for part in WEIGHTS if part != "trained" or not self.method.reads_every_trained]
        keep_weights(self.directory, self.config.keep_weights, parts=parts)

    # -- weights ----------------------------------------------------------------------------------------------------

    def use(self, row: Row) -> None:
        """Put the weights of a row into the model."""
        if self._weights_of != row.folder.name:
            self.weights_changed()
            self.backbone.load_weights(row.checked("adapter"))
            self._weights_of = row.folder.name

    def use_task(self, name: str) -> None:
        """Put the weights that answer a learned task into the model."""
        self.use(self.rows[self.answered_by()[name]])

    def weights_changed(self) -> None:
        """Note that the weights in the model are no longer those of a row."""
        self._weights_of = None

    def deployed(self, row: int) -> Weights:
        """Read the trainable weights deployed after a row, in memory of their own; the model stays as it is."""
        return self._read(self.rows[row].checked("adapter"))

    def trained(self, row: int) -> Weights:
        """Read the weights of a row's task before any merge, likewise; kept for methods that start from them.

        Of row 0, before any task: the pretrained ones.
        """
        return self.deployed(0) if row == 0 else self._read(self.rows[row].checked("trained"))

    def _read(self, folder: Path) -> Weights:
        current = Weights.of(self.backbone.module)
        before = current.snapshot()
        self.backbone.load_weights(folder)
        weights = current.snapshot()
        current.copy_(before)
        return weights

    # -- tasks ------------------------------------------------------------------------------------------------------

    def answered_by(self) -> dict[str, int]:
        """Return learned task -> row whose weights answer it."""
        return self.method.answered_by(self.learned_in())

    def learned_in(self) -> dict[str, int]:
        """Return learned task -> row it was learned in, in order."""
        return {task.name: row.file.row for row in self.rows for task in row.file.tasks}

    @property
    def learned(self) -> list[str]:
        """Names of the tasks learned so far, in order."""
        return list(self.learned_in())

    def examples(self, name: str) -> Sequence[tuple[str, Example]]:
        """Return the examples in the files ``memory``, ``test``, ``dev`` or ``watch`` of all rows, read at first use.

        Returns:
            Pairs of a task's name and an example, oldest task first.

        Raises:
            InputError: a row's file of them is damaged.
        """
        if name not in self._examples:
            self._examples[name] = [pair for row in self.rows for pair in stored_examples(row, name)]
        return self._examples[name]

    def memory(self) -> Sequence[tuple[str, Example]]:
        """Return all examples kept for rehearsal with the names of their tasks, oldest task first.

        Where the memory is bounded in total, these are the beginnings of what rows have stored.
        """
        return in_force(self.examples("memory"), self.memory_total)

    @property
    def memory_total(self) -> int | None:
        """The examples that may be kept of all tasks together; ``None``: each task has its own budget."""
        return None if self.method.full_memory else self.config.memory.total

    def known_tasks(self, examples: str = "test") -> dict[str, Task]:
        """Return the learned tasks with their test sets, or with the examples of another file (``dev``) instead."""
        by_task: dict[str, list[Example]] = {}
        for task, example in self.examples(examples):
            by_task.setdefault(task, []).append(example)
        records = (record for row in self.rows for record in row.file.tasks)
        return {
            record.name: Task(
                record.name,
                train=(),
                test=by_task.get(record.name, ()),
                spec=record.spec,
                metric=self.metrics.get(record.name),
            )
            for record in records
        }

    def watched(self) -> dict[str, WatchedTask]:
        """Return the tasks that are watched, those from the next row on included."""
        by_task: dict[str, list[Example]] = {}
        for task, example in self.examples("watch"):
            by_task.setdefault(task, []).append(example)
        stored = {
            record.name: WatchedTask(
                record.name,
                test=by_task.get(record.name, ()),
                spec=record.spec,
                group=record.group,
                harness=record.harness,
                metric=self.metrics.get(record.name),
            )
            for row in self.rows
            for record in row.file.watched
        }
        return stored | self.new_watched

    def require_learned(self) -> dict[str, Task]:
        """Return the learned tasks.

        Raises:
            InputError: there is none.
        """
        known = self.known_tasks()
        if not known:
            raise InputError(f"Nothing was learned yet in '{self.directory.path}'.", "Learn a task first.")
        return known

    def add_metrics(self, tasks: Iterable[Task]) -> None:
        """Remember the functions that score these tasks; one that the library scores has none."""
        for task in tasks:
            if not isinstance(task.spec.metric, str):
                self.metrics[task.name] = task.spec.metric
            elif not is_function_name(task.spec.metric):
                self.metrics.pop(task.name, None)

    def require_metrics(self, tasks: Iterable[Task]) -> None:
        """Import the functions that score these tasks, where they were not given: a run has only their names.

        Raises:
            InputError: one cannot be imported.
        """
        for task in tasks:
            if not is_function_name(task.spec.metric) or task.name in self.metrics:
                continue
            name = metric_name(task.spec.metric)
            try:
                self.metrics[task.name] = find_metric(name)
            except InputError as error:
                last = name.rpartition(":")[2].rpartition(".")[2]
                function = last if last.isidentifier() else "function"
                raise InputError(
                    f"Task '{task.name}' is scored by the function '{name}': {error.cause}",
                    f"{error.remedy} Or give it in Python: Learner.open({str(self.directory.path)!r}, "
                    f"metrics={{{task.name!r}: {function}}}).",
                ) from error

    def score(self, tasks: Sequence[Task], learned: Mapping[str, Task]) -> dict[str, Score]:
        """Return the scores of :meth:`score_examples`."""
        return {name: scored.score for name, scored in self.score_examples(tasks, learned).items()}

    def score_examples(self, tasks: Sequence[Task], learned: Mapping[str, Task]) -> dict[str, ScoredTask]:
        """Score the model as it is on every task that has a test set.

        Args:
            learned: the tasks learned so far, whose labels may be candidates beside a task's own.
        """
        self.require_metrics(task for task in tasks if task.test)
        specs = [task.spec for task in learned.values()]
        tasks = [
            replace(task, spec=self.candidates.spec(task.spec, specs), metric=self.metrics.get(task.name))
            for task in tasks
        ]

        def score(asked: Sequence[Task]) -> dict[str, ScoredTask]:
            return score_tasks(self.backbone, asked, self.config.evaluation.batch, self.listener)

        first = {row.folder.name for row in self.rows[:2]}
        if self.shared is None or (len(self.rows) > 1 and self._weights_of not in first):
            return score(tasks)  # later weights are of no other run
        return self.shared.answer(self.backbone, self.config, [task for task in tasks if task.test], score)
