"""Progress in a notebook: one bar per task, in the output of the cell."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from html import escape
from typing import Any

from merganser.events import Evaluating, Event, Listener, Merged, Notice, RowDone, StepDone, TaskStarted, silent
from merganser.tables import score

PAUSE = 0.3
"""Seconds between two updates, at least."""


class NotebookProgress:
    """A listener that shows a bar per task, with its score once it is learned.

    Args:
        show: called with HTML, first with ``update`` false, then with true to replace what it has shown.
        clock: seconds.
    """

    def __init__(self, show: Callable[[str, bool], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._show = show
        self._clock = clock
        self._bars: dict[str, tuple[int, int, str]] = {}
        self._notices: list[str] = []
        self._current = ""
        self._merges = 0
        self._shown = -PAUSE
        self._begun = False

    def __call__(self, event: Event) -> None:
        now = True
        if isinstance(event, Notice):
            self._notices.append(event.text)
        elif isinstance(event, TaskStarted):
            self._current, self._merges = event.task, 0
            self._bars[event.task] = (event.step, event.steps, "")
        elif isinstance(event, StepDone):
            loss = "" if event.loss is None else f"loss {event.loss:.3f}"
            self._bars[event.task] = (event.step, event.steps, loss)
            now = False
        elif isinstance(event, Merged):
            self._merges += event.reason is None
            now = False
        elif isinstance(event, Evaluating):
            if self._current in self._bars:
                done, total, _ = self._bars[self._current]
                self._bars[self._current] = (done, total, f"answering {event.task}: {event.done}/{event.total}")
            now = False
        elif isinstance(event, RowDone):
            self._row(event)
        if now or self._clock() - self._shown >= PAUSE:
            self._shown = self._clock()
            self._show(self.html(), self._begun)
            self._begun = True

    def _row(self, event: RowDone) -> None:
        for task in event.learned:
            _, total, _ = self._bars.get(task, (0, 1, ""))
            reached = f"{score(event.scores[task])} %" if task in event.scores else "not scored (no test file)"
            merges = f", {self._merges} {'merge' if self._merges == 1 else 'merges'}" if self._merges else ""
            self._bars[task] = (total, total, reached + merges)
        self._current = ""

    def html(self) -> str:
        """Return the bars as HTML."""
        rows = "".join(
            f'<tr><th scope="row" style="text-align:left">{escape(task)}</th>'
            f'<td><progress value="{done}" max="{max(total, 1)}" aria-label="{escape(task)}"></progress></td>'
            f'<td style="text-align:left">{done}/{total} steps</td><td style="text-align:left">{escape(text)}</td></tr>'
            for task, (done, total, text) in self._bars.items()
        )
        notices = "".join(f"<p>{escape(text)}</p>" for text in self._notices)
        return f"{notices}<table><tbody>{rows}</tbody></table>" if rows else notices


def default_listener() -> Listener:
    """Return a listener that shows bars where Python runs in a notebook, and :func:`silent` elsewhere."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if shell is None or not hasattr(shell, "kernel"):
        return silent
    handle: list[Any] = []

    def show(html: str, update: bool) -> None:
        from IPython.display import HTML, display

        if update and handle:
            handle[0].update(HTML(html))
        else:
            handle[:] = [display(HTML(html), display_id=True)]

    return NotebookProgress(show)
