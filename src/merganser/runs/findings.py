"""What a check of the files of a run found."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from merganser.errors import InputError


@dataclass(frozen=True)
class Finding:
    """A file that is not as it was written.

    Attributes:
        file: its path in the run.
        problem: what is wrong with it.
        remedy: what a person can do; empty if it was made again.
    """

    file: str
    problem: str
    remedy: str = ""


@dataclass
class Verification:
    """What :func:`merganser.runs.verification.verify` found.

    Attributes:
        files, bytes: how many are as they were written.
        damaged: files that are not.
        made_again: files that were not, and are again.
        notes: sentences on what is no damage.
    """

    files: int = 0
    bytes: int = 0
    damaged: list[Finding] = field(default_factory=list)
    made_again: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def note_intact(self, path: Path) -> None:
        """Count a file that is as it was written."""
        self.files += 1
        self.bytes += path.stat().st_size

    def note_damaged(self, file: str, problem: str, remedy: str) -> None:
        """Add a file that is not, by its path in the run."""
        self.damaged.append(Finding(file, problem, remedy))


def problem_in(error: InputError) -> str:
    """Return the problem of a damaged file from an error's message, without the file's name."""
    return (error.cause.partition("' is damaged: ")[2] or error.cause).rstrip(".")
