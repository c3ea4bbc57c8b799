"""``merganser run``: learn a whole stream of tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def run(
    stream: Annotated[Path, typer.Argument(metavar="STREAM.yaml", help="Model, method and tasks.", show_default=False)],
    out: Annotated[
        Path, typer.Option(metavar="RUN", help="Directory of the run; new, or one to continue.", show_default=False)
    ],
    method: Annotated[
        str | None, typer.Option(help="Another method than the file says, with its defaults.", show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Another seed than the file says.", show_default=False)] = None,
    fwt: Annotated[
        bool,
        typer.Option(
            "--fwt", help="Also train one fresh model per task: AimMerging's forward transfer. Costly; cached."
        ),
    ] = False,
) -> None:
    """Learn the tasks of a stream one after another, and show what was remembered.

    Interrupted at any moment and started again with the same command, it goes on from its last checkpoint.

    For instance: merganser run examples/matcher.yaml --out runs/first
    """
    from merganser.cli.live import learn_stream
    from merganser.config import check_config, load_config
    from merganser.errors import InputError
    from merganser.streams.loading import load_stream

    config = load_config(stream)
    if config.stream is None:
        raise InputError(f"{stream}: there is no 'stream' section.", "Name the tasks to learn; see examples/.")
    tasks = load_stream(config.stream, stream.resolve().parent).tasks
    changes = {"method": method, "seed": seed}
    if any(value is not None for value in changes.values()):
        given = {key: value for key, value in changes.items() if value is not None}
        config = check_config({**config.model_dump(mode="json"), **given}, "--method/--seed")
    command = f"merganser run {stream} --out {out}"
    command += "".join(f" --{key} {value}" for key, value in changes.items() if value is not None) + (
        " --fwt" if fwt else ""
    )
    learn_stream(out, config, tasks, command=command, fwt=fwt)
