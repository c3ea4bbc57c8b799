"""Run one cell of a study in this process, or the rest of it."""

from __future__ import annotations

import contextlib
import resource
import shlex

from merganser import processes
from merganser.events import Event, Listener, RowDone, silent
from merganser.learner import Learner
from merganser.runs.directory import RunDirectory
from merganser.study.cells import Cell, Study
from merganser.study.early_stop import EarlyStop
from merganser.study.folder import StudyFolder, record
from merganser.study.orders import Data


def run_cell(
    study: Study,
    cell: Cell,
    folder: StudyFolder,
    data: Data,
    *,
    listener: Listener = silent,
    early_stop: EarlyStop | None = None,
) -> None:
    """Run a cell from where it is to its end, and record it.

    Args:
        data: of the study's streams.
        early_stop: a rule that may stop it after a task.

    Raises:
        InputError, RunError: as a run; what was learned before is kept.
    """
    run = folder.run(cell)
    new = not RunDirectory.exists(run)
    stopped: list[str] = []

    def hear(event: Event) -> None:
        listener(event)
        if early_stop is None or cell.joint or not isinstance(event, RowDone) or not event.learned:
            return
        if tasks[-1].name in event.learned:
            return  # it is complete, and saves nothing by being left out
        if reason := early_stop.reason(cell, list(event.learned), event.scores):
            stopped.append(reason)
            raise _Stopped

    command = shlex.join(["merganser", "study", study.where, "--out", str(folder.path), "--cell", cell.name])
    before = _processor_seconds()
    tasks, watched = data.tasks(cell.stream), data.watched(cell.stream)
    with Learner.of_config(run, cell.config, listener=hear, command=command, shared=folder.shared) as learner:
        learner.watch(*watched)
        with contextlib.suppress(_Stopped):
            learner.learn_stream(tasks)
        saved = 0.0 if learner.session.shared is None else learner.session.shared.saved_seconds
        spent = sum(processes.all_gather_object(_processor_seconds() - before)) + saved
        if study.options.fwt and not stopped:
            learner.measure_references(tasks)  # they are no cost of the method
    reason = stopped[0] if stopped else None
    processes.on_main(lambda: record(study, cell, folder, reason, spent if new else None))


class _Stopped(Exception):
    """A rule stopped the cell."""


def _processor_seconds() -> float:
    """Return the processor time of this process and of those that it started and that have ended."""
    used = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)
