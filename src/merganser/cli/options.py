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

BaseModelOption = Annotated[
    str | None,
    typer.Option(
        "--base-model",
        metavar="OWNER/NAME[@REVISION]",
        help="The pretrained model on the hub, if the run read it from elsewhere; an adapter names it.",
        show_default=False,
    ),
]

RowOption = Annotated[
    str | None,
    typer.Option(
        "--row",
        metavar="TASK|TAG",
        help="The model as it was after this task, or as a tag names it; or a folder of RUN/tasks. Default: as it is.",
        show_default=False,
    ),
]

JsonOption = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print the result as one JSON document (of --plan: the plan); all else goes to standard error.",
    ),
]

VerboseOption = Annotated[
    bool,
    typer.Option("--verbose", help="Also show every merge, all metrics, the score matrix and what the run stores."),
]
