"""``merganser export``: write the model for use without Merganser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from merganser.cli.options import BaseModelOption, ModelOption, RowOption, RunArgument
from merganser.errors import InputError
from merganser.events import Event, Notice
from merganser.models.gguf_export import LLAMA_CPP, TYPES, GgufOptions


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
    row: RowOption = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="Number format of the weights: float32, float16 or bfloat16. Default: that of the pretrained model; "
            "for an adapter float32.",
            show_default=False,
        ),
    ] = None,
    base_model: BaseModelOption = None,
    gguf: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help=f"Write a GGUF file, too, with llama.cpp's converter: {', '.join(TYPES)}.",
            show_default=False,
        ),
    ] = None,
    llama_cpp: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help=f"Folder of llama.cpp. Default: ${LLAMA_CPP}, then PATH.", show_default=False
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier export once the new one is complete.")
    ] = False,
    model: ModelOption = None,
) -> None:
    """Export the model to a folder that transformers and PEFT load, with a model card.

    A text encoder is loaded by sentence-transformers, too; a decoder has a Modelfile for Ollama.

    Example: merganser export runs/first exported --merged

    Example: merganser export runs/first exported --row tickets
    """
    from merganser.learner import Learner

    if llama_cpp is not None and gguf is None:
        raise InputError("--llama-cpp is given without --gguf.", "Add --gguf TYPE, for instance --gguf q8_0.")
    converted = None if gguf is None else GgufOptions(gguf, llama_cpp)
    told: list[str] = []

    def listener(event: Event) -> None:
        if isinstance(event, Notice):
            told.append(event.text)

    with Learner.open(run, read_only=True, model_path=model, listener=listener, row=row) as learner:
        learner.export(
            out, merged=merged, task=task, dtype=dtype, base_model=base_model, gguf=converted, overwrite=overwrite
        )
    typer.echo(
        f"Wrote {out} ({'the whole model' if merged else 'a PEFT adapter'}); {out / 'README.md'} shows how to load it."
    )
    for text in told:
        typer.echo(text)
