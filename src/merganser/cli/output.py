"""The consoles that the command prints to."""

from __future__ import annotations

import os
import sys

from rich.console import Console


class OutputConsole(Console):
    """Standard output. When its reader closes it, as in ``merganser run ... | head``, the rest is not printed.

    Names and texts are printed as they are: square brackets are no markup, and ``:name:`` is no picture.
    """

    def __init__(self) -> None:
        super().__init__(markup=False, emoji=False)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich would end the program with exit code 1


class ProgressConsole(Console):
    """Standard error. When its reader closes it, the command continues without printing."""

    def __init__(self) -> None:
        super().__init__(stderr=True, markup=False, emoji=False)

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
