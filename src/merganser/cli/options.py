"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Directory of the run.", show_default=False)]

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="FOLDER",
        help="Folder of the run's pretrained model, if it has moved or the machine is another.",
        show_default=False,
    ),
]


def check_json(plan: bool, as_json: bool) -> None:
    """Refuse ``--json`` without ``--plan``.

    Raises:
        InputError: it was given alone.
    """
    if as_json and not plan:
        from merganser.errors import InputError

        raise InputError("--json goes with --plan.", "Leave it out: scores.json in the run has all numbers.")
