"""``merganser undo``: remove the last task from a run."""

from __future__ import annotations

import typer

from merganser.cli.options import RunArgument


def undo(run: RunArgument) -> None:
    """Remove the last learned task: weights, memory, scores and merges are as before it.

    This cannot be reversed; keep a copy of the directory if you may need the task again.

    Example: merganser undo runs/first
    """
    from merganser.report import write_report
    from merganser.runs import RunDirectory

    directory = RunDirectory.open(run)
    with directory.lock:
        for note in directory.tidy():
            typer.echo(note)
        removed = directory.undo_row()
        record = directory.record()
        write_report(record, run / "report.html")
    names = ", ".join(f"'{name}'" for name in removed)
    left = ", ".join(task.name for task in record.tasks)
    typer.echo(f"Removed {names}. {f'Learned tasks: {left}.' if left else 'No task is left.'}")
