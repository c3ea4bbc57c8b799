"""Rows that cannot become examples: what is wrong with them, in how many rows of a source, and where the first is.

All bad rows of a source are collected before any is reported, so that a file with several odd rows is corrected once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from merganser.errors import InputError

OnBadRows = Literal["refuse", "skip"]
TASK_CHOICE = (
    "rows that cannot be used (malformed, a field missing or empty, an answer outside the labels, no valid Unicode): "
    "'refuse' them all at once, with their kinds, counts and first places, or 'skip' them and record how many of which "
    "kind; null: the stream's choice"
)
STREAM_CHOICE = (
    "default of every task's on_bad_rows; null: refuse, except that in the files of the built-in orders empty texts "
    "and answers that mark a text without a label (`-` in mnli) are skipped"
)
"""Descriptions of the option, of a task and of a stream."""

EMPTY, UNLABELLED, OTHER = "empty", "unlabelled", "other"
"""Codes of the kinds of bad rows: an empty text; an answer that stands for no label; all others."""

SKIP_REMEDY = "To leave such rows out, set on_bad_rows: skip (merganser learn: --on-bad-rows skip)."
_MAX_REMEDIES = 3

Remedy = str | Callable[[], str]
"""A remedy, or what makes it: only that of the first row of a kind is needed."""


@dataclass(frozen=True)
class Problem:
    """What is wrong with one row.

    Attributes:
        kind: what is wrong, without values of this row: rows are counted by it.
        remedy: what to do about it.
        example: the value of this row.
        code: one of the codes of this module.
    """

    kind: str
    remedy: Remedy
    example: str = ""
    code: str = OTHER

    def __str__(self) -> str:
        return f"{self.kind}: {self.example}" if self.example else self.kind

    def remedy_text(self) -> str:
        """Return the remedy."""
        return self.remedy if isinstance(self.remedy, str) else self.remedy()


class BadCell(InputError):
    """One cell, or one row, that cannot be used.

    Args:
        where: the row, as ``file, line 7``.
        problem: what is wrong with it.
    """

    def __init__(self, where: str, problem: Problem) -> None:
        super().__init__(f"{where}: {problem}.", problem.remedy if isinstance(problem.remedy, str) else "")
        self.problem = problem


@dataclass
class _Kind:
    """The rows with one kind of problem: how many there are, and the first of them."""

    problem: Problem
    first: int
    count: int = 0


@dataclass
class BadRows:
    """The bad rows of one source.

    Attributes:
        shown: the source as a person named it.
        unit: ``line``, ``row`` or ``image``: what places count.
        good: number of rows that can be used.
    """

    shown: str
    unit: str
    good: int = 0
    _kinds: dict[str, _Kind] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(kind.count for kind in self._kinds.values())

    def add(self, place: int, problem: Problem) -> None:
        """Add one row, whose 1-based line or number is ``place``."""
        if not problem.example.isascii():  # a half character in it could neither be printed nor recorded
            problem = replace(problem, example=problem.example.encode(errors="backslashreplace").decode())
        kind = self._kinds.setdefault(problem.kind, _Kind(problem, place))
        if place < kind.first:
            kind.first, kind.problem = place, problem
        kind.count += 1

    def codes(self) -> set[str]:
        """Return the codes of all kinds."""
        return {kind.problem.code for kind in self._kinds.values()}

    def remedies(self) -> list[str]:
        """Return the remedies of the kinds, each once, in the order of the first rows."""
        return list(dict.fromkeys(kind.problem.remedy_text() for kind in self._in_order()))

    def describe(self) -> str:
        """Return all kinds with their counts and first places; one bad row is described by its place."""
        if len(self) == 1:
            (kind,) = self._kinds.values()
            return f"{self.shown}, {self.unit} {kind.first}: {kind.problem}"
        return f"{self.shown}: {len(self):,} of {len(self) + self.good:,} {self.unit}s cannot be used: {self.kinds()}"

    def kinds(self) -> str:
        """Return the kinds, their counts and first places, as ``6 × field 'output' is empty (first: row 17)``."""
        return "; ".join(
            f"{kind.count:,} × {kind.problem.kind} (first: {self.unit} {kind.first}"
            + (f", {kind.problem.example})" if kind.problem.example else ")")
            for kind in self._in_order()
        )

    def _in_order(self) -> list[_Kind]:
        return sorted(self._kinds.values(), key=lambda kind: kind.first)


class BadRowsError(InputError):
    """Bad rows that are refused.

    Args:
        sources: all sources with bad rows.
        can_skip: whether leaving the rows out would help.
    """

    def __init__(self, sources: Sequence[BadRows], can_skip: bool = True) -> None:
        self.sources = list(sources)
        self.can_skip = can_skip
        remedies = list(dict.fromkeys(remedy for source in sources for remedy in source.remedies()))[:_MAX_REMEDIES]
        if can_skip:
            remedies.append(SKIP_REMEDY)
        # One file may serve as two splits.
        super().__init__(". ".join(dict.fromkeys(source.describe() for source in sources)), " ".join(remedies))


def settle(
    sources: Iterable[BadRows], on_bad_rows: OnBadRows | None, tolerated: Collection[str] = ()
) -> tuple[str, ...]:
    """Decide about the bad rows of a task: refuse them all at once, or describe those that are skipped.

    Args:
        sources: of all splits of the task.
        on_bad_rows: what the user asked for; ``None``: skip rows of the tolerated kinds, refuse the others.
        tolerated: codes of kinds that are skipped when nothing was asked for.

    Returns:
        One remark per file with skipped rows.

    Raises:
        BadRowsError: with all sources of which rows are refused, or of which no row is left.
    """
    bad = [source for source in sources if len(source)]
    emptied = [source for source in bad if not source.good]
    if on_bad_rows == "skip":
        refused = emptied
    else:
        known = set(tolerated) if on_bad_rows is None else set()
        refused = [source for source in bad if not source.good or source.codes() - known]
    if refused:
        raise BadRowsError(refused, can_skip=not emptied)
    skipped = (
        f"{source.shown}: {len(source):,} of {len(source) + source.good:,} {source.unit}s skipped: {source.kinds()}"
        for source in bad
    )
    return tuple(dict.fromkeys(skipped))
