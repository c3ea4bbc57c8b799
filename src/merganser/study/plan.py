"""What a study will take, from measured steps of each of its methods. Nothing is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from merganser.errors import MerganserError
from merganser.learner import Learner
from merganser.learner.plan import Plan
from merganser.streams.formats import is_unreachable
from merganser.study.cells import Cell, Study
from merganser.study.orders import Data
from merganser.study.schedule import beginning


@dataclass(frozen=True)
class PlannedMethod:
    """The cells of one method with one choice of options on one stream.

    Attributes:
        title: of them, for a table.
        cells: that are to be run.
        plan: of one of them; ``None``: it could not be measured.
        problem: why not.
    """

    title: str
    cells: Sequence[Cell]
    plan: Plan | None
    problem: str = ""

    @property
    def seconds(self) -> float:
        """One cell, with all its parts."""
        return 0.0 if self.plan is None else self.plan.seconds

    @property
    def disk(self) -> int:
        """About what the weights of one cell take on disk."""
        if self.plan is None:
            return 0
        kept = self.plan.keep_weights
        rows = len(self.plan.tasks) + 1
        if isinstance(kept, int):
            rows = min(rows, kept + 1)
        elif kept == "tagged":
            rows = min(rows, 2)
        return (rows + 1) * self.plan.row_bytes  # and those in use


@dataclass(frozen=True)
class StudyPlan:
    """What a study will take.

    Attributes:
        methods: what is to be run.
        cells: of the study, and of them those that are done.
        shared: of each training of a first task that several cells have in common, how many do.
        saved_seconds: what that saves.
        at_a_time: cells that run at the same time.
    """

    methods: Sequence[PlannedMethod]
    cells: int
    done: int
    shared: Sequence[int] = ()
    saved_seconds: float = 0.0
    at_a_time: int = 1

    @property
    def runs(self) -> int:
        """The cells to run."""
        return sum(len(method.cells) for method in self.methods)

    @property
    def machine_seconds(self) -> float:
        """The time of all cells, one after another, with what is shared done once."""
        return max(math.fsum(len(method.cells) * method.seconds for method in self.methods) - self.saved_seconds, 0.0)

    @property
    def seconds(self) -> float:
        """The time until all are done."""
        longest = max((method.seconds for method in self.methods), default=0.0)
        return max(self.machine_seconds / self.at_a_time, longest)

    @property
    def disk(self) -> int:
        """The bytes of all cells on disk."""
        return sum(len(method.cells) * method.disk for method in self.methods)

    @property
    def memory(self) -> int:
        """The bytes of memory of the cells that run at the same time, if they are the largest."""
        largest = max((method.plan.memory.total for method in self.methods if method.plan is not None), default=0)
        return largest * min(self.at_a_time, self.runs)


def plan_study(
    study: Study,
    cells: Sequence[Cell],
    data: Data,
    at_a_time: int,
    done: int = 0,
    announce: Callable[[str], None] = lambda text: None,
) -> StudyPlan:
    """Train ten steps of a cell of every method and choice of options in memory, and estimate what all cells take.

    Where a model is not on this machine, everything else is checked and no time is estimated.

    Args:
        cells: to be run.
        announce: called with the name of each method that is measured.

    Raises:
        InputError: data are missing, or a stream cannot be learned.
    """
    groups: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.stream.stream, cell.method, str(cell.options)), []).append(cell)
    planned = []
    for group in groups.values():
        title = ", ".join([group[0].method, *(f"{key}: {value}" for key, value in group[0].options.items())])
        title = title if len(study.options.named_streams) == 1 else f"{group[0].stream.stream}: {title}"
        announce(title)
        planned.append(_measured(study, title, group, data))
    shared, saved = _shared(planned, data)
    return StudyPlan(planned, len(study.cells), done, shared, saved, at_a_time)


def absent_data(study: Study) -> dict[str, str]:
    """Read the data of a study, and return the streams whose data are neither on this machine nor to be had: with why.

    Raises:
        InputError: other data are missing or malformed.
    """
    data, absent = Data(study.folder), {}
    for stream in {(cell.stream.stream, cell.stream.order): cell.stream for cell in study.cells}.values():
        try:
            data.tasks(stream)
            data.watched(stream)
        except MerganserError as error:
            if not is_unreachable(error):
                raise
            absent[stream.stream] = str(error)
    return absent


def _measured(study: Study, title: str, group: Sequence[Cell], data: Data) -> PlannedMethod:
    cell = group[0]
    tasks = data.tasks(cell.stream)
    try:
        plan = Learner.plan(cell.config, tasks, fwt=study.options.fwt, watch=data.watched(cell.stream))
    except MerganserError as error:
        if not error.missing_model:
            raise
        return PlannedMethod(title, group, None, str(error))
    return PlannedMethod(title, group, plan)


def _shared(planned: Sequence[PlannedMethod], data: Data) -> tuple[list[int], float]:
    """Return how many cells have each shared training of a first task in common, and the seconds saved."""
    seconds_by_key: dict[str, list[float]] = {}
    for method in planned:
        for cell in method.cells if method.plan is not None and method.plan.plain_start else ():
            key, _ = beginning(cell, len(data.tasks(cell.stream)))
            seconds = 0.0 if method.plan is None else method.plan.tasks[0].training_seconds
            if key:
                seconds_by_key.setdefault(key, []).append(seconds)
    shared = [seconds for seconds in seconds_by_key.values() if len(seconds) > 1]
    return [len(seconds) for seconds in shared], math.fsum(math.fsum(seconds[1:]) for seconds in shared)
