"""``merganser diff``: what is different between two rows of a run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from merganser.cli.options import RunArgument
from merganser.settings import CONFIDENCE

if TYPE_CHECKING:
    from rich.console import Console

    from merganser.report.difference import Difference

EXAMPLES = 3
"""Examples per task that are printed by default."""

BLOCKS = 12
"""Blocks that are printed."""

RowName = Annotated[str, typer.Argument(metavar="ROW", help="Task, tag or folder of RUN/tasks.", show_default=False)]


def diff(
    run: RunArgument,
    before: RowName,
    after: RowName,
    examples: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help=f"Answers that changed, per task. Default: {EXAMPLES}; with --json all.",
            show_default=False,
        ),
    ] = None,
    confidence: Annotated[float, typer.Option(metavar="PERCENT", min=50, max=99.9, help="Of the intervals.")] = (
        100 * CONFIDENCE
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare two rows of a run: scores per task, answers that changed, and how far the weights are apart.

    Scores are compared over the same test examples (as `merganser check` does), and answers that became wrong or right
    are shown. The distance of the weights is the L2 norm of their difference, in percent of the norm before, as a whole
    and per block; an adapter's factors are compared by the updates B A that they are.

    Example: merganser diff runs/first tickets returns

    Example: merganser diff runs/first 00-start release-3 --examples 10
    """
    from merganser.report.difference import difference
    from merganser.runs import RunDirectory

    changes = difference(RunDirectory.open(run), before, after, confidence / 100)
    if as_json:
        typer.echo(json.dumps(changes.as_dict(examples), indent=2, ensure_ascii=False))
        return
    from merganser.cli.output import OutputConsole

    console = OutputConsole()
    _show_scores(console, changes, confidence)
    _show_flips(console, changes, EXAMPLES if examples is None else examples)
    _show_weights(console, changes)


def _show_scores(console: Console, changes: Difference, confidence: float) -> None:
    from rich.table import Table

    from merganser.report.formatting import p_value, score
    from merganser.tables import interval

    table = Table(box=None, pad_edge=False)
    for name in ("task", "before", "now", "change", "interval", "p", "wrong/right"):
        table.add_column(name, justify="left" if name == "task" else "right", overflow="fold")
    for task in changes.tasks:
        cells = [task.task, score(task.before), score(task.after), score(task.change, signed=True)]
        if (paired := task.paired) is not None:
            cells += [interval(paired.low, paired.high), p_value(task.p), f"{paired.lost}/{paired.gained}"]
        table.add_row(*cells)
    console.print(table)
    text = (
        f"{changes.after} against {changes.before}; percent; {confidence:g} % intervals; p corrected for the number of "
    )
    console.print(f"{text}tasks; wrong/right: answers that became wrong, and right.", soft_wrap=True)


def _show_flips(console: Console, changes: Difference, most: int) -> None:
    from rich.text import Text

    from merganser.report.changed_answers import said
    from merganser.report.difference import chosen_flips
    from merganser.report.formatting import shortened

    for task in changes.tasks:
        flips = chosen_flips(task, most)
        if not flips:
            continue
        console.print(Text(f"\n{task.task}: {len(flips)} of {len(task.flips)} answers that changed", style="bold"))
        for flip in flips:
            became = "worse" if flip.change < 0 else "better"
            quoted = repr if flip.before is not None else str
            answers = " became ".join(quoted(_line(text)) for text in said(flip))
            expected = f", expected {_line(flip.expected)!r}" if flip.expected else ""
            console.print(Text(f"  {became}: {answers}{expected}"), soft_wrap=True)
            if flip.text:
                console.print(Text(f"    {flip.number}: {shortened(' '.join(flip.text.split()), 100)}"), soft_wrap=True)


def _line(text: str) -> str:
    """Return the beginning of an answer on one line."""
    from merganser.report.formatting import shortened

    return shortened(" ".join(text.split()), 60)


def _show_weights(console: Console, changes: Difference) -> None:
    from rich.table import Table

    from merganser.report.formatting import percent, significant

    if changes.removed:
        rows = " and ".join(f"'{row}'" for row in changes.removed)
        console.print(f"\nThe weights of {rows} were removed to save space, so they are not compared.", soft_wrap=True)
        return
    everything, *blocks = changes.weights
    shown = sorted(blocks, key=lambda block: -block.distance)[:BLOCKS] if len(blocks) > BLOCKS else blocks
    table = Table(box=None, pad_edge=False)
    for name in ("weights", "distance", "of the norm before"):
        table.add_column(name, justify="left" if name == "weights" else "right", overflow="fold")
    for block in (everything, *shown):
        relative = "new" if block.relative is None and block.distance else percent(block.relative)
        table.add_row(block.part, significant(block.distance), relative)
    console.print()
    console.print(table)
    if len(shown) < len(blocks):
        console.print(f"The {len(shown)} of {len(blocks)} blocks that changed most; --json has all.", soft_wrap=True)
