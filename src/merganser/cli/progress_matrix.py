"""The scores so far, while a run works: each with its change since its task was learned, in the width there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text

from merganser.metrics.course import since_learned
from merganser.report.formatting import row_label, score, shortened

NOT_SCORED = "not scored (no test file)"

Row = tuple[Sequence[str], Mapping[str, float]]
"""Tasks learned since the row before, and a score in [0, 1] of every evaluated task."""

NAME, LABEL, CELL, LOST = 14, 24, len("100.0 −16.7"), len("lost")
"""Widths: of a task's name over its column, of a row's label, of a score with its change, of the count of losses."""


def delta_table(rows: Sequence[Row], width: int, most_rows: int) -> Table:
    """Tabulate the last rows with the columns that fit: the task learned last and those that lost most first.

    Args:
        rows: all rows so far.
        width: characters in a line.
        most_rows: rows to show.
    """
    changes = since_learned(rows)
    names = list(dict.fromkeys(task for learned, scores in rows for task in (*scores, *learned)))
    shown = list(zip(range(len(rows)), rows, changes, strict=True))[-most_rows:]
    labels = [Text(_label(number, row)) for number, row, _ in shown]
    widths = {name: max(CELL, len(shortened(name, NAME))) + 1 for name in names}
    room = width - max([len(label) for label in labels], default=0) - LOST - 2
    columns = _fitting(names, rows, changes, widths, room)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="")
    table.add_column("percent", no_wrap=True)
    for column in columns:
        table.add_column(shortened(column, NAME), justify="right", no_wrap=True)
    hidden = len(names) - len(columns)
    table.add_column("lost", justify="right", no_wrap=True)
    for label, (_, (learned, scores), moved) in zip(labels, shown, strict=True):
        cells = [_cell(scores.get(name), moved.get(name), name in learned) for name in columns]
        table.add_row(label, *cells, _count(moved))
    if hidden:
        table.caption = f"and {hidden} more {'column' if hidden == 1 else 'columns'}"
        table.caption_justify = "left"
    return table


def _label(number: int, row: Row) -> str:
    return shortened(row_label(row[0], first=number == 0), LABEL)


def _fitting(
    names: Sequence[str],
    rows: Sequence[Row],
    changes: Sequence[Mapping[str, float]],
    widths: Mapping[str, int],
    room: int,
) -> list[str]:
    """Return the columns to show, in their order."""
    last = rows[-1][0] if rows else ()
    moved = changes[-1] if changes else {}
    chosen: set[str] = set()
    for name in sorted(names, key=lambda name: (name not in last, name not in moved, moved.get(name, 0.0))):
        if room >= widths[name]:
            chosen.add(name)
            room -= widths[name]
    return [name for name in names if name in chosen]


def _cell(value: float | None, change: float | None, is_learned: bool) -> Text:
    text = Text(score(value), "bold underline" if is_learned else "" if change is not None else "dim")
    if change is not None:
        text.append(f" {score(change, signed=True):>5}", "red" if _is_loss(change) else "dim")
    else:
        text.append(" " * 6)
    return text


def _is_loss(change: float) -> bool:
    return score(change).startswith("−")  # not what rounds to zero


def _count(moved: Mapping[str, float]) -> str:
    if not moved:
        return ""
    lost = sum(_is_loss(change) for change in moved.values())
    return f"{lost}/{len(moved)}" if lost else "none"


def row_line(rows: Sequence[Row], width: int = 80) -> str:
    """Return the last row as a line: what was learned, what lost most, and how many others do not fit."""
    learned, scores = rows[-1]
    moved = since_learned(rows)[-1]
    label = row_label(learned, first=len(rows) == 1)
    label = label[0].upper() + label[1:]
    if not scores:
        return f"{label}: {NOT_SCORED}"
    order = sorted(scores, key=lambda task: (task not in learned, moved.get(task, 0.0)))
    parts = [_entry(task, scores[task], moved.get(task)) for task in order]
    parts += [f"{task} {NOT_SCORED}" for task in learned if task not in scores]
    line = f"{label} (percent): {parts[0]}"
    for number, part in enumerate(parts[1:], 1):
        rest = f", and {len(parts) - number} more"
        after = "" if number == len(parts) - 1 else f", and {len(parts) - number - 1} more"
        if number > 1 and len(f"{line}, {part}{after}") > width:
            return line + rest
        line += f", {part}"
    return line


def _entry(task: str, value: float, change: float | None) -> str:
    text = f"{task} {score(value)}"
    if change is None:
        return text
    return f"{text} {score(change, signed=True)}" + (" lost" if _is_loss(change) else "")
