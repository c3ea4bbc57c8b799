"""What Merganser says when something cannot be done: the cause, and what to do about it.

Every error a person can meet derives from :class:`MerganserError`. The command prints its one line and exits with
``exit_code``; a traceback appears only with ``--debug``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MerganserError(Exception):
    """An error with a cause and, where there is one, a remedy.

    Args:
        cause: what is wrong, with the name, path or number that is wrong.
        remedy: what the person can do about it.
    """

    exit_code = 1
    told = False
    """With several processes: another one says it."""

    def __init__(self, cause: str, remedy: str = "") -> None:
        super().__init__(f"{cause} {remedy}".strip())
        self.cause = cause
        self.remedy = remedy


class InputError(MerganserError):
    """The user's mistake: a wrong file, key, name or value. Exit code 2, nothing was changed."""

    exit_code = 2


class RunError(MerganserError):
    """Work that had started could not be finished (non-finite loss, full disk). The run is as it was before."""


def nearest(word: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for the known word nearest to ``word``, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"Did you mean '{close[0]}'?" if close else ""
