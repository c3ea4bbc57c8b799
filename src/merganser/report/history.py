"""The versions of a run: a line per row, its tags, and what undo has kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from merganser.errors import InputError, nearest
from merganser.methods import METHODS
from merganser.metrics.matrix import ScoreMatrix
from merganser.metrics.retention import Bounds
from merganser.report.formatting import MISSING, score, size
from merganser.report.retention import check_row, watched_in
from merganser.runs import RunDirectory
from merganser.runs.answers import AnswersOfRows, NothingToCompareError
from merganser.runs.options import Keep, RunsOptions
from merganser.runs.rows import Row


@dataclass(frozen=True)
class Version:
    """A row of a run.

    Attributes:
        row: its folder.
        tasks: learned in it.
        finished: UTC time, ISO 8601; of row 0 when the run was started.
        scores: of these tasks, right after they were learned; one without a test set is left out.
        worst: earlier or watched task that lost most against the row before; ``None``: none lost.
        worst_change: of its score, at most 0; ``None``: there is no earlier task.
        bytes: on disk.
        weights: whether they are there; False: they were removed to save space.
        merges: that were applied.
        check: verdict of :func:`~merganser.report.retention.check_row`; ``None``: nothing to compare.
        tags: its names.
    """

    row: str
    tasks: list[str]
    finished: str
    scores: dict[str, float]
    worst: str | None
    worst_change: float | None
    bytes: int
    weights: bool
    merges: int
    check: str | None
    tags: list[str] = field(default_factory=list)

    @property
    def new(self) -> float | None:
        """The mean score of its tasks."""
        return sum(self.scores.values()) / len(self.scores) if self.scores else None


@dataclass(frozen=True)
class KeptVersion:
    """Rows that undo has kept.

    Attributes:
        name: to go back to them.
        after: folder of the row that they follow.
        rows: their folders.
        bytes: on disk.
        undone: UTC time, ISO 8601.
        tags: of these rows.
    """

    name: str
    after: str
    rows: list[str]
    bytes: int
    undone: str
    tags: list[str]


@dataclass(frozen=True)
class History:
    """The versions of a run.

    Attributes:
        run: its directory.
        keep_weights: rows whose weights are kept, as the run was started.
        bounds: with which rows were checked.
    """

    run: str
    keep_weights: Keep
    bounds: Bounds
    rows: list[Version]
    kept: list[KeptVersion]

    def as_dict(self) -> dict[str, Any]:
        """Convert to a dict for JSON; scores and changes are fractions."""
        return {
            "run": self.run,
            "keep_weights": self.keep_weights,
            "rows": [asdict(row) for row in self.rows],
            "kept_by_undo": [asdict(version) for version in self.kept],
        }


def history(directory: RunDirectory, bounds: Bounds | None = None) -> History:
    """Return the versions of a run, row 0 first.

    Args:
        bounds: of the checks; default: those of ``merganser check``.

    Raises:
        InputError: a file of the run is damaged.
    """
    bounds = bounds or Bounds()
    rows = directory.rows
    _check_names(bounds, rows)
    answers, matrix = AnswersOfRows(rows), directory.matrix()
    tags: dict[int, list[str]] = {}
    for name, row in directory.tags().items():
        tags.setdefault(row.file.row, []).append(name)
    versions = []
    for number, row in enumerate(rows):
        worst, change = _worst(rows, matrix, number)
        names = [task.name for task in row.file.tasks]
        scores = row.file.scores.scores
        versions.append(
            Version(
                row=row.folder.name,
                tasks=names,
                finished=row.file.tasks[-1].finished if names else directory.info.created,
                scores={name: scores[name].value for name in names if name in scores},
                worst=worst,
                worst_change=change,
                bytes=_bytes(row.folder),
                weights=row.has_weights,
                merges=sum(merge.status == "applied" for merge in row.merges),
                check=_verdict(directory, row, bounds, answers),
                tags=tags.get(number, []),
            )
        )
    kept = [
        KeptVersion(
            name=name,
            after=version.after.row,
            rows=[row.name for row in version.rows],
            bytes=_bytes(version.folder),
            undone=version.file.created,
            tags=list(version.file.tags),
        )
        for name, version in directory.undone().items()
    ]
    config = directory.info.config
    options = RunsOptions.model_validate(config.get("runs", {"keep_weights": "all"}))
    method = config.get("method", {}).get("name")
    several = method in METHODS and METHODS[method].per_task_models
    keep = options.kept(config.get("model", {}).get("lora") is None, several)
    return History(str(directory.path), keep, bounds, versions, kept)


def _worst(rows: Sequence[Row], matrix: ScoreMatrix, number: int) -> tuple[str | None, float | None]:
    """Return the earlier task that lost most against the row before, and its change."""
    if number == 0:
        return None, None
    before, now = (matrix.rows[index].scores for index in (number - 1, number))
    names = [*_learned(rows[:number]), *watched_in(rows[: number + 1])]
    changes = {name: now[name].value - before[name].value for name in names if name in before and name in now}
    if not changes:
        return None, None
    worst = min(changes, key=lambda name: changes[name])
    return (worst, changes[worst]) if changes[worst] < 0 else (None, 0.0)


def _learned(rows: Sequence[Row]) -> list[str]:
    return [task.name for row in rows for task in row.file.tasks]


def _check_names(bounds: Bounds, rows: Sequence[Row]) -> None:
    watched = watched_in(rows)
    known = [*_learned(rows), *watched, *filter(None, watched.values())]
    for name in bounds.max_drop_of or {}:
        if name not in known:
            hint = nearest(name, known) or f"Tasks: {', '.join(known)}."
            raise InputError(f"There is no task '{name}' (--max-drop-of).", hint)


def _verdict(directory: RunDirectory, row: Row, bounds: Bounds, answers: AnswersOfRows) -> str | None:
    if row.is_start:
        return None
    rows = directory.rows
    watched = watched_in(rows[: row.file.row + 1])
    compared = {*_learned(rows[: row.file.row]), *watched, *watched.values()}
    drops = {name: drop for name, drop in (bounds.max_drop_of or {}).items() if name in compared}
    bounds = replace(bounds, max_drop_of=drops)
    try:
        return check_row(directory, row=row.folder.name, bounds=bounds, answers=answers).verdict.value
    except NothingToCompareError:
        return None


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


# As text -------------------------------------------------------------------------------------------------------------

HEADER = ("row", "when (UTC)", "new", "worst loss", "size", "merges", "check", "tags")

REMOVED = "*"
"""Mark of a size without weights."""


def table_rows(history: History) -> list[tuple[str, ...]]:
    """Return one row of cells per row of the run, under :data:`HEADER`; scores in percent, changes in points."""
    return [
        (
            row.row,
            when(row.finished),
            score(row.new),
            lost(row),
            size(row.bytes) + ("" if row.weights else REMOVED),
            f"{row.merges:,}",
            row.check or MISSING,
            ", ".join(row.tags),
        )
        for row in history.rows
    ]


def when(time: str) -> str:
    """Return a time of ISO 8601 to the minute."""
    return time[:16].replace("T", " ")


def lost(row: Version) -> str:
    """Return the task that lost most, with its change."""
    if row.worst is None:
        return MISSING if row.worst_change is None else "none"
    return f"{row.worst} {score(row.worst_change, signed=True)}"


def kept_lines(history: History) -> list[str]:
    """Return a sentence per version that undo has kept."""
    return [
        f"Kept by undo: '{version.name}' ({', '.join(version.rows)}, after {version.after}; {size(version.bytes)}"
        f"{'; tags ' + ', '.join(version.tags) if version.tags else ''})."
        for version in history.kept
    ]


def graph_lines(history: History) -> list[str]:
    """Draw the rows, the newest first, with what undo has kept beside the row that it follows."""
    lines: list[str] = []
    beside: Mapping[str, list[KeptVersion]] = {
        row.row: [version for version in history.kept if version.after == row.row] for row in history.rows
    }
    for row in reversed(history.rows):
        bar = "|" if lines else " "
        for version in beside[row.row]:
            tags = f" ({', '.join(version.tags)})" if version.tags else ""
            lines += [f"{bar} * {name}" for name in reversed(version.rows)]
            lines[-len(version.rows)] += f"  kept by undo as {version.name}{tags}"
            lines.append(f"{bar}/")
        parts = [row.row, when(row.finished)]
        parts += [f"new {score(row.new)}"] if row.scores else []
        parts += [f"worst loss {lost(row)}"] if row.worst else []
        parts += [row.check] if row.check else []
        parts += [f"({', '.join(row.tags)})"] if row.tags else []
        parts += [] if row.weights else ["weights removed"]
        lines.append(f"* {'  '.join(parts)}")
    known = {row.row for row in history.rows}
    lines += [f"? {', '.join(v.rows)}  kept by undo as {v.name}" for v in history.kept if v.after not in known]
    return lines
