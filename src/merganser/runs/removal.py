"""``weights-removed.json`` in the folder of a row: its weights were removed on purpose, to save space.

The file is complete before the first weight is deleted, so weights that are missing without it are damage.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field

from merganser.errors import InputError
from merganser.files.atomic import remove, write_bytes
from merganser.files.documents import read_bytes
from merganser.files.temporary_names import temporary_path
from merganser.runs.checksums import CHANGED, is_intact, sealed
from merganser.runs.reading import damaged, read_record
from merganser.runs.record import Record, RowFile

MARK = "weights-removed.json"

WEIGHTS = ("adapter", "trained", "method")
"""Folders of a row that hold its weights and the method's state, which is of no use without them."""


class Removal(Record):
    """The file itself."""

    row: str = Field(description="checksum of the row's record: the mark of another row counts for nothing")
    parts: list[str] = Field(description="folders that were removed")
    reason: str = Field(description="the option that asked for it")
    removed: str = Field(description="UTC time, ISO 8601")
    checksum: str = Field("", description="SHA-256 of this file with this value left empty")


def read_removal(folder: Path, file: RowFile) -> Removal | None:
    """Return what was removed of a row; ``None``: nothing.

    Args:
        file: the row's record.

    Raises:
        InputError: the mark is damaged, or that of another row.
    """
    path = folder / MARK
    if not path.is_file():
        return None
    removal = read_record(path, Removal)
    if not is_intact(read_bytes(path), removal.checksum):
        raise damaged(path, CHANGED)
    if removal.row != file.checksum:
        raise damaged(path, "it is that of another row")
    return removal


def remove_weights(folder: Path, file: RowFile, parts: Sequence[str], reason: str) -> None:
    """Remove folders of a row: first it is recorded that they are gone, then they are deleted.

    Args:
        file: the row's record.

    Raises:
        RunError: the disk is full; nothing was removed.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    removal = Removal(row=file.checksum, parts=list(parts), reason=reason, removed=now)
    write_bytes(folder / MARK, sealed(removal.model_dump(exclude={"checksum"})))
    finish_removal(folder, removal)


def finish_removals(folders: Sequence[Path]) -> None:
    """Delete what an interruption left of weights whose removal is recorded; a damaged record is left alone."""
    for folder in folders:
        if not (folder / MARK).is_file():
            continue
        try:
            removal = read_removal(folder, read_record(folder / "row.json", RowFile))
        except InputError:
            continue  # reported by whatever reads the row, and by `merganser verify`
        if removal is not None:
            finish_removal(folder, removal)


def finish_removal(folder: Path, removal: Removal) -> None:
    """Delete what is recorded as removed; an interruption may have left some of it."""
    for part in removal.parts:
        remove(folder / part)
        remove(temporary_path(folder / part))
