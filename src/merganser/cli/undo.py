"""``merganser undo``: take back the last task."""

from __future__ import annotations

import typer

from merganser.cli.options import RunArgument


def undo(run: RunArgument) -> None:
    """Take back the last task that was learned: weights, memory, scores and merges are as before it.

    For good: keep a copy of the directory if you may want the task back.
    """
    from merganser.report import write_report
    from merganser.runs import RunDirectory

    directory = RunDirectory.open(run)
    with directory.lock:
        for note in directory.repair():
            typer.echo(note)
        row = directory.undo_row()
        record = directory.record()
        write_report(record, run / "report.html")
    names = ", ".join(f"'{task.name}'" for task in row.tasks)
    left = ", ".join(task.name for task in record.tasks)
    typer.echo(f"Took back {names}. {f'The run knows {left}.' if left else 'The run has learned nothing.'}")
