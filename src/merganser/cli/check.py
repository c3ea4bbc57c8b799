"""``merganser check``: did it learn the new task, what did it lose, and shall it be kept?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from merganser.cli.options import RunArgument
from merganser.errors import InputError
from merganser.settings import CONFIDENCE, MAX_DROP

if TYPE_CHECKING:
    from merganser.metrics.retention import Bounds
    from merganser.report.retention import Check

EXIT_CODES = {"keep": 0, "do not keep": 3, "cannot be told": 4}

MaxDrop = Annotated[
    float, typer.Option("--max-drop", metavar="POINTS", min=0, max=100, help="Points that an earlier task may lose.")
]
MaxDropOf = Annotated[
    list[str] | None,
    typer.Option(
        "--max-drop-of", metavar="TASK=POINTS", help="The same for one task; may be repeated.", show_default=False
    ),
]
MinNew = Annotated[
    float | None,
    typer.Option(
        "--min-new", metavar="PERCENT", min=0, max=100, help="Least score of the new task.", show_default=False
    ),
]
Confidence = Annotated[
    float, typer.Option(metavar="PERCENT", min=50, max=99.9, help="Of the verdict and of the intervals.")
]


def check(
    run: RunArgument,
    row: Annotated[
        str | None,
        typer.Option(
            metavar="ROW", help="Task, tag or folder of RUN/tasks to judge; default: the last.", show_default=False
        ),
    ] = None,
    against: Annotated[
        str,
        typer.Option(metavar="previous|best|RUN", help="The row before, each task's best row, or another run."),
    ] = "previous",
    max_drop: MaxDrop = 100 * MAX_DROP,
    max_drop_of: MaxDropOf = None,
    min_new: MinNew = None,
    confidence: Confidence = 100 * CONFIDENCE,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown, for a pull request.")] = False,
) -> None:
    """Compare the last row with the one before, answer by answer, and say whether to keep it.

    The same test examples were answered before and after, so their changes are compared in pairs (McNemar's test for
    right and wrong answers). "Do not keep" and "keep" are each wrong in at most 5 % of the cases; what the test sets
    are too small for "cannot be told".

    Exit code 0: keep. 3: do not keep. 4: cannot be told, with the number of test examples that would tell. 2 and 1: an
    error, as everywhere.

    Example: merganser check runs/first --max-drop 2 --max-drop-of safety=0 --min-new 80
    """
    from merganser.report.retention import check_row, markdown
    from merganser.runs import RunDirectory

    if as_json and as_markdown:
        raise InputError("Both --json and --markdown were given.", "Give one of them.")
    directory = RunDirectory.open(run)
    other = None
    if against not in ("previous", "best"):
        if not RunDirectory.exists(Path(against)):
            raise InputError(f"'{against}' is no run to compare with.", "Give previous, best or the folder of a run.")
        other = RunDirectory.open(Path(against))
    result = check_row(
        directory,
        row=row,
        against="best" if against == "best" else "previous",
        other=other,
        bounds=bounds_of(max_drop, max_drop_of, min_new, confidence),
    )
    if as_json:
        typer.echo(json.dumps(result.as_dict(), indent=2))
    elif as_markdown:
        typer.echo(markdown(result), nl=False)
    else:
        print_check(result)
    if code := EXIT_CODES[result.verdict.value]:
        raise typer.Exit(code)


def bounds_of(max_drop: float, max_drop_of: list[str] | None, min_new: float | None, confidence: float) -> Bounds:
    """Convert points and percent of the command line to fractions."""
    from merganser.metrics.retention import Bounds

    least = None if min_new is None else min_new / 100
    return Bounds(max_drop / 100, _drops(max_drop_of or []) or None, least, confidence / 100)


def _drops(values: Sequence[str]) -> Mapping[str, float]:
    """Parse ``TASK=POINTS`` to fractions.

    Raises:
        InputError: one is not of this form, or out of range.
    """
    drops = {}
    for value in values:
        name, equals, number = value.rpartition("=")
        try:
            points = float(number)
        except ValueError:
            points = -1.0
        if not equals or not name or not 0 <= points <= 100:
            raise InputError(
                f"'{value}' does not say what a task may lose.", "Write TASK=POINTS, such as --max-drop-of safety=0."
            )
        drops[name] = points / 100
    return drops


def print_check(check: Check) -> None:
    """Print the verdict and a table with one row per task."""
    from rich.table import Table

    from merganser.cli.output import OutputConsole
    from merganser.report.retention import COLUMNS, HEADER, legend, table_rows

    console = OutputConsole()
    console.print(check.sentence(), soft_wrap=True)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in HEADER:
        wide = name in ("task", "verdict", "interval")
        table.add_column(name, justify="left" if name in ("task", "verdict") else "right", no_wrap=not wide)
    for row in table_rows(check):
        table.add_row(*row)
    console.print(table)
    confidence = f"{100 * check.bounds.confidence:g} %"
    console.print(
        f"{check.row} against {check.against}; percent; {confidence} intervals; p corrected for the number of tasks; "
        f"{COLUMNS}{legend(check)}.",
        soft_wrap=True,
    )
