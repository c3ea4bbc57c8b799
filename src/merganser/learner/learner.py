"""The learner: a run directory that learns one task after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from merganser import processes
from merganser.config import RunConfig, check_config
from merganser.errors import InputError
from merganser.events import Listener, Notice, silent
from merganser.files.cache import cache_only_read
from merganser.files.temporary_folder import sweep_temporary_folders
from merganser.learner import checks, exporting, inference, learn_task, opening, references, watching
from merganser.learner.notebook import default_listener
from merganser.learner.preview import Preview
from merganser.learner.reporting import end_reporting
from merganser.learner.session import Session
from merganser.learner.shared_parts import SharedParts
from merganser.learner.shared_tokens import SharedTokens
from merganser.learner.timing import note_timing
from merganser.lineage import Lineage
from merganser.metrics.function import MetricFunction
from merganser.metrics.matrix import ScoreMatrix
from merganser.metrics.score import Score, ScoreRow
from merganser.models.base import Answer
from merganser.models.export import Destination
from merganser.models.gguf_export import GgufOptions
from merganser.runs.directory import RunDirectory
from merganser.runs.names import tag_row
from merganser.runs.record import RunRecord
from merganser.runs.undo import UndoResult, undo_rows
from merganser.streams.task import Task
from merganser.streams.watch import WatchedTask

if TYPE_CHECKING:
    from pandas import DataFrame

    from merganser.learner.plan import Plan


class Learner:
    """One model that learns task after task; the run directory is its memory.

    :meth:`open` brings everything back from the directory and :meth:`learn` appends to it. A stream is several calls of
    ``learn``, so continuing after a crash, adding a task next month and running a benchmark are one code path::

        with Learner.open("run", model={"name": "google/flan-t5-small", "kind": "seq2seq"}, method="aim") as learner:
            learner.learn(task)
            print(learner.scores.values)
            print(learner.predict(["..."]))
    """

    def __init__(self, session: Session, *, new: bool = False) -> None:
        self.session = session
        self._new = new

    @classmethod
    def open(
        cls,
        run: str | Path,
        *,
        listener: Listener | None = None,
        command: str = "python",
        read_only: bool = False,
        model_path: str | None = None,
        metrics: Mapping[str, MetricFunction] | None = None,
        row: str | None = None,
        **sections: Any,
    ) -> Learner:
        """Open a run, or start one.

        Args:
            run: the run directory.
            listener: receives events; by default a bar per task in a notebook, and nothing elsewhere.
            command: written into the record of a new run.
            read_only: for inference and evaluation; does not lock the run, and :meth:`learn` is refused.
            model_path: where the pretrained model of an existing run is now, if it is not where it was.
            metrics: of an existing run: learned task -> the function that scores it, of tasks that were learned with
                such a metric. A run directory holds only its name; it is needed where no module has it by that name.
            row: with ``read_only``: the run as it was after this task, tag or folder of ``tasks/``.
            sections: ``model``, ``method``, ``memory``, ``training``, ``evaluation``, ``runs``, ``seed``, ``stream``:
                options objects or plain values as in the YAML file; none for an existing run, defaults for a new one.

        Raises:
            InputError: an option is impossible or differs from what the run was started with, or the run is damaged, in
                use, or of a newer version.
        """
        processes.initialize()
        if not read_only:
            sweep_temporary_folders()
        path = Path(run)
        if wrong := [name for name, metric in (metrics or {}).items() if not callable(metric)]:
            raise InputError(f"The metric given for task '{wrong[0]}' is not a function.", "Give the function itself.")
        given = {key: opening.plain_values(value) for key, value in sections.items() if value is not None}
        listener = (default_listener() if listener is None else listener) if processes.is_main() else silent
        if RunDirectory.exists(path):
            session = opening.reopen(path, given, listener, read_only=read_only, model_path=model_path, row=row)
            session.metrics.update(metrics or {})
            return cls(session)
        if read_only or "model" not in given:
            raise InputError(
                f"There is no run in '{path}'.", "Start one with `merganser run`, or give Learner.open a model."
            )
        return cls(opening.start(path, check_config(given, "options"), listener, command), new=True)

    @classmethod
    def of_config(
        cls,
        run: Path,
        config: RunConfig,
        *,
        listener: Listener | None = None,
        command: str = "python",
        shared: Path | None = None,
    ) -> Learner:
        """Start a run with a whole configuration, or continue the one that was started with the same.

        A run that was started with other options is refused, unless it has learned nothing yet: then it starts over.

        Args:
            shared: folder of parts that are the same for several runs (:mod:`merganser.learner.shared_parts`).
        """
        processes.initialize()
        sweep_temporary_folders()
        listener = (default_listener() if listener is None else listener) if processes.is_main() else silent
        if RunDirectory.exists(run) and not opening.start_over(run, config, listener):
            requested = config.model_dump(mode="json", exclude={"stream"})
            learner = cls(opening.reopen(run, requested, listener))
        else:
            learner = cls(opening.start(run, config, listener, command), new=True)
        if shared is not None:
            session = learner.session
            session.shared = SharedParts(shared, session.directory.info)
            session.backbone.parts = SharedTokens(session.shared, session.backbone)
        return learner

    @staticmethod
    def plan(
        config: RunConfig | None,
        tasks: Sequence[Task],
        *,
        run: str | Path | None = None,
        fwt: bool = False,
        added: bool = False,
        listener: Listener = silent,
        watch: Sequence[WatchedTask] = (),
    ) -> Plan:
        """Plan a stream: tasks, tokens, steps, memory, and an estimate of the time from ten steps. Nothing is written.

        Args:
            config: ``None``: that of the run.
            tasks: the whole stream.
            run: the run directory, if it is there already: only the rest of the stream is planned.
            fwt: with single-task references.
            added: ``tasks`` are not the whole stream, but tasks to learn after those of the run.
            watch: tasks to watch, beside those of the run.

        Raises:
            InputError, RunError: as :meth:`learn_stream`; also if every task is learned already.
        """
        from merganser.learner.plan import make_plan

        with cache_only_read():
            session = opening.preview(None if run is None else Path(run), config, listener)
            watching.watch(Preview(session), watch)
            return make_plan(session, tasks, fwt=fwt, added=added)

    def close(self) -> None:
        """End what is reported to trackers, and release the lock of the run."""
        self._close(failed=False)

    def _close(self, failed: bool) -> None:
        end_reporting(self.session, failed)
        self.session.directory.lock.release()

    def __enter__(self) -> Learner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        directory = self.session.directory
        if isinstance(error, learn_task.RefusedRow) and self._new:
            # With nothing else learned it is not there, as before.
            processes.on_main(lambda: None if directory.has_learned() else directory.discard())
        elif error is not None and self._new:
            # A corrected configuration then finds no run that was started with other options.
            directory.discard_if_empty()
        self._close(failed=error is not None)

    @property
    def learned(self) -> list[str]:
        """Names of the tasks learned so far, in order."""
        return self.session.learned

    @property
    def scores(self) -> ScoreMatrix:
        """The score matrix so far."""
        return self.session.directory.matrix()

    @property
    def record(self) -> RunRecord:
        """The records of the run directory."""
        return self.session.directory.record()

    def to_pandas(self) -> DataFrame:
        """Return what became of each task as a frame of pandas, a row per task; scores are fractions.

        Raises:
            InputError: pandas is not installed.
        """
        return self.record.to_pandas()

    def _repr_html_(self) -> str:
        return self.record._repr_html_()

    def learn(self, *tasks: Task, accept: learn_task.Accept | None = None) -> ScoreRow:
        """Learn a task (several at once with a method such as joint training) and score every known task.

        The run changes only when everything is complete: an error or a crash leaves it as it was.

        Args:
            accept: decides, with the rows of the run and the new one, whether that is kept.

        Raises:
            InputError: a task that is malformed or learned already, or a memory batch larger than the memory.
            RunError: the loss became not finite, or the disk is full; ``learn_task.RefusedRow``: it was not accepted.
        """
        return learn_task.TaskRun(self.session, tasks, accept).run()

    def watch(self, *tasks: WatchedTask) -> None:
        """Score tasks after every row from now on, and never learn them.

        They are scored with the weights of row 0 and of the last row too, when the next task is learned. Tasks that
        are watched already are skipped.

        Raises:
            InputError: a task that cannot be scored, has the name of another, or is watched with other examples.
        """
        processes.run_collectively(lambda: watching.watch(self.session, tasks))

    def learn_stream(self, tasks: Sequence[Task]) -> None:
        """Learn the tasks of a stream in order, skipping those learned already.

        The whole stream is checked before any work.

        Raises:
            InputError, RunError: as :meth:`learn`; also a stream other than the one this run was started with.
        """
        session = self.session
        checks.check_stream(session, tasks)
        session.future_tasks = list(tasks) if session.config.evaluation.future else []
        missing = [task for task in tasks if task.name not in session.learned]
        note_timing(session, missing)
        if not missing:
            session.listener(Notice("Every task of the stream is learned already."))
        elif session.method.joint:
            self.learn(*missing)
        else:
            for task in missing:
                self.learn(task)

    def tag(self, name: str, row: str | None = None) -> None:
        """Give a row a name; see :func:`merganser.runs.names.tag_row`."""
        self._require_writable()
        processes.on_main(lambda: tag_row(self.session.directory, name, row))

    def undo(self, to: str | None = None, *, keep: bool = False) -> UndoResult:
        """Take back the last task, or all after a row, and go on from there; see :func:`merganser.runs.undo.undo_rows`.

        Raises:
            InputError, RunError: the run is as it was.
        """
        self._require_writable()
        result = processes.on_main(lambda: undo_rows(self.session.directory, to, keep=keep))
        self.session.restore()
        return result

    def _require_writable(self) -> None:
        if self.session.directory.lock.held is False:
            raise InputError("This run was opened for reading only.", "Open it without read_only to change it.")

    def measure_references(self, tasks: Sequence[Task]) -> dict[str, Score]:
        """Score a fresh model trained on each task alone (cached); see :mod:`merganser.learner.references`."""
        return references.measure_references(self.session, tasks)

    def predict(self, texts: Sequence[inference.Asked], task: str | None = None) -> list[Answer]:
        """Answer texts with what was learned; see :func:`merganser.learner.inference.predict`."""
        return inference.predict(self.session, texts, task)

    def evaluate(self) -> dict[str, Score]:
        """Score the model as it is now on the test sets of all learned tasks, without changing the run."""
        return inference.evaluate(self.session)

    def export(
        self,
        out: str | Path,
        *,
        merged: bool = False,
        task: str | None = None,
        dtype: str | None = None,
        base_model: str | None = None,
        gguf: GgufOptions | None = None,
        overwrite: bool = False,
        after: str | None = None,
    ) -> Lineage:
        """Write the model for use without Merganser; see :func:`merganser.learner.exporting.export`."""
        form = exporting.Form(merged, dtype, Destination(base_model, gguf), overwrite)
        return exporting.export(self.session, Path(out), form, task=task, after=after)
