"""Where the command prints."""

from __future__ import annotations

import os
import sys

from rich.console import Console


class OutputConsole(Console):
    """Standard output. When its reader has gone, as in ``merganser run ... | head``, what is left is not printed."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich would end the program with exit code 1


class ProgressConsole(Console):
    """Standard error. When its reader has gone, work goes on without a word."""

    def __init__(self) -> None:
        super().__init__(stderr=True)

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
