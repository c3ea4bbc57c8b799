"""What ``merganser merge`` prints: the progress bar, the report, the plan of a dry run and the table of rules."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from merganser.checkpoints.merge import Report


class ProgressBar:
    """A progress bar of the bytes written, redrawn at most ten times a second. (Importing rich costs too much.)"""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._shown = 0.0

    def show(self, done: int, total: int) -> None:
        """Draw the bar."""
        now = time.perf_counter()
        if now - self._shown < 0.1 and done < total:
            return
        self._shown = now
        filled = 30 * done // max(total, 1)
        speed = done / max(now - self._started, 1e-9)
        left = (total - done) / max(speed, 1.0)
        line = f"{'#' * filled}{'.' * (30 - filled)} {done / 1e9:.2f} of {total / 1e9:.2f} GB, {speed / 1e9:.2f} GB/s"
        sys.stderr.write(f"\r{line}, {left:.0f} s left ")
        sys.stderr.flush()

    def end(self) -> None:
        """Leave the line, where a bar was drawn."""
        if self._shown:
            sys.stderr.write("\n")


def print_plan(content: dict[str, Any], as_json: bool) -> None:
    """Print what a merge will do, one key per line."""
    if as_json:
        typer.echo(json.dumps(content))
        return
    for key, value in content.items():
        if isinstance(value, list):
            value = f"{len(value)}" + (f": {', '.join(value[:5])}{', ...' if len(value) > 5 else ''}" if value else "")
        elif isinstance(value, dict):
            value = ", ".join(f"{name} {count}" for name, count in value.items()) or "none"
        elif isinstance(value, int):
            value = f"{value:,}"
        typer.echo(f"{key}: {value}")


def print_report(report: Report, as_json: bool) -> None:
    """Print what a merge did."""
    if report.nonfinite:
        typer.echo(
            f"Warning: {len(report.nonfinite)} tensors of the result hold NaN or infinity: "
            f"{_first_ten(report.nonfinite)}. The sum overflows its type: use smaller weights or a wider --dtype.",
            err=True,
        )
    if as_json:
        typer.echo(json.dumps(report.as_dict()))
        return
    merged = ", ".join(f"{count} by {name}" for name, count in report.tensors.items())
    speed = report.bytes / 1e9 / max(report.seconds, 1e-9)
    typer.echo(f"{report.out}: {merged or 'nothing merged'}; {report.bytes:,} bytes in {report.seconds:.1f} s")
    for what, names in (
        ("Not floating-point, copied", report.buffers),
        ("Kept from the base", report.kept),
        ("Not common to all, kept", report.only_reference),
        ("Not common to all, omitted", report.left_out),
        ("Files not copied", report.not_copied),
        ("Settings of other models that the result lacks; --tokenizer-from takes those of one", report.dropped),
        ("Notes", report.notes),
    ):
        if names:
            typer.echo(f"{what} ({len(names)}): {_first_ten(names)}")
    if report.errors:
        worst = max(report.errors, key=lambda name: report.errors[name])
        typer.echo(f"Largest truncation error: {report.errors[worst]:.4f} at {worst}")
    if speed and sys.stderr.isatty():
        typer.echo(f"{speed:.2f} GB/s", err=True)


def _first_ten(names: list[str]) -> str:
    return f"{', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"


def print_rules(as_json: bool) -> None:
    """Print every rule with its parameters."""
    from merganser.merging.rules import RULES

    if as_json:
        rows = [
            {
                "name": rule.name,
                "summary": rule.summary,
                "source": rule.source,
                "base": rule.base,
                "per_model": [parameter.name for parameter in rule.per_model],
                "options": {parameter.name: parameter.default for parameter in rule.options},
                "help": {parameter.name: parameter.help for parameter in (*rule.per_model, *rule.options)},
            }
            for rule in RULES.values()
        ]
        typer.echo(json.dumps(rows))
        return
    for rule in RULES.values():
        needs = "needs a base" if rule.base == "required" else "no base"
        if rule.extra:
            needs += f", a {rule.extra} file per model"
        typer.echo(f"{rule.name}: {rule.summary} [{needs}; {rule.source}]")
        for parameter in (*rule.per_model, *rule.options):
            scope = ", per model" if parameter in rule.per_model else ""
            typer.echo(f"    {parameter.name} = {str(parameter.default).lower()}{scope}: {parameter.help}")
