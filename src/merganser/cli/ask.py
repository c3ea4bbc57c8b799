"""``merganser ask``: inference with the model of a run."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from merganser.cli.options import ModelOption, RowOption
from merganser.events import Event, Notice

if TYPE_CHECKING:
    from merganser.learner import Learner
    from merganser.learner.exported import ExportedModel
    from merganser.models.base import Answer


def ask(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="Directory of the run, folder of an export, or hub id of one (OWNER/NAME, OWNER/NAME@TASK).",
            show_default=False,
        ),
    ],
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
    row: RowOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object per text: text, answer, score.")] = False,
    model: ModelOption = None,
) -> None:
    """Answer texts with the current model of a run, or with an exported model (inference).

    Example: merganser ask runs/first 'Where is my parcel?' --json

    Example: merganser ask OWNER/NAME@TASK 'Where is my parcel?'
    """
    from merganser.errors import InputError

    if text:
        texts = list(text)
    else:
        if sys.stdin.isatty():
            typer.echo("Reading texts from standard input, one per line; end with Ctrl-D.", err=True)
        raw = getattr(sys.stdin, "buffer", None)  # as bytes: the locale may name another encoding than the text's
        texts = _lines(raw.read() if raw is not None else sys.stdin.read().encode("utf-8", "surrogatepass"))
    if not texts:
        raise InputError("There is no text to answer.", "Give texts, or one per line on standard input.")

    learner = _open(run, model, row)
    answers, learned = learner.predict(texts, task), learner.learned
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


def _open(name: str, model: str | None, row: str | None) -> Learner | ExportedModel:
    """Open a run or an exported model for inference."""
    from merganser.errors import InputError
    from merganser.learner import Learner
    from merganser.learner.exported import ExportedModel, is_export
    from merganser.runs import RunDirectory

    def show(event: Event) -> None:
        if isinstance(event, Notice):
            typer.echo(event.text, err=True)

    path = Path(name)
    is_run = RunDirectory.exists(path) or not (is_export(path) or _may_be_on_hub(name))
    if row is not None and not is_run:
        raise InputError(f"'{name}' is an export, which has one row.", "Leave --row out; on the hub, OWNER/NAME@TASK.")
    if is_export(path):
        return ExportedModel.open(name, model_path=model, listener=show)
    if is_run:
        return Learner.open(path, read_only=True, model_path=model, listener=show, row=row)
    try:
        return ExportedModel.open(name, model_path=model, listener=show)
    except InputError as error:
        raise InputError(f"There is no run in '{name}'. {error.cause}", error.remedy) from error


def _may_be_on_hub(name: str) -> bool:
    """Return whether a name can be that of a repository of the hub: OWNER/NAME, and there is no folder OWNER here."""
    owner, slash, rest = name.partition("@")[0].partition("/")
    return bool(slash and owner and rest) and "/" not in rest and owner != "~" and not Path(owner).exists()


def _chosen(answers: Sequence[Answer], learned: Sequence[str]) -> str:
    """Say which task was chosen, where each task has a prompt, a kind of answer or a model of its own."""
    names = ", ".join(learned)
    if len(answers) == 1:
        return f"Answered as a text of task '{answers[0].task}', the most likely of {names}; --task names another."
    return f"Each answer is that of the most likely task of {names}, named with it; --task names one for all texts."


def _lines(data: bytes) -> list[str]:
    """Return the lines of standard input that hold a text.

    Raises:
        InputError: bytes that are neither UTF-8 nor UTF-16 with a byte-order mark.
    """
    from merganser.errors import InputError
    from merganser.streams.decoding import decode_text, likely_encoding, unicode_problem

    lines = decode_text(data, "Standard input").split("\n")
    for number, line in enumerate(lines, start=1):
        if problem := unicode_problem(line):
            remedy = f"Convert it to UTF-8 with `iconv -f {likely_encoding(data)} -t UTF-8`."
            raise InputError(f"Standard input, line {number}: {problem}.", remedy)
    return [line.strip() for line in lines if line.strip()]
