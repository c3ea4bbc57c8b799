"""Which cell is run next, and how long the rest takes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

from merganser.streams.task import Task
from merganser.study.cells import Cell
from merganser.training.options import NOT_IN_A_FIRST_TASK, planned_steps


def cell_size(cell: Cell, tasks: Sequence[Task]) -> float:
    """Return the training examples that a cell reads, over all its steps."""
    options = cell.config.training
    rows = [sum(task.rows_per_epoch for task in tasks)] if cell.joint else [task.rows_per_epoch for task in tasks]
    return float(sum(planned_steps(count, options) * options.batch * options.accumulation for count in rows))


def beginning(cell: Cell, tasks: int) -> tuple[str, float]:
    """Return a key that cells have in common whose first task may be trained alike, and that task's share of a cell."""
    if cell.joint:
        return "", 0.0
    parts = [
        cell.config.model.model_dump_json(),
        cell.config.training.model_dump_json(exclude=set(NOT_IN_A_FIRST_TASK)),
        cell.stream.options.model_dump_json(),
        str(cell.seed),
    ]
    return "\n".join(parts), 1 / max(tasks, 1)


class Schedule:
    """Cells that wait, run and are done, and estimates from what the done ones took.

    Args:
        sizes: cell -> its size, of those that are to be run.
        methods: cell -> what its speed is taken to depend on.
        beginnings: cell -> what those have in common that may begin with the same training, and its share of a cell.
        clock: seconds.
    """

    def __init__(
        self,
        sizes: Mapping[str, float],
        methods: Mapping[str, str],
        beginnings: Mapping[str, tuple[str, float]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sizes = dict(sizes)
        self._methods = dict(methods)
        self._beginnings = dict(beginnings or {})
        self._clock = clock
        self._seconds: dict[str, list[float]] = {}
        self._began: dict[str, float] = {}
        self._first: dict[str, float] = {}
        self._fraction: dict[str, float] = {}
        self.waiting = sorted(self._sizes, key=lambda name: -self._sizes[name])

    def learn(self, method: str, seconds: float, size: float) -> None:
        """Note what a cell of a method took; the longest come first from then on."""
        if size > 0:
            self._seconds.setdefault(method, []).append(seconds / size)
            self.waiting.sort(key=lambda name: -self._total(name, 1.0))

    def begin(self, name: str) -> None:
        """Note that a cell begins."""
        self.waiting.remove(name)
        self._began[name] = self._clock()

    def next(self, fractions: Mapping[str, tuple[str, float]]) -> str | None:
        """Return the cell to begin next: the longest whose beginning no other is just making for it.

        Args:
            fractions: running cell -> its task, and how far it is.

        Returns:
            ``None``: none now. To make such a beginning twice would be as long as to wait for it.
        """
        making = set()
        for name in self._began:
            key, share = self._beginnings.get(name, ("", 0.0))
            if key and fractions.get(name, ("", 0.0))[1] < share:
                making.add(key)
        return next((name for name in self.waiting if self._beginnings.get(name, ("", 0.0))[0] not in making), None)

    def move(self, name: str, fraction: float) -> None:
        """Note how far a cell is."""
        if name in self._began:
            self._first.setdefault(name, fraction)
            self._fraction[name] = fraction

    def end(self, name: str, done: bool) -> float:
        """Note that a cell has ended; return the seconds it took."""
        seconds = self._clock() - self._began.pop(name)
        share = 1 - self._first.pop(name, 0.0)
        self._fraction.pop(name, None)
        if done and share > 0:
            self.learn(self._methods[name], seconds / share, self._sizes[name])
        return seconds

    @property
    def running(self) -> list[str]:
        """The cells that run."""
        return list(self._began)

    def _rate(self, method: str) -> float | None:
        """Return the seconds per example of a method's cells: of those done, else by those that run, else of all."""
        if method in self._seconds:
            return sum(self._seconds[method]) / len(self._seconds[method])
        going = {name: rate for name in self._began if (rate := self._going(name)) is not None}
        same_method = [rate for name, rate in going.items() if self._methods[name] == method]
        rates = same_method or [*going.values(), *(sum(done) / len(done) for done in self._seconds.values())]
        return sum(rates) / len(rates) if rates else None

    def _going(self, name: str) -> float | None:
        progress = self._fraction.get(name, 0.0) - self._first.get(name, 0.0)
        if progress < 0.05 or self._sizes[name] <= 0:
            return None
        return (self._clock() - self._began[name]) / progress / self._sizes[name]

    def _total(self, name: str, default: float) -> float:
        rate = self._rate(self._methods[name])
        return self._sizes[name] * (default if rate is None else rate)

    def seconds_left(self, slots: int) -> float | None:
        """Return an estimate of the time until all cells are done; ``None`` while nothing is known."""
        left: list[float] = []
        for name in [*self._began, *self.waiting]:
            rate = self._rate(self._methods[name])
            if rate is None:
                return None
            left.append(rate * self._sizes[name] * (1 - self._fraction.get(name, 0.0)))
        return max(math.fsum(left) / max(slots, 1), max(left, default=0.0))
