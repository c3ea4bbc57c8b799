"""``merganser report``: write the page, figures and tables of a run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from merganser.cli.options import RunArgument, VerboseOption


def report(
    run: RunArgument,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File to write the page to.", show_default="RUN/report.html"),
    ] = None,
    baseline: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN",
            help="Compare with another run over the same tasks, such as sequential fine-tuning; can be repeated.",
            show_default=False,
        ),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Also write the figures as SVG and PNG.", show_default=False),
    ] = None,
    tables: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Also write the numbers as CSV.", show_default=False),
    ] = None,
    price: Annotated[
        float | None,
        typer.Option(
            "--price-per-hour", metavar="AMOUNT", min=0, help="Price of an hour of the machine.", show_default=False
        ),
    ] = None,
    verbose: VerboseOption = False,
) -> None:
    """Write the report of a run: one HTML page that needs no network; figures and tables on request.

    Example: merganser report RUN --baseline SEQUENTIAL --baseline JOINT --figures RUN/figures --tables RUN/tables
    """
    from merganser.cli.output import OutputConsole
    from merganser.cli.screen import show_outcome
    from merganser.report import write_figures, write_report, write_tables
    from merganser.runs import read_run

    record = read_run(run)
    baselines = [read_run(path) for path in baseline or ()]
    if out is not None:
        written = [write_report(record, out, baselines, price=price)]
    else:
        elsewhere = f"merganser report {shlex.quote(str(run))} --out report.html"
        remedy = f"Write the page to another folder with --out, for instance: {elsewhere}"
        written = [write_report(record, run / "report.html", baselines, price=price, remedy=remedy)]
    if figures is not None:
        written += write_figures(record, figures, baselines)
    if tables is not None:
        written += write_tables(record, tables)
    show_outcome(OutputConsole(), record, baselines=baselines, verbose=verbose)
    typer.echo()
    for path in written:
        typer.echo(f"Wrote {path}")
