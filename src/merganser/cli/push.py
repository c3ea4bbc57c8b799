"""``merganser push``: put the model of a run on the hub, one revision per task."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from merganser.cli.options import BaseModelOption, ModelOption, RunArgument


def push(
    run: RunArgument,
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Repository: OWNER/NAME.", show_default=False)],
    private: Annotated[
        bool, typer.Option("--private", help="Create a private repository; one that is public is refused.")
    ] = False,
    revision: Annotated[
        str | None,
        typer.Option(
            metavar="TASK|TAG",
            help="Push only the model as it was after this task, or as a tag names it. Default: after each task that "
            "the hub has not.",
            show_default=False,
        ),
    ] = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="Push whole models, the adapter merged into the weights.")
    ] = False,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace",
            help="Where the hub has tasks that the run has otherwise or no more (after an undo): set main and these "
            "revisions to what the run has. The commits stay in the repository's history.",
        ),
    ] = False,
    base_model: BaseModelOption = None,
    message: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Message of the commits. Default: Learn TASK.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be pushed.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
    model: ModelOption = None,
) -> None:
    """Push a run to the Hugging Face hub: an export with its card after each task, as one commit and a tag of its name.

    Pushing again pushes what is new. The run's tags (`merganser tag`) become tags on the hub, too. Log in first:
    `hf auth login`, or HF_TOKEN.

    Example: merganser push runs/support acme/support --private

    Example: merganser ask acme/support@returns 'Where is my parcel?'
    """
    from huggingface_hub.utils import disable_progress_bars

    from merganser.learner.push import PushOptions, push

    if as_json or not sys.stderr.isatty():
        disable_progress_bars()
    options = PushOptions(
        revision=revision,
        private=private,
        merged=merged,
        replace=replace,
        base_model=base_model,
        message=message,
        model_path=model,
        dry_run=dry_run,
    )
    result = push(run, repo, options, lambda text: typer.echo(text, err=True))
    if as_json:
        typer.echo(json.dumps(asdict(result), indent=2))
        return
    for note in result.notes:
        typer.echo(note)
    if result.already:
        typer.echo(f"On the hub already: {', '.join(result.already)}.")
    if dry_run:
        new = ", ".join(result.pushed) or "nothing"
        create = f"{repo} would be created{', private' if private else ''}. " if result.created else ""
        typer.echo(f"{create}To push: {new}.")
    elif result.pushed:
        typer.echo(f"{result.url} has {', '.join(result.pushed)}; `merganser ask {repo} TEXT` answers with it.")
    else:
        typer.echo(f"Nothing is new: {result.url} has every task.")
