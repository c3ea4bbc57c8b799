"""``merganser undo``: remove the last task from a run."""

from __future__ import annotations

from typing import Annotated

import typer

from merganser.cli.options import RunArgument


def undo(
    run: RunArgument,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="ROW", help="Remove every task after this folder of RUN/tasks, at once.", show_default=False
        ),
    ] = None,
) -> None:
    """Remove the last learned task: weights, memory, scores and merges are as before it.

    This cannot be reversed; keep a copy of the directory if you may need the task again.

    Example: merganser undo runs/first

    Example: merganser undo runs/first --to 01-tickets
    """
    from merganser.report import write_report
    from merganser.runs import RunDirectory

    directory = RunDirectory.open(run)
    with directory.lock:
        for note in directory.tidy():
            typer.echo(note)
        removed = directory.undo_row(to)
        record = directory.record()
        write_report(record, run / "report.html")
    names = ", ".join(f"'{name}'" for name in removed)
    left = ", ".join(task.name for task in record.tasks)
    typer.echo(f"Removed {names}. {f'Learned tasks: {left}.' if left else 'No task is left.'}")
