"""``merganser export``: the model for use without Merganser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from merganser.cli.options import ModelOption, RunArgument


def export(
    run: RunArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.", show_default=False)],
    merged: Annotated[
        bool,
        typer.Option("--merged", help="The whole model with the adapter added to its weights, instead of the adapter."),
    ] = False,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Which model, with a method that keeps several: the one for this task.",
            show_default=False,
        ),
    ] = None,
    model: ModelOption = None,
) -> None:
    """Write what was learned so that plain transformers and PEFT load it, with a card that says how.

    For instance: merganser export runs/first exported --merged
    """
    from merganser.learner import Learner

    with Learner.open(run, read_only=True, model_path=model) as learner:
        learner.export(out, merged=merged, task=task)
    typer.echo(
        f"Wrote {out} ({'the whole model' if merged else 'a PEFT adapter'}); {out / 'README.md'} shows how to load it."
    )
