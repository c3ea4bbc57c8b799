"""``merganser learn --check``: keep what was learned only if the check's verdict is to keep it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from merganser.cli.check import EXIT_CODES, print_check

if TYPE_CHECKING:
    from merganser.learner.session import Session
    from merganser.metrics.retention import Bounds
    from merganser.report.retention import Check
    from merganser.runs.rows import Row
    from merganser.streams.task import Task


class Gate:
    """Checks a row before it counts.

    Args:
        run: the directory of the run.
        bounds: what may be lost, and must be reached.

    Attributes:
        check: what was found; ``None`` before the row was complete.
        refused: where the answers of a refused row are.
    """

    def __init__(self, run: Path, bounds: Bounds) -> None:
        self.run = run
        self.bounds = bounds
        self.check: Check | None = None
        self.refused: Path | None = None

    def prepare(self, session: Session, tasks: Sequence[Task]) -> None:
        """Refuse before any work what could not be checked after it.

        Raises:
            InputError: answers are not kept, or there is nothing to compare.
        """
        from merganser.errors import InputError
        from merganser.report.retention import require_comparable

        if not session.config.evaluation.keep_answers:
            raise InputError(
                "A check compares answers, and this run keeps none (evaluation.keep_answers: false).",
                "Leave --check out, or start a run that keeps them.",
            )
        watched = {name: task.group or "" for name, task in session.watched().items()}
        require_comparable(session.rows, tasks, watched, self.bounds)

    def __call__(self, rows: Sequence[Row]) -> bool:
        """Check the last row, and keep its answers elsewhere if it is refused."""
        from merganser.report.refused import keep_refused
        from merganser.report.retention import check_row
        from merganser.runs import RunDirectory

        self.check = check_row(RunDirectory.open(self.run), bounds=self.bounds, rows=rows)
        if self.exit_code == 0:
            return True
        self.refused = keep_refused(self.run, rows, self.check)
        return False

    @property
    def exit_code(self) -> int:
        """The exit code of the verdict: 0 keep, 3 do not keep, 4 cannot be told."""
        return 0 if self.check is None else EXIT_CODES[self.check.verdict.value]

    def as_dict(self, kept: bool) -> dict[str, Any]:
        """Return what a JSON result has of the check."""
        check = None if self.check is None else self.check.as_dict()
        return {"kept": kept, "check": check, "refused": None if self.refused is None else str(self.refused)}

    def print_verdict(self) -> None:
        """Print the verdict with its table."""
        if self.check is not None:
            typer.echo()
            print_check(self.check)

    def print_refusal(self, as_json: bool) -> None:
        """Print what was tried, that the run is as it was, and where the answers are."""
        if as_json:
            typer.echo(json.dumps({"run": str(self.run), **self.as_dict(kept=False)}, indent=2, allow_nan=False))
            return
        self.print_verdict()
        typer.echo(
            f"Not kept: {self.run} is as it was. The answers that changed are in {self.refused}/changed.jsonl; learn "
            "again with other bounds, or without --check, to keep it."
        )
