"""``merganser ask``: inference with the model of a run."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from merganser.cli.options import ModelOption, RunArgument


def ask(
    run: RunArgument,
    text: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TEXT]...",
            help="Texts or image files to answer; without any, one text per line of standard input.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Use the prompt and labels of this task; without it all learned labels are candidates.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object per text: text, answer, score.")] = False,
    model: ModelOption = None,
) -> None:
    """Answer texts with the current model of a run (inference).

    Example: merganser ask runs/first 'Where is my parcel?' --json
    """
    from merganser.errors import InputError
    from merganser.learner import Learner

    if text:
        texts = list(text)
    else:
        if sys.stdin.isatty():
            typer.echo("Reading texts from standard input, one per line; end with Ctrl-D.", err=True)
        texts = [line.strip() for line in sys.stdin if line.strip()]
    if not texts:
        raise InputError("There is no text to answer.", "Give texts, or one per line on standard input.")
    with Learner.open(run, read_only=True, model_path=model) as learner:
        for question, answer in zip(texts, learner.predict(texts, task), strict=True):
            if as_json:
                typer.echo(
                    json.dumps(
                        {"text": question, "answer": answer.text, "score": round(answer.score, 6)}, ensure_ascii=False
                    )
                )
            else:
                typer.echo(answer.text if len(texts) == 1 else f"{answer.text}\t{question}")
