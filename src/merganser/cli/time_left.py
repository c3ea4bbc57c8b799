"""How long the rest of a stream takes, from what the tasks so far took."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from merganser.report.formatting import plural


class TimeLeft:
    """Estimates the time until the last task is scored.

    A finished task took its time for its size, evaluation included, and the others are taken to go on like that; while
    the first one is trained, by the steps it has taken.

    Args:
        sizes: task -> its size, in training examples for instance, in the order of learning.
        clock: seconds.
    """

    def __init__(self, sizes: Mapping[str, float], clock: Callable[[], float] = time.monotonic) -> None:
        self._sizes = dict(sizes)
        self._clock = clock
        self._current = ""
        self._began = self._spent = self._size_done = 0.0
        self._first = self._fraction = 0.0

    def begin(self, task: str, fraction: float = 0.0) -> None:
        """Note that the training of a task begins, or continues after this fraction of its steps."""
        self._current, self._began = task, self._clock()
        self._first = self._fraction = fraction

    def step(self, fraction: float) -> None:
        """Note which fraction of the task's steps is taken."""
        self._fraction = fraction

    def end(self) -> None:
        """Note that the task is scored."""
        if self._current in self._sizes:
            self._spent += self._clock() - self._began
            self._size_done += self._sizes[self._current] * (1.0 - self._first)
        self._current = ""

    def seconds(self) -> float | None:
        """Return the estimate; ``None`` while too little is known."""
        names = list(self._sizes)
        if self._current not in names:
            return None
        size = self._sizes[self._current]
        elapsed = self._clock() - self._began
        progress = self._fraction - self._first
        if self._size_done > 0:
            rate = self._spent / self._size_done
            current = max(0.0, rate * size * (1.0 - self._first) - elapsed)
        elif progress >= 0.05:
            rate = elapsed / progress / max(size, 1e-9)
            current = rate * size * (1.0 - self._fraction)
        else:
            return None
        return current + rate * sum(self._sizes[name] for name in names[names.index(self._current) + 1 :])


def left(seconds: float | None) -> str:
    """Format an estimate as a person would say it: ``about 12 min left``; empty where there is none."""
    if seconds is None:
        return ""
    if seconds < 60:
        return "less than a minute left"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"about {plural(minutes, 'minute')} left"
    return f"about {minutes // 60} h {minutes % 60:02d} min left"
