"""``merganser verify``: check every file of a run."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from merganser.cli.options import RunArgument

if TYPE_CHECKING:
    from merganser.runs import RunDirectory
    from merganser.runs.findings import Verification


def verify(
    run: RunArgument,
    check: Annotated[
        bool,
        typer.Option("--check", help="Only report: write nothing, and do not lock the run."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Check every file of a run, or of an export, against the SHA-256 that was recorded when it was written.

    Damaged files that can be made again are made again: model/, ledger.jsonl, scores.json and report.html from the
    folders under tasks/, and a task's weights and merges from model/ and ledger.jsonl. Every other damaged file is
    named with what can be done.

    Exit code 0: every file is as it was written. Exit code 1: at least one was damaged, even if it was made again.

    Example: merganser verify runs/first
    """
    from merganser.errors import RunError
    from merganser.lineage import FILE as LINEAGE
    from merganser.report.formatting import plural, size
    from merganser.runs import RunDirectory
    from merganser.runs.verification import verify as verify_run
    from merganser.runs.verification import verify_export

    if not RunDirectory.exists(run) and (run / LINEAGE).is_file():
        verification = verify_export(run)
    elif check:
        directory = RunDirectory.open(run)
        verification = verify_run(directory, repair=False)
        _check_page(directory, verification, repair=False)
    else:
        directory = RunDirectory.open(run)
        with directory.lock:
            verification = verify_run(directory)
            _check_page(directory, verification, repair=True)
    if as_json:
        typer.echo(json.dumps(asdict(verification), indent=2))
    else:
        for note in verification.notes:
            typer.echo(note)
        for finding in verification.made_again:
            typer.echo(f"Made again: {finding.file} ({finding.problem}).")
        for finding in verification.damaged:
            typer.echo(f"Damaged: {finding.file} ({finding.problem}). {finding.remedy}")
        typer.echo(
            f"{plural(verification.files, 'file')} ({size(verification.bytes)}) of {run} are as they were written."
        )
    if verification.damaged:
        raise RunError(f"Damaged in '{run}': {plural(len(verification.damaged), 'file')}.", "See the remedies above.")
    if verification.made_again:
        raise RunError(
            f"Damaged in '{run}', and made again: {plural(len(verification.made_again), 'file')}.",
            "The run is whole. What changed these files may change others: check the disk, and keep a copy.",
        )


def _check_page(directory: RunDirectory, verification: Verification, repair: bool) -> None:
    """Check ``report.html``, and make it again where it is damaged or missing."""
    from merganser.errors import InputError
    from merganser.report import write_report
    from merganser.runs.checksums import text_problem
    from merganser.runs.findings import Finding

    page = directory.path / "report.html"
    problem = text_problem(page.read_bytes()) if page.is_file() else "it is missing"
    if not problem:
        verification.files += 1
        verification.bytes += page.stat().st_size
        return
    try:
        record = directory.record()
    except InputError:
        return  # the damage that prevents it was found before
    if not record.tasks:
        return
    if not repair:
        if page.is_file():
            remedy = f"It can be made again: merganser report {shlex.quote(str(directory.path))}."
            verification.damaged.append(Finding(page.name, problem, remedy))
        return
    existed = page.is_file()
    write_report(record, page)
    if existed:
        verification.made_again.append(Finding(page.name, f"{problem}; without a baseline"))
    else:
        verification.notes.append(f"{page.name} was missing, and was made again.")
