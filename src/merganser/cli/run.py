"""``merganser run``: learn a stream of tasks."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from merganser import processes
from merganser.cli.options import JsonOption, VerboseOption

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from merganser.config import RunConfig
    from merganser.streams.task import Task
    from merganser.streams.watch import WatchedTask


def run(
    stream: Annotated[
        Path,
        typer.Argument(metavar="STREAM.yaml", help="Model, method and tasks.", show_default=False),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Directory of the run: a new one, or one to resume. Required, but for a plan.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="Use this method with its defaults instead of the file's.", show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Use this seed instead of the file's.", show_default=False)] = None,
    fwt: Annotated[
        bool,
        typer.Option(
            "--fwt",
            help="Also train a fresh model per task, for AimMerging's forward transfer (FWT). Cached.",
        ),
    ] = False,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Write nothing: show tasks, rows, tokens, steps, memory, and an estimate of the time from ten steps.",
        ),
    ] = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Learn the tasks of a stream one after another and print the scores: overall performance and forgetting.

    Interrupted at any moment, the same command resumes from the last checkpoint.

    Example: merganser run examples/matcher.yaml --out runs/first
    """
    from merganser.errors import InputError

    if out is None and not plan:
        raise InputError("There is no directory for the run.", "Name one: --out RUN.")
    changes = {key: value for key, value in {"method": method, "seed": seed}.items() if value is not None}
    config, tasks, watch = processes.run_collectively(lambda: _read(stream, changes))
    if plan or out is None:
        from merganser.cli.plan import plan_tasks

        plan_tasks(config, tasks, out, as_json=as_json, fwt=fwt, watch=watch)
        return
    from merganser.cli.live import Output, learn_stream

    options = [part for key, value in changes.items() for part in (f"--{key}", str(value))]
    command = shlex.join(["merganser", "run", str(stream), "--out", str(out), *options]) + (" --fwt" if fwt else "")
    output: Output = "json" if as_json else "verbose" if verbose else "screen"
    learn_stream(out, config, tasks, command=command, fwt=fwt, output=output, watch=watch)


def _read(stream: Path, changes: Mapping[str, Any]) -> tuple[RunConfig, Sequence[Task], Sequence[WatchedTask]]:
    from merganser.config import check_config, load_config
    from merganser.errors import InputError
    from merganser.streams.loading import load_stream
    from merganser.streams.watch import load_watched

    config = load_config(stream)
    if config.stream is None:
        raise InputError(f"{stream}: there is no 'stream' section.", "Name the tasks to learn; see examples/.")
    tasks = load_stream(config.stream, stream.resolve().parent).tasks
    watch = load_watched(config.stream, stream.resolve().parent)
    if changes:
        config = check_config({**config.model_dump(mode="json"), **changes}, "--method/--seed")
    return config, tasks, watch
