"""``merganser replay``: the merge decisions of a finished run with other options."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from merganser.cli.options import RunArgument

if TYPE_CHECKING:
    from rich.table import Table

    from merganser.control import Merge
    from merganser.report.replay import Replay, TaskReplay
    from merganser.runs.record import MergeRecord


def replay(
    run: RunArgument,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Option of method aim to change. May be repeated.", show_default=False
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option(metavar="NAME", help="Replay only this task.", show_default="every task with merges")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Replay a finished run's merge decisions with other options, without training; the run is only read.

    Example: merganser replay RUN --set threshold_factor=1.5
    """
    from merganser.report.replay import replay as replayed
    from merganser.runs import read_run

    result = replayed(read_run(run), _parsed(changes or []), task)
    if as_json:
        typer.echo(json.dumps(_plain(result), indent=1, ensure_ascii=False, allow_nan=False))
        return
    from merganser.cli.output import OutputConsole
    from merganser.options import yaml_text

    console = OutputConsole()
    words = [f"{key} {yaml_text(new)} instead of {yaml_text(old)}" for key, (old, new) in result.changes.items()]
    console.print(f"Replayed with {', '.join(words) or 'the options of the run'}.", highlight=False, soft_wrap=True)
    for entry in result.tasks:
        console.print()
        console.print(_table(entry, result.masks))
        console.print(_counts(entry), highlight=False, soft_wrap=True)
    for name in result.without_merges:
        console.print(f"\nTask '{name}' had no merge; it is not replayed.", highlight=False, soft_wrap=True)
    if notes := _notes(result):
        console.print()
    for note in notes:
        console.print(note, highlight=False, soft_wrap=True)


def _parsed(changes: list[str]) -> dict[str, Any]:
    from merganser.errors import InputError
    from merganser.files.documents import Malformed, parse_yaml

    result: dict[str, Any] = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--set '{change}' is not KEY=VALUE.", "For instance --set threshold_factor=1.5.")
        try:
            result[key.strip()] = parse_yaml(value)
        except Malformed as error:
            raise InputError(
                f"--set {key.strip()}: '{value}' is not a value.", "Give a number, true, false or null."
            ) from error
    return result


def _cells(merge: MergeRecord | Merge | None, masks: bool) -> list[str]:
    if merge is None:
        return ["", "", "", ""]
    weights = "by masks" if masks else f"{merge.weight_new:.3g} + {merge.weight_old:.3g}"
    cause = f"{merge.cause}, refused" if getattr(merge, "status", "") == "refused" else merge.cause
    return [str(merge.step), cause, str(merge.interval), weights]


def _table(entry: TaskReplay, masks: bool) -> Table:
    """Tabulate the merges of the run and of the replay side by side; those at one step share a line."""
    from rich.table import Table

    table = Table(title=f"{entry.task}, {entry.steps} steps", pad_edge=False)
    for side in ("run", "replay"):
        table.add_column(f"{side}: step", justify="right")
        table.add_column("cause")
        table.add_column("planned", justify="right")
        table.add_column("new + old")
    actual = {merge.step: merge for merge in entry.actual}
    replayed = {merge.step: merge for merge in entry.replayed}
    for step in sorted({*actual, *replayed}):
        table.add_row(*_cells(actual.get(step), masks), *_cells(replayed.get(step), masks))
    return table


def _counts(entry: TaskReplay) -> str:
    if entry.same:
        return "The replay makes exactly the merges of the ledger."
    steps = [sum(merge.rehearsal_steps for merge in merges) for merges in (entry.actual, entry.replayed)]
    return (
        f"{len(entry.actual)} merges with {steps[0]} rehearsal steps in the run, "
        f"{len(entry.replayed)} with {steps[1]} in the replay."
    )


def _notes(result: Replay) -> list[str]:
    """Describe what is approximate."""
    if all(entry.same for entry in result.tasks):
        return []
    notes = ["An estimate: losses on the memory are those of the run, whose weights were merged as in the ledger."]
    merges = sum(len(entry.replayed) for entry in result.tasks)
    if estimated := sum(entry.estimated for entry in result.tasks):
        notes.append(
            f"{estimated} of {merges} learning signals are of intervals that the run did not have: its weights are "
            "assumed to change at a constant rate between its own merges, and at the last rate after them."
        )
    if replaced_probes := sum(entry.replaced_probes for entry in result.tasks):
        probes = sum(entry.probes for entry in result.tasks)
        notes.append(
            f"{replaced_probes} of {probes} probes were not taken by the run; each is replaced by the one before it."
        )
    return notes


def _plain(result: Replay) -> dict[str, Any]:
    def decided(merge: MergeRecord | Merge, following: int, signal: float) -> dict[str, Any]:
        keys = ("step", "cause", "alarms", "interval", "rehearsal_steps", "weight_new", "weight_old", "threshold")
        values = {key: getattr(merge, key) for key in keys}
        if result.masks:
            values["weight_new"] = values["weight_old"] = None
        return {**values, "next_interval": following, "learning_signal": signal}

    return {
        "changes": {key: {"run": old, "replay": new} for key, (old, new) in result.changes.items()},
        "tasks": [
            {
                "task": entry.task,
                "steps": entry.steps,
                "same": entry.same,
                "actual": [
                    {**decided(merge, merge.next_interval, merge.learning_signal), "status": merge.status}
                    for merge in entry.actual
                ],
                "replayed": [
                    decided(*known)
                    for known in zip(entry.replayed, entry.next_intervals, entry.learning_signals, strict=True)
                ],
                "learning_signals_estimated": entry.estimated,
                "probes": entry.probes,
                "probes_not_taken": entry.replaced_probes,
            }
            for entry in result.tasks
        ],
        "without_merges": result.without_merges,
        "notes": _notes(result),
    }
