"""What a run needs in memory while it is open: its directory, its model, its method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from merganser.config import RunConfig
from merganser.errors import InputError
from merganser.evaluation import KnownTask, score_tasks, with_candidates
from merganser.events import Listener
from merganser.learner.example_store import read_prototypes, restored
from merganser.methods import make_method
from merganser.metrics.score import Score
from merganser.models.base import Backbone
from merganser.runs.directory import RunDirectory
from merganser.streams.task import Example, Task
from merganser.weights import Weights


class Session:
    """An open run.

    Attributes:
        directory: the run on disk.
        config: what was asked.
        backbone: the model; its weights are those of the row last given to :meth:`use`.
        method: the continual-learning method, with what it keeps between tasks.
        listener: is told what happens.
        foreseen: tasks to come, which are scored before they are learned.
    """

    def __init__(self, directory: RunDirectory, config: RunConfig, backbone: Backbone, listener: Listener) -> None:
        self.directory = directory
        self.config = config
        self.backbone = backbone
        self.listener = listener
        self.method = make_method(config.method)
        self.future_tasks: list[Task] = []
        self._at: str | None = None  # name of the row whose weights are in the model; None: of no row

    def restore(self) -> None:
        """Go to where the run stands: the weights and the method's state of its last row."""
        self.method = make_method(self.config.method)  # what it noted of a task that broke off counts no more
        folders = self.directory.row_folders()
        for folder in folders:
            self.backbone.load_prototypes(read_prototypes(folder))
        if folders:
            self.use(folders[-1])
            if (folders[-1] / "method").is_dir():
                self.method.load(folders[-1] / "method")

    def use(self, folder: Path) -> None:
        """Put the weights of a row into the model."""
        if self._at != folder.name:
            self.weights_changed()
            self.backbone.load_weights(folder / "adapter")
            self.weights_are(folder)

    def deployed(self, row: int) -> Weights:
        """The trainable weights deployed after a row, in memory of their own; the model stays as it is."""
        return self._read(self.directory.row_folders()[row] / "adapter")

    def trained(self, row: int) -> Weights:
        """The weights of a row's task before any merge, likewise; kept for methods that start from them.

        Of row 0, before any task: the pretrained ones.
        """
        return self.deployed(0) if row == 0 else self._read(self.directory.row_folders()[row] / "trained")

    def _read(self, folder: Path) -> Weights:
        current = Weights.of(self.backbone.module)
        kept = current.snapshot()
        self.backbone.load_weights(folder)
        found = current.snapshot()
        current.copy_(kept)
        return found

    def answered_by(self) -> dict[str, int]:
        """Learned task -> row whose weights answer it."""
        return self.method.answered_by({task.name: row.row for row in self.directory.rows() for task in row.tasks})

    def use_task(self, name: str) -> None:
        """Put the weights that answer a learned task into the model."""
        self.use(self.directory.row_folders()[self.answered_by()[name]])

    def weights_changed(self) -> None:
        """The weights in the model are no longer those of a row."""
        self._at = None

    def weights_are(self, folder: Path) -> None:
        """The weights in the model are those of this row."""
        self._at = folder.name

    @property
    def learned(self) -> list[str]:
        """Names of the tasks learned so far, in order."""
        return [task.name for row in self.directory.rows() for task in row.tasks]

    def known_tasks(self, examples: str = "test") -> dict[str, KnownTask]:
        """The learned tasks with their test sets, or with the examples of another file (``dev``) in place of them."""
        known = {}
        for folder in self.directory.row_folders():
            tests = restored(folder, self.directory.examples(folder, examples))
            for record in self.directory.read_row(folder).tasks:
                test = [example for task, example in tests if task == record.name]
                known[record.name] = KnownTask.of_record(record, test)
        return known

    def require_learned(self) -> dict[str, KnownTask]:
        """The learned tasks; InputError when there is none."""
        known = self.known_tasks()
        if not known:
            raise InputError(f"Nothing was learned yet in '{self.directory.path}'.", "Teach it a task first.")
        return known

    def memory(self) -> list[tuple[str, Example]]:
        """All examples kept for rehearsal with the names of their tasks, oldest task first.

        Raises:
            InputError: a row's file of them is damaged.
        """
        found: list[tuple[str, Example]] = []
        for folder in self.directory.row_folders():
            found += restored(folder, self.directory.examples(folder, "memory"))
        return found

    def score(self, tasks: Sequence[KnownTask], learned: Mapping[str, KnownTask]) -> dict[str, Score]:
        """Scores of the model as it is on every task that has a test set.

        Args:
            learned: the tasks whose labels are candidates beside a task's own, when the model answers over all labels
                seen (``model.candidates: seen``).
        """
        if self.config.model.candidates == "seen":
            tasks = [with_candidates(task, learned.values()) for task in tasks]
        return score_tasks(self.backbone, tasks, self.config.evaluation.batch, self.listener)
