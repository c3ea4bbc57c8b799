"""The errors of Merganser: each states a cause and, where there is one, a remedy.

Every error that a user can cause or act on derives from :class:`MerganserError`. The command prints it as one line and
exits with ``exit_code``; ``--debug`` prints the traceback as well.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Hashable, Iterable
from typing import TypeVar

Value = TypeVar("Value", bound=Hashable)

LONGEST_WORD, MOST_WORDS = 200, 2000
"""Characters of words, and their number, that are compared to find the one that was meant."""

LONGEST_CAUSE = 2000
"""Characters of a cause that are shown."""


def sentence(text: str) -> str:
    """Return ``text`` with a capital at its start and a full stop at its end.

    A path, an option or a quotation at the start (``method.batch is 5``, ``'runs/x' exists``) stays as it is. Half a
    character, which cannot be printed, becomes its escape.
    """
    text = text.encode(errors="backslashreplace").decode()
    if re.match(r"[a-z]+[ ,]", text):
        text = text[0].upper() + text[1:]
    return f"{text}." if text and text[-1] not in ".?!:" else text


def _cut(text: str) -> str:
    """Leave out the middle of a text that would fill a screen: a name in a file may be of any length."""
    return text if len(text) <= LONGEST_CAUSE else f"{text[: LONGEST_CAUSE // 2]} ... {text[-LONGEST_CAUSE // 2 :]}"


class MerganserError(Exception):
    """Base class: an error with a cause and, where there is one, a remedy.

    Args:
        cause: what is wrong, with the name, path or number concerned.
        remedy: what the user can do about it.
    """

    exit_code = 1
    reported_elsewhere = False
    """With several processes: another process reports the same error."""
    missing_model = False
    """It is that a model is not on this machine, and could not be fetched."""

    def __init__(self, cause: str, remedy: str = "") -> None:
        self.cause = sentence(_cut(cause))
        self.remedy = sentence(remedy)
        super().__init__(f"{self.cause} {self.remedy}".strip())


class InputError(MerganserError):
    """Invalid input: a wrong file, key, name or value. Exit code 2; nothing was changed."""

    exit_code = 2


class RunError(MerganserError):
    """Work that had started could not be finished (non-finite loss, full disk). The run is unchanged."""


class DiskFullError(RunError):
    """No space is left on the disk. Started again with free space, the work resumes from its last checkpoint."""


def mark_missing_model(error: MerganserError) -> MerganserError:
    """Return the error, marked as that of a model that is not there (:attr:`MerganserError.missing_model`)."""
    error.missing_model = True
    return error


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``"Did you mean 'x'?"`` for the known word nearest to ``word``, or an empty string.

    Comparing words takes time in proportion to their number and to the product of their lengths: of very many known
    words the first are compared, and long words with none.
    """
    if len(word) > LONGEST_WORD:
        return ""
    compared = (other for other in itertools.islice(known, MOST_WORDS) if len(other) <= LONGEST_WORD)
    close = difflib.get_close_matches(word, compared, n=1, cutoff=0.6)
    return f"Did you mean '{close[0]}'?" if close else ""


def first_repeated(values: Iterable[Value]) -> Value | None:
    """Return the first value that stood before, or ``None``: in linear time, for files of any length."""
    seen: set[Value] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None


def short(value: object) -> str:
    """Return a value as it is written in Python, at most 200 characters of it: a value in a file may fill a screen."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type if it has no text: libraries' errors fill a screen."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).strip()
