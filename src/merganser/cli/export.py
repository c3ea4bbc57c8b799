"""``merganser export``: write the model for use without Merganser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from merganser.cli.options import ModelOption, RunArgument


def export(
    run: RunArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to create.", show_default=False)],
    merged: Annotated[
        bool,
        typer.Option("--merged", help="Write the whole model, the adapter merged into its weights."),
    ] = False,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Export the model of this task, with a method that keeps one model per task.",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="Number format of the weights: float32, float16 or bfloat16. Default: that of the pretrained model; "
            "for an adapter float32.",
            show_default=False,
        ),
    ] = None,
    model: ModelOption = None,
) -> None:
    """Export the model to a folder that transformers and PEFT load, with a model card.

    Example: merganser export runs/first exported --merged
    """
    from merganser.learner import Learner

    with Learner.open(run, read_only=True, model_path=model) as learner:
        learner.export(out, merged=merged, task=task, dtype=dtype)
    typer.echo(
        f"Wrote {out} ({'the whole model' if merged else 'a PEFT adapter'}); {out / 'README.md'} shows how to load it."
    )
