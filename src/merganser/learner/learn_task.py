"""Learn one task (or several at once): train, score, and append one row to the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from merganser import processes
from merganser.errors import DiskFullError, InputError, RunError
from merganser.evaluation import ScoredTask
from merganser.events import RowDone
from merganser.files.atomic import write_json_lines
from merganser.learner.checks import (
    announce_remarks,
    check_labels,
    check_metrics,
    check_mix,
    check_packed,
    check_preferences,
    check_processes,
    check_selection,
    check_source,
    check_tokens,
    note_truncation,
    sample,
)
from merganser.learner.conversations import check_conversations
from merganser.learner.example_store import write_images
from merganser.learner.lineage import row_lineage
from merganser.learner.resume import checkpoints_of
from merganser.learner.row_files import answer_lines, write_row_files
from merganser.learner.row_scores import score_all_tasks, score_new_tasks, tasks_to_score
from merganser.learner.session import Session
from merganser.learner.timing import note_timing
from merganser.learner.train_row import save_weights, train_row
from merganser.learner.watching import check_watch, metrics_of, watch_lines, watch_records
from merganser.metrics.score import ScoreRow
from merganser.runs.names import check_new_name
from merganser.runs.record import RowFile
from merganser.runs.rows import Row, read_row, row_checksums, write_row_record
from merganser.streams.checks import check_names, check_task
from merganser.streams.task import Task

Accept = Callable[[Sequence[Row]], bool]
"""Decides whether a row is kept: called with the rows of the run and the new one, whose folder is complete."""


class RefusedRow(RunError):
    """A row that was learned and not kept; the run is as it was."""


class TaskRun:
    """Learns ``tasks`` and appends one row to the run.

    The run changes only when everything is complete: an error or a crash leaves it as it was, apart from the
    checkpoints of the training, from which the same call resumes.
    """

    def __init__(self, session: Session, tasks: Sequence[Task], accept: Accept | None = None) -> None:
        self.session = session
        self.tasks = tasks
        self.accept = accept
        self.began = time.perf_counter()

    def run(self) -> ScoreRow:
        """Check, train, score, write.

        Raises:
            InputError: a task that is malformed or learned already, or a memory batch larger than the memory.
            RunError: the loss became not finite, or the disk is full.
        """
        processes.run_collectively(self._check)
        session = self.session
        for task in [*self.tasks, *session.future_tasks]:
            session.backbone.prepare_labels(task.train, task.spec)
        if session.backbone.modality == "image":  # prototypes are there only now
            self._check_labels()
        if not session.rows:
            self._measure_start()
        number = len(session.rows)
        names = [task.name for task in self.tasks]
        earlier = score_new_tasks(session, self.tasks)
        directory = session.directory
        folder = directory.path_of_new_row(number, names)
        try:
            directory.begin_row(folder)
            row = self._learn(number, folder, earlier)
            if self.accept is not None:
                self._ask(self.accept, folder)
            session.commit(folder)
        except BaseException as error:
            try:
                directory.abandon_row(folder)
                in_vain = isinstance(error, RunError) and not isinstance(error, DiskFullError)
                if in_vain and processes.is_main():
                    # Resuming would diverge, or be refused, again: the next attempt starts over.
                    checkpoints_of(session, self.tasks, number).clear()
            finally:
                session.restore()
            raise
        session.listener(RowDone(tuple(row.learned), {task: score.value for task, score in row.scores.items()}))
        return row

    def _learn(self, number: int, folder: Path, earlier: dict[int, dict[str, ScoredTask]]) -> ScoreRow:
        """Train, score every known task, and write all of the row's files."""
        session = self.session
        trained = train_row(session, self.tasks, number, folder)
        evaluation_began = time.perf_counter()
        scores, scored = score_all_tasks(session, self.tasks, number, earlier)
        trained.cost.evaluating_seconds += time.perf_counter() - evaluation_began
        trained.cost.examples_evaluated += sum(score.n for score in scores.values())
        row = ScoreRow(learned=[task.name for task in self.tasks], scores=scores)
        began = self.began - trained.seconds_before
        measured = {**earlier, number: scored}
        processes.on_main(lambda: write_row_files(session, self.tasks, folder, trained, row, measured, began))
        return row

    def _ask(self, accept: Accept, folder: Path) -> None:
        """Ask whether the row in ``folder`` is to be kept.

        Raises:
            RefusedRow: it is not.
        """
        rows = self.session.rows
        if not processes.on_main(lambda: accept([*rows, read_row(folder)])):
            names = ", ".join(f"'{task.name}'" for task in self.tasks)
            raise processes.mark_collective(RefusedRow(f"The check refused {names}.", "The run is as it was."))

    def _check(self) -> None:
        if self.session.directory.lock.held is False:
            raise InputError("This run was opened for reading only.", "Open it without read_only to learn.")
        self.check()

    def check(self) -> None:
        """Refuse tasks that cannot be learned, before any work.

        Raises:
            InputError: as :meth:`run`.
        """
        session = self.session
        check_processes(session)
        check_packed(session)
        if not self.tasks:
            raise InputError("No task was given to learn.", "Give at least one.")
        if len(self.tasks) > 1 and not session.method.joint:
            raise InputError(
                f"{session.method.title} learns one task at a time, and {len(self.tasks)} were given.",
                "Call learn once per task.",
            )
        learned = session.learned
        session.method.check_tasks([*learned, *(task.name for task in self.tasks)])
        check_names([task.name for task in self.tasks])
        check_selection(session, self.tasks)
        check_metrics(session, self.tasks)
        check_watch(session, self.tasks)
        check_preferences(session, self.tasks)
        check_source(session, self.tasks)
        for task in self.tasks:
            check_task(task)
            session.backbone.check_examples(task.train, task.spec)
            check_tokens(session, task)
            check_conversations(session, task)
            if task.name in learned:
                raise InputError(f"Task '{task.name}' was learned already.", "Choose another name, or another run.")
            check_new_name(session.directory, task.name)
            check_mix(session, task)
            sample(session, task)  # a budget that keeps nothing is found now, not after training
        self._check_labels()
        for task in self.tasks:
            note_truncation(session, task)
            announce_remarks(session, task)
        session.method.rehearsal_batch(session.config.training, len(session.memory()))
        note_timing(session, self.tasks)

    def _check_labels(self) -> None:
        for number, task in enumerate(self.tasks):
            check_labels(self.session, task, self.tasks[:number])

    def _measure_start(self) -> None:
        """Write row 0: the weights before any training, and their scores on every task known by now."""
        session = self.session
        tasks = tasks_to_score(session, self.tasks)
        directory = session.directory
        folder = directory.path_of_new_row(0, ["start"])
        try:
            directory.begin_row(folder)
            scored = session.score_examples(tasks, {})
            scores = {name: result.score for name, result in scored.items()}
            row = RowFile(row=0, tasks=[], scores=ScoreRow(learned=[], scores=scores), metrics=metrics_of(tasks))
            processes.on_main(lambda: save_weights(session, folder / "adapter"))
            processes.on_main(lambda: _write_start(session, folder, row, scored))
            session.commit(folder)
        except BaseException:
            directory.abandon_row(folder)
            raise
        session.listener(RowDone((), {task: score.value for task, score in scores.items()}))


def _write_start(session: Session, folder: Path, row: RowFile, scored: dict[str, ScoredTask]) -> None:
    lines = {"answers": answer_lines(session, {0: scored}), **watch_lines(session)}
    for name, values in lines.items():
        write_json_lines(folder / f"{name}.jsonl", values)
    write_images(folder, [example for task in session.new_watched.values() for example in task.test])
    sha256, run_sha256 = row_checksums(folder)
    recorded = {
        "lines": {name: len(values) for name, values in lines.items()},
        "watched": watch_records(session),
        "sha256": sha256,
        "run_sha256": run_sha256,
        "lineage": row_lineage(session, [], sha256),
    }
    write_row_record(folder, row.model_copy(update=recorded))
