"""``merganser ask``: inference with the model of a run."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from merganser.cli.options import ModelOption, RunArgument
from merganser.events import Event, Notice

if TYPE_CHECKING:
    from merganser.models.base import Answer


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
            help="Use the prompt and labels of this task; without it all learned labels are candidates, and where "
            "the tasks' prompts differ, the most likely task answers.",
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

    def show(event: Event) -> None:
        if isinstance(event, Notice):
            typer.echo(event.text, err=True)

    with Learner.open(run, read_only=True, model_path=model, listener=show) as learner:
        answers = learner.predict(texts, task)
        learned = learner.learned
    for question, answer in zip(texts, answers, strict=True):
        if as_json:
            values = {"text": question, "answer": answer.text, "score": round(answer.score, 6)}
            if answer.task:
                values["task"] = answer.task
            typer.echo(json.dumps(values, ensure_ascii=False))
        elif len(texts) == 1:
            typer.echo(answer.text)
        else:
            typer.echo("\t".join([answer.text, question, *([answer.task] if answer.task else [])]))
    if answers[0].task:
        typer.echo(_chosen(answers, learned), err=True)


def _chosen(answers: Sequence[Answer], learned: Sequence[str]) -> str:
    """Say which task was chosen, where each task has a prompt, a kind of answer or a model of its own."""
    names = ", ".join(learned)
    if len(answers) == 1:
        return f"Answered as a text of task '{answers[0].task}', the most likely of {names}; --task names another."
    return f"Each answer is that of the most likely task of {names}, named with it; --task names one for all texts."
