"""``merganser report``: write the page, figures and tables of a run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from merganser.cli.options import RunArgument


def report(
    run: RunArgument,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File to write the page to.", show_default="RUN/report.html"),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Compare with another run over the same tasks, such as sequential fine-tuning.",
            show_default=False,
        ),
    ] = None,
    compare: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN",
            help="Draw a further run over the same tasks in the figures; can be repeated.",
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
) -> None:
    """Write the report of a run: one HTML page that needs no network; figures and tables on request.

    Example: merganser report RUN --baseline SEQUENTIAL --figures RUN/figures --tables RUN/tables
    """
    from merganser.errors import InputError
    from merganser.report import write_figures, write_report, write_tables
    from merganser.runs import read_run

    if compare and figures is None:
        raise InputError("--compare draws runs in the figures.", "Add --figures FOLDER.")
    record = read_run(run)
    beside = read_run(baseline) if baseline is not None else None
    if out is not None:
        written = [write_report(record, out, beside)]
    else:
        elsewhere = f"merganser report {shlex.quote(str(run))} --out report.html"
        remedy = f"Write the page to another folder with --out, for instance: {elsewhere}"
        written = [write_report(record, run / "report.html", beside, remedy)]
    if figures is not None:
        written += write_figures(record, figures, beside, [read_run(other) for other in compare or ()])
    if tables is not None:
        written += write_tables(record, tables)
    for path in written:
        typer.echo(f"Wrote {path}")
