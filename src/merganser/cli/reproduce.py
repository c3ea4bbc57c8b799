"""``merganser reproduce``: published figures, the studies that reproduce them, and what they measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from merganser.study.catalogue import Entry
    from merganser.study.reproduction import Comparison, Reproduction

NOT_RUN, UNDEFINED = "not run", "undefined"


def reproduce(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Entry of the catalogue; without one, list them.", show_default=False),
    ] = None,
    write: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the study's file.", show_default=False)
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="With --write: folder that holds the folders of the published data. Default: data, beside the file; "
            "images: from the hub.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="With --write: model in the place of the published one's.", show_default=False
        ),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder of a study, or of records: measured beside published.", show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List published tables; show one, write the study that reproduces it, or put a study's results beside it.

    Example: merganser reproduce aimmerging-t5-large-standard-cl --write study.yaml --data data
    """
    from merganser.errors import InputError
    from merganser.study.catalogue import catalogue, find_entry, write_study

    given = {"--write": write, "--data": data, "--model": model, "--results": results}
    chosen = [option for option, value in given.items() if value is not None]
    if name is None:
        if chosen:
            raise InputError(f"{chosen[0]} is for one entry.", "Give its name; `merganser reproduce` lists them.")
        _list(list(catalogue().values()), as_json)
        return
    entry = find_entry(name)
    if write is None:
        if alone := [option for option in chosen if option != "--results"]:
            raise InputError(f"{alone[0]} is for a study's file.", "Give --write FILE as well.")
        _show(entry, results, as_json)
        return
    if results is not None or as_json:
        raise InputError("--write prints no figures.", "Leave --results and --json out, or --write.")
    import shlex

    write_study(entry, write, data, model)
    typer.echo(f"Wrote {write}. Next: merganser study {shlex.quote(str(write))} --out DIR --plan", err=True)


def _list(entries: list[Entry], as_json: bool) -> None:
    import json

    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from merganser.cli.output import OutputConsole

    if as_json:
        typer.echo(json.dumps([_head(entry) for entry in entries], indent=2, ensure_ascii=False))
        return
    table = Table(title="Published tables", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("name", no_wrap=True)
    table.add_column("table", overflow="fold")
    table.add_column("paper", no_wrap=True)
    table.add_column("figures", justify="right")
    for entry in entries:
        count = sum(len(row.values) for row in entry.figures)
        table.add_row(entry.name, entry.table, entry.paper.where, str(count))
    console = OutputConsole()
    console.print(table)
    console.print("Figures, and how to run one: merganser reproduce NAME", highlight=False)


def _head(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "paper": entry.paper.model_dump(),
        "table": entry.table,
        "figures": [row.model_dump(exclude_none=True) for row in entry.figures],
        "sources": {name: paper.model_dump() for name, paper in entry.sources.items()},
        "evidence": dict(entry.evidence),
        "notes": list(entry.notes),
    }


def _show(entry: Entry, folder: Path | None, as_json: bool) -> None:
    import json

    from merganser.cli.output import OutputConsole
    from merganser.study.reproduction import reproduce as compare

    reproduction = compare(entry, folder)
    if as_json:
        value = _head(entry) | {
            "study": entry.study_values(),
            "comparison": [_values(comparison) for comparison in reproduction.comparisons],
            "runs_otherwise": list(reproduction.otherwise),
        }
        typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
        return
    console = OutputConsole()

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    say(f"{entry.table}\n{entry.paper.title}, {entry.paper.where}\n")
    console.print(_table(reproduction, measured=folder is not None))
    if abbreviations := _spelled_out(reproduction):
        say(f"Percent. {abbreviations}.")
    for mark, meaning in entry.evidence.items():
        say(f"[{mark}] {meaning}")
    if absent := list(
        dict.fromkeys(comparison.method for comparison in reproduction.comparisons if not comparison.offered)
    ):
        say(f"No such method here: {', '.join(absent)}.")
    for row in entry.figures:
        if row.remark:
            named = ", ".join(_figure(measure) for measure in row.values)
            say(f"{row.title}, {named}: {row.remark}.")
    for note in entry.notes:
        say(note)
    if reproduction.otherwise:
        shown = "; ".join(reproduction.otherwise[:8]) + ("; ..." if len(reproduction.otherwise) > 8 else "")
        say(f"Runs made otherwise than the study of this table: {shown}.")
    if folder is None:
        say(_how(entry))


def _table(reproduction: Reproduction, measured: bool) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    # In 80 columns every number has a line of its own; only long names of methods are folded.
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("method", min_width=10, overflow="fold")
    table.add_column("figure", no_wrap=True)
    table.add_column("published", justify="right", no_wrap=True)
    table.add_column("source", no_wrap=True)
    if measured:
        table.add_column("measured", justify="right", no_wrap=True)
        table.add_column("95 %", justify="right", no_wrap=True)
        table.add_column(f"runs/{reproduction.planned}", justify="right", no_wrap=True)
    for comparison in reproduction.comparisons:
        table.add_row(*_cells(comparison, reproduction.entry, measured))
    return table


def _cells(comparison: Comparison, entry: Entry, measured: bool) -> list[str]:
    source = (
        "not known" if comparison.row is None else f"{_short(entry, comparison.row.source)} [{comparison.row.evidence}]"
    )
    cells = [
        comparison.title,
        _figure(comparison.measure),
        "" if comparison.published is None else _percent(comparison.published),
        source,
    ]
    if not measured:
        return cells
    from merganser.study.statistics import LEAST_CHANGE, LEAST_SCORE

    if comparison.measured is None:
        return [*cells, UNDEFINED if comparison.runs else NOT_RUN, "", ""]
    number = comparison.measured.within(LEAST_CHANGE if comparison.minus or comparison.measure != "op" else LEAST_SCORE)
    interval = "" if number.low is None or number.high is None else f"{100 * number.low:.1f} to {100 * number.high:.1f}"
    return [*cells, f"{100 * number.mean:.1f}", interval, str(number.runs)]


def _short(entry: Entry, source: str) -> str:
    """Return a source in as few characters as identify it."""
    paper = entry.sources[source]
    return paper.arxiv or paper.title


def _figure(measure: str) -> str:
    return measure if measure == "forgetting" else measure.upper()


def _spelled_out(reproduction: Reproduction) -> str:
    """Return what the abbreviations of the table stand for: ``OP: overall performance; BWT: backward transfer``."""
    from merganser.report.formatting import ABBREVIATIONS

    shown = dict.fromkeys(_figure(comparison.measure) for comparison in reproduction.comparisons)
    return "; ".join(f"{name}: {ABBREVIATIONS[name]}" for name in shown if name in ABBREVIATIONS)


def _percent(value: float) -> str:
    """Format a published number with the decimals that it has, and one at least."""
    return f"{value:.1f}" if round(value, 1) == value else f"{value:.2f}"


def _values(comparison: Comparison) -> dict[str, Any]:
    """Return one comparison for programs; percent, as published."""
    number = comparison.measured
    of_runs = {} if number is None else {"mean": number.mean, "low": number.low, "high": number.high}
    percent = {key: None if value is None else 100 * value for key, value in of_runs.items()}
    return {
        "method": comparison.method,
        "minus": comparison.minus,
        "figure": comparison.measure,
        "published": comparison.published,
        "evidence": None if comparison.row is None else comparison.row.evidence,
        "source": None if comparison.row is None else comparison.row.source,
        "measured": None if number is None else percent | {"runs": number.runs},
    }


def _how(entry: Entry) -> str:
    from merganser.study.catalogue import TEXT_DATA

    study = entry.study()
    option = "" if entry.on_hub else " --data DATA"
    where = "The images come from the hub." if entry.on_hub else f"DATA holds {TEXT_DATA}."
    return (
        f"\n{len(study.cells)} cells. To run them:\n"
        f"  merganser reproduce {entry.name} --write study.yaml{option}\n"
        "  merganser study study.yaml --out DIR --plan\n"
        "  merganser study study.yaml --out DIR\n"
        f"  merganser reproduce {entry.name} --results DIR\n"
        f"{where}"
    )
