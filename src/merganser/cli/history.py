"""``merganser history``: the versions of a run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from merganser.cli.check import Confidence, MaxDrop, MaxDropOf, MinNew, bounds_of
from merganser.cli.options import RunArgument
from merganser.settings import CONFIDENCE, MAX_DROP

if TYPE_CHECKING:
    from merganser.report.history import History


def history(
    run: RunArgument,
    graph: Annotated[bool, typer.Option("--graph", help="Draw the rows, with what undo has kept beside them.")] = False,
    max_drop: MaxDrop = 100 * MAX_DROP,
    max_drop_of: MaxDropOf = None,
    min_new: MinNew = None,
    confidence: Confidence = 100 * CONFIDENCE,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the versions of a run: a line per row, with when it was learned and what it gained and lost.

    "new" is the score of the row's task right after it was learned, "worst loss" the earlier task that lost most
    against the row before, "check" the verdict of `merganser check` on the row (with the bounds given here). Any row
    can be asked for by its task, tag or folder: `merganser diff RUN tickets returns`, `ask --row`, `export --row`,
    `check --row`, `undo --to`.

    Example: merganser history runs/first

    Example: merganser history runs/first --graph
    """
    from merganser.errors import InputError
    from merganser.report.history import history as versions_of
    from merganser.runs import RunDirectory

    if graph and as_json:
        raise InputError("Both --graph and --json were given.", "Give one of them.")
    directory = RunDirectory.open(run)
    versions = versions_of(directory, bounds_of(max_drop, max_drop_of, min_new, confidence))
    if as_json:
        typer.echo(json.dumps(versions.as_dict(), indent=2))
        return
    if not versions.rows:
        raise InputError(f"Nothing was measured yet in '{run}'.", "Start it again with the command that made it.")
    _show(versions, graph)


def _show(versions: History, graph: bool) -> None:
    from merganser.cli.output import OutputConsole
    from merganser.report.history import HEADER, graph_lines, kept_lines, table_rows

    if graph:
        for line in graph_lines(versions):
            typer.echo(line)
        return
    from rich.table import Table

    console = OutputConsole()
    table = Table(box=None, pad_edge=False)
    for name in HEADER:
        right = name in ("new", "size", "merges")
        table.add_column(name, justify="right" if right else "left", no_wrap=right, overflow="fold")
    for row in table_rows(versions):
        table.add_row(*row)
    console.print(table)
    for line in [*kept_lines(versions), *_weights(versions)]:
        console.print(line, soft_wrap=True)


def _weights(versions: History) -> list[str]:
    """Return what is said of weights that are not kept."""
    from merganser.report.formatting import kept_rows
    from merganser.report.history import REMOVED

    if versions.keep_weights == "all":
        return []
    which = kept_rows(versions.keep_weights)
    lines = [f"Weights are kept of row 0, {which} and rows with a tag (runs.keep_weights: {versions.keep_weights})."]
    if not all(row.weights for row in versions.rows):
        lines.append(f"{REMOVED} weights removed: scores and answers are there, the model is not.")
    return lines
