"""``merganser undo``: take tasks back, keep them aside, and go back to them."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from merganser.cli.options import RunArgument

if TYPE_CHECKING:
    from pathlib import Path

    from merganser.runs.undo import UndoResult


def undo(
    run: RunArgument,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="TASK|TAG|NAME",
            help="Go back to the run as it was after this task, tag or folder of RUN/tasks; or to what --keep has kept "
            "under this name.",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep what is taken back aside, under a name to go back to.")
    ] = False,
    discard: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Delete what --keep has kept under this name.", show_default=False),
    ] = None,
) -> None:
    """Remove the last learned task: weights, memory, scores and merges are as before it.

    Without --keep this cannot be reversed. With it, the tasks wait in RUN/undone and `merganser undo RUN --to NAME`
    puts them back, as they were; `merganser history RUN` lists what was kept. Tags of rows that are removed go with
    them.

    Example: merganser undo runs/first

    Example: merganser undo runs/first --to tickets --keep
    """
    from merganser.errors import InputError
    from merganser.report import write_report
    from merganser.runs import RunDirectory
    from merganser.runs.undo import discard_undone, undo_rows

    if discard is not None and (to is not None or keep):
        raise InputError("--discard goes with no other option.", "Delete first, then undo.")
    directory = RunDirectory.open(run)
    with directory.lock:
        for note in directory.tidy():
            typer.echo(note)
        if discard is not None:
            rows = discard_undone(directory, discard)
            typer.echo(f"Deleted '{discard}': {', '.join(rows)}.")
            return
        result = undo_rows(directory, to, keep=keep)
        record = directory.record()
        left = ", ".join(task.name for task in record.tasks)
        typer.echo(f"{_said(result)} {f'Learned tasks: {left}.' if left else 'No task is left.'}")
        for line in _lines(result, run):
            typer.echo(line)
        write_report(record, run / "report.html")  # last: damaged answers stop it, and what was done is said by then


def _said(result: UndoResult) -> str:
    """Return what was done to tasks, as sentences."""
    sentences = []
    if result.removed:
        sentences.append(f"Removed {_quoted(result.removed)}.")
    if result.restored:
        sentences.append(f"Put back {_quoted(result.restored)}.")
    return " ".join(sentences)


def _lines(result: UndoResult, run: Path) -> list[str]:
    """Return what is to be known of tags, and how to go back."""
    lines = []
    if result.tags:
        gone = "kept with it" if result.kept_as else "gone with it"
        lines.append(f"Tags of what was removed, {gone}: {', '.join(result.tags)}.")
    if result.tags_restored:
        lines.append(f"Its tags are back: {', '.join(result.tags_restored)}.")
    if result.kept_as:
        command = shlex.join(["merganser", "undo", str(run), "--to", result.kept_as])
        lines.append(f"Kept as '{result.kept_as}'; to go back: {command}.")
    return lines


def _quoted(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
