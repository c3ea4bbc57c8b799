"""No writer follows a link out of a run."""

from __future__ import annotations

from pathlib import Path

from merganser.errors import InputError

LOCK = ".lock"
CHECKPOINTS = "checkpoint"
TASKS = "tasks"
UNDONE = "undone"

WRITTEN = (LOCK, TASKS, CHECKPOINTS, UNDONE)
"""What every writing command opens or goes into. Other files of a run are replaced by name, which follows no link."""


def refuse_links(run: Path, names: tuple[str, ...] = WRITTEN) -> None:
    """Refuse to write in a run in which one of these names is a link: what it points to is not of the run.

    Raises:
        InputError: one is.
    """
    for name in names:
        if (run / name).is_symlink():
            raise InputError(
                f"'{run / name}' is a link, and a run neither writes nor deletes anything outside its own folder.",
                "Put what it points to in its place, or remove the link.",
            )
