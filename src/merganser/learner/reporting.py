"""Report the events of a run to experiment trackers, beside the listener that it has."""

from __future__ import annotations

import contextlib
import functools
import io
import math
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

from merganser import processes
from merganser.errors import first_line
from merganser.events import ALONE, Event, Listener, Merged, Notice, RowDone, StepDone, TaskStarted
from merganser.learner.trackers import TRACKERS, TrackedRun, Tracker, dotted, run_identity
from merganser.models.library_output import silence_libraries
from merganser.runs.directory import RUN
from merganser.training.determinism import isolated_random
from merganser.training.options import MAY_CHANGE

if TYPE_CHECKING:
    from merganser.learner.session import Session

T = TypeVar("T")

MOMENTS = {"loss": "loss", "learning_rate": "learning_rate", "probe": "probe_loss", "interval": "merge_interval"}
"""Field of a step's event -> name of its values in a tracker."""


class Reporting:
    """A listener that passes every event on and reports it: losses, merges, and the scores after each task.

    Steps are optimizer steps of the whole run: those of a task continue those of the tasks before it. A tracker that
    fails is named once and gets no more; the run goes on. Random numbers are as they would be without trackers.

    Args:
        session: of the run, which has at least its ``run.yaml``.
        listener: receives every event, and what is to be said of trackers.
    """

    def __init__(self, session: Session, listener: Listener) -> None:
        self.session = session
        self.listener = listener
        self.every = session.config.training.report_steps
        self.waiting = list(session.config.training.report_to)
        self.trackers: list[Tracker] = []
        self._offset = 0
        self._foreign = False
        self._said: set[str] = set()
        self._steps: list[StepDone] = []

    def __call__(self, event: Event) -> None:
        self.listener(event)
        if isinstance(event, TaskStarted):
            # Single-task references are no part of the run.
            self._foreign = event.task.endswith(ALONE)
            self._steps = []
            self._offset = steps_taken(self.session)
            if not self._foreign:
                self._begin(self._offset + event.step)
                self._log({"task": float(event.index)}, self._offset + event.step)
        elif isinstance(event, RowDone):
            self._begin(steps_taken(self.session))
            self._log(self._scores(event), steps_taken(self.session))
        elif isinstance(event, StepDone) and not self._foreign:
            self._steps.append(event)
            if event.step % self.every == 0 or event.step == event.steps:
                self._log(_means(self._steps), self._offset + event.step)
                self._steps = []
        elif isinstance(event, Merged):
            self._log(_merge(event), self._offset + event.step)

    def end(self, failed: bool = False) -> None:
        """End the runs of the trackers."""
        for tracker in list(self.trackers):
            self._guarded(tracker.title, functools.partial(tracker.end, failed))
        self.trackers, self.waiting = [], []

    def _begin(self, step: int) -> None:
        """Open the trackers, at the first event that is reported."""
        if not self.waiting:
            return
        directory, info = self.session.directory, self.session.directory.info
        config = {key: value for key, value in info.config.items() if key != "stream"}
        config["training"] = {key: value for key, value in config["training"].items() if key not in MAY_CHANGE}
        settings = dotted({**config, "seed": info.seed, "command": info.command, "versions": info.versions})
        run = TrackedRun(directory.path, run_identity(directory.path / RUN), settings)
        names, self.waiting = self.waiting, []
        for name in names:
            kind = TRACKERS[name]
            if (tracker := self._guarded(kind.title, functools.partial(kind, run, step))) is not None:
                self.trackers.append(tracker)

    def _scores(self, event: RowDone) -> dict[str, float]:
        """Return the scores of a row, and the metrics of the run after it, as fractions."""
        values = {f"eval_score/{task}": value for task, value in event.scores.items()}
        for metric in self.session.directory.scores().summary if event.learned else ():
            if metric.value is not None:
                values[f"eval_{metric.name}"] = metric.value
        return values

    def _log(self, values: dict[str, float], step: int) -> None:
        finite = {key: value for key, value in values.items() if math.isfinite(value)}
        for tracker in list(self.trackers) if finite else ():
            if self._guarded(tracker.title, functools.partial(_log_to, tracker, finite, step)) is None:
                self.trackers.remove(tracker)

    def _guarded(self, title: str, work: Callable[[], T]) -> T | None:
        """Do a tracker's work; where it fails, say so and return ``None``."""
        with warnings.catch_warnings(record=True) as caught:
            try:
                # Trackers print where the live view is, and draw names at random.
                with isolated_random(0), silence_libraries(), contextlib.redirect_stdout(io.StringIO()):
                    warnings.simplefilter("always")
                    result = work()
            except Exception as error:  # whatever a tracker raises: no training ends because of it
                self._say(
                    f"{title} failed: {type(error).__name__}: {first_line(error)}. Nothing more is reported to it; the "
                    "run goes on."
                )
                result = None
        for warning in caught:
            if "trackio" in (text := str(warning.message)).lower():  # it warns instead of raising an error
                self._say(f"{title}: {text}")
        return result

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self.listener(Notice(text))


def steps_taken(session: Session) -> int:
    """Return the optimizer steps of the rows learned so far."""
    return sum(task.cost.steps for row in session.rows for task in row.file.tasks)


def report_to_trackers(session: Session) -> Session:
    """Let the trackers that ``training.report_to`` names hear of everything, in the process that writes."""
    if session.config.training.report_to and processes.is_main():
        session.listener = Reporting(session, session.listener)
    return session


def end_reporting(session: Session, failed: bool) -> None:
    """End the runs of the session's trackers, if it has any."""
    if isinstance(session.listener, Reporting):
        session.listener.end(failed)


def _log_to(tracker: Tracker, values: Mapping[str, float], step: int) -> bool:
    tracker.log(values, step)
    return True


def _means(steps: list[StepDone]) -> dict[str, float]:
    """Return the mean losses over some steps, and the last value of everything else."""
    values: dict[str, float] = {}
    for field, name in MOMENTS.items():
        known = [value for step in steps if (value := getattr(step, field)) is not None]
        if known:
            values[name] = math.fsum(known) / len(known) if field in ("loss", "probe") else float(known[-1])
    return values


def _merge(event: Merged) -> dict[str, float]:
    """Return the numbers of a merge; its cause is a name with the value 1."""
    return {
        "merge/weight_new": event.weight_new,
        "merge/weight_old": event.weight_old,
        "merge/rehearsal_steps": float(event.rehearsal_steps),
        "merge/refused": float(event.reason is not None),
        f"merge/cause_{event.cause}": 1.0,
    }
