"""``merganser tag``: give a row of a run a name."""

from __future__ import annotations

from typing import Annotated

import typer

from merganser.cli.options import RunArgument


def tag(
    run: RunArgument,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="Letters, digits, '.', '_' and '-'; no task has it already.", show_default=False
        ),
    ],
    row: Annotated[
        str | None,
        typer.Option(
            metavar="ROW", help="Task, tag or folder of RUN/tasks to name. Default: the last row.", show_default=False
        ),
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete the tag; the row stays.")] = False,
) -> None:
    """Name a version of the model, so that it can be asked for: `export`, `ask`, `check` and `diff` take the name.

    The weights of a row with a tag are kept, whatever runs.keep_weights is. `merganser history RUN` lists the tags.
    Undo takes the tags of the rows that it removes away with them, and names them.

    Example: merganser tag runs/first release-3

    Example: merganser export runs/first exported --row release-3
    """
    from merganser.errors import InputError
    from merganser.runs import RunDirectory
    from merganser.runs.names import delete_tag, tag_row

    if delete and row is not None:
        raise InputError("--delete and --row were both given.", "Give one of them.")
    directory = RunDirectory.open(run)
    with directory.lock:
        if delete:
            typer.echo(f"Deleted the tag '{name}' of '{delete_tag(directory, name).folder.name}'.")
        else:
            typer.echo(f"Tagged '{tag_row(directory, name, row).folder.name}' as '{name}'.")
