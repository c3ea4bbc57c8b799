"""Numbers and tables as people read them: in percent, as HTML for notebooks, as frames of pandas."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from merganser.errors import InputError

if TYPE_CHECKING:
    from pandas import DataFrame

MISSING = "–"
"""Shown where nothing was measured."""


def finite(value: float | None) -> float | None:
    """Return ``value``, or ``None`` where it is missing, infinite or not a number (JSON has no such numbers)."""
    return value if value is not None and math.isfinite(value) else None


def score(value: float | None, signed: bool = False) -> str:
    """Format a score in [0, 1], or a difference of scores, in percent with one decimal and a true minus sign."""
    known = finite(value)
    if known is None:
        return MISSING
    known = round(100 * known, 1) + 0.0  # no "-0.0"
    return f"{known:{'+' if signed and known else ''}.1f}".replace("-", "−")


def interval(low: float, high: float) -> str:
    """Format an interval of a difference of scores in points: ``−30.1 to −8.2``."""
    return f"{score(low, signed=True)} to {score(high, signed=True)}"


def row_label(learned: Sequence[str], first: bool = False) -> str:
    """Name a row of the score matrix by the tasks learned since the row before; ``first``: no task was learned yet."""
    if len(learned) == 1:
        return f"after {learned[0]}"
    if learned:
        return f"after {len(learned)} tasks together"
    return "before training" if first else "again"


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]], title: str = "", note: str = "") -> str:
    """Return a table as HTML that scrolls sideways where it is too wide; every text is escaped.

    Args:
        head: of the columns; the first one names the rows.
        rows: cells as text.
        title, note: a sentence above the table, and one below.
    """

    def line(cells: Sequence[str], cell: str) -> str:
        first, *others = [escape(text) for text in cells]
        scope = "col" if cell == "th" else "row"
        numbers = "".join(f'<{cell} style="text-align:right">{text}</{cell}>' for text in others)
        return f'<tr><th scope="{scope}" style="text-align:left">{first}</th>{numbers}</tr>'

    body = "".join(line(row, "td") for row in rows)
    table = f"<table><thead>{line(head, 'th')}</thead><tbody>{body}</tbody></table>"
    above = f"<p>{escape(title)}</p>" if title else ""
    below = f"<p><small>{escape(note)}</small></p>" if note else ""
    return f'{above}<div style="overflow-x:auto">{table}</div>{below}'


def frame(columns: Mapping[str, Any], index: Sequence[Any] | None = None, name: str | None = None) -> DataFrame:
    """Return a frame of pandas.

    Args:
        columns: name -> values.
        index, name: of the rows; default: their numbers.

    Raises:
        InputError: pandas is not installed.
    """
    try:
        pandas = importlib.import_module("pandas")
    except ImportError as error:
        raise InputError("pandas is not installed.", "Run `pip install 'merganser[notebook]'`.") from error
    return pandas.DataFrame(dict(columns), index=None if index is None else pandas.Index(list(index), name=name))
