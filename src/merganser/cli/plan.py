"""``--plan`` of ``merganser run`` and ``learn``: what would be done, and nothing written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from merganser.config import RunConfig
    from merganser.learner.plan import Plan
    from merganser.streams.task import Task
    from merganser.streams.watch import WatchedTask

PARTS = {
    "weights": "weights of the model",
    "gradients": "gradients of the trained weights",
    "moments": "state of the optimizer",
    "snapshots": "copies that the method holds",
    "activations": "activations of the longest batch",
}
"""Part of the memory -> what it is."""


def plan_tasks(
    config: RunConfig | None,
    tasks: Sequence[Task],
    out: Path | None,
    *,
    as_json: bool,
    fwt: bool = False,
    added: bool = False,
    watch: Sequence[WatchedTask] = (),
) -> None:
    """Print a plan; as :meth:`merganser.Learner.plan`."""
    from merganser.cli.live import watching
    from merganser.learner import Learner

    with watching("Planning: ten steps and a few answers") as listener:
        plan = Learner.plan(config, tasks, run=out, fwt=fwt, added=added, listener=listener, watch=watch)
    if as_json:
        typer.echo(json.dumps(plan.as_json(), indent=2))
    else:
        _show(plan)


def _show(plan: Plan) -> None:
    from merganser.cli.output import OutputConsole
    from merganser.report.formatting import plural, seconds

    console = OutputConsole()
    if plan.learned:
        console.print(f"Learned already: {', '.join(plan.learned)}")
    console.print(_tasks(plan))
    console.print(_memory(plan))
    steps = sum(task.steps for task in plan.tasks)
    per_step = f"measured on {plan.measured_on}: {seconds(plan.step_seconds)} per step, merges aside"
    references = f", single-task references {seconds(plan.references_seconds)}" if plan.references_seconds else ""
    console.print(f"Estimate: {seconds(plan.seconds)} for {plural(steps, 'step')} ({per_step}{references}).")
    console.print(kept_line(plan))
    for remark in plan.remarks:
        console.print(remark)
    console.print("Nothing was written.")


def kept_line(plan: Plan) -> str:
    """Return what the run will keep of each row's weights."""
    from merganser.report.formatting import kept_rows, size

    per_row = f"about {size(plan.row_bytes)} each, without what the method keeps besides"
    if plan.keep_weights == "all":
        return f"Weights on disk: of every row, {per_row} (runs.keep_weights: all)."
    remedy = "a tag (`merganser tag`) keeps those of a row; undo and export reach rows with weights only"
    which = kept_rows(plan.keep_weights)
    return f"Weights on disk: of row 0 and {which}, {per_row} (runs.keep_weights: {plan.keep_weights}); {remedy}."


def _tasks(plan: Plan) -> Table:
    from rich.table import Table

    from merganser.report.formatting import seconds

    table = Table(title=f"{plan.method}: {len(plan.tasks)} tasks to learn", pad_edge=False)
    table.add_column("task", overflow="fold")
    for column in ("rows", "in memory", "tokens", "steps", "training", "answers", "answering"):
        table.add_column(column, justify="right")
    for task in plan.tasks:
        counts = (task.rows, task.memory, task.tokens_trained, task.steps)
        rows, memory, tokens, steps = ("" if count is None else f"{count:,}" for count in counts)
        training, answering = seconds(task.training_seconds), seconds(task.evaluating_seconds)
        table.add_row(task.name, rows, memory, tokens, steps, training, f"{task.answers:,}", answering)
    return table


def _memory(plan: Plan) -> Table:
    from rich.table import Table

    from merganser.report.formatting import size

    table = Table(title=f"Memory on the device ({plan.memory.device})", pad_edge=False)
    table.add_column("part")
    table.add_column("size", justify="right")
    for name, title in PARTS.items():
        table.add_row(title, size(getattr(plan.memory, name)))
    if plan.memory.peak is not None:
        table.add_row("most that was allocated in the measured steps", size(plan.memory.peak))
    table.add_section()
    table.add_row(f"about, with {plan.trainable:,} trained weights", size(plan.memory.total))
    return table
