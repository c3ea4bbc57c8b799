"""``merganser report``: a run as a page, as figures and as tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from merganser.cli.options import RunArgument


def report(
    run: RunArgument,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where the page is written.", show_default="RUN/report.html"),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Another run over the same tasks (say, plain sequential fine-tuning), shown beside this one.",
            show_default=False,
        ),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Also write the figures there, as SVG and PNG.", show_default=False),
    ] = None,
    tables: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Also write the numbers there, as CSV.", show_default=False),
    ] = None,
) -> None:
    """Show a run: one HTML page that needs no network; figures and tables on request.

    For instance: merganser report RUN --baseline SEQUENTIAL --figures RUN/figures --tables RUN/tables
    """
    from merganser.report import write_figures, write_report, write_tables
    from merganser.runs import read_run

    record = read_run(run)
    beside = read_run(baseline) if baseline is not None else None
    written = [write_report(record, out if out is not None else run / "report.html", beside)]
    if figures is not None:
        written += write_figures(record, figures)
    if tables is not None:
        written += write_tables(record, tables)
    for path in written:
        typer.echo(f"Wrote {path}")
