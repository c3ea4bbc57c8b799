"""``merganser evaluate``: score the current model of a run."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from merganser.cli.options import ModelOption, RunArgument


def evaluate(
    run: RunArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    model: ModelOption = None,
) -> None:
    """Score the current model on the test sets of all learned and watched tasks, without changing the run.

    Example: merganser evaluate runs/first --json
    """
    from merganser.cli.live import watching
    from merganser.learner import Learner

    with (
        watching("Evaluating") as listener,
        Learner.open(run, read_only=True, listener=listener, model_path=model) as learner,
    ):
        scores = learner.evaluate()
        record = learner.record.scores
    metrics, watched = record.metrics, {task.name for task in record.watched}
    if as_json:
        typer.echo(
            json.dumps(
                {name: {"metric": metrics[name], **score.model_dump()} for name, score in scores.items()}, indent=2
            )
        )
        return
    from rich.table import Table

    from merganser.cli.output import OutputConsole
    from merganser.report.formatting import metric_title
    from merganser.report.formatting import score as percent

    table = Table(title=f"Scores of {run} in percent")
    for column in ("task", "metric"):
        table.add_column(column)
    for column in ("score", "± standard error", "test examples"):
        table.add_column(column, justify="right")
    for name, score in scores.items():
        shown = f"{name} (watched)" if name in watched else name
        table.add_row(shown, metrics[name], percent(score.value), percent(score.stderr), f"{score.n:,}")
    learned = [score.value for name, score in scores.items() if name not in watched]
    if learned:
        table.add_section()
        table.add_row(metric_title("OP"), "mean over tasks", percent(sum(learned) / len(learned)), "", "")
    OutputConsole().print(table)
