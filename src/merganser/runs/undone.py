"""``undone/NAME/``: the rows that an undo took away and kept, to go back to.

Each holds ``undone.json``, with the rows as they followed each other, and the folders of those that are there. A row
is either under ``tasks/`` or here: an interruption between two of them leaves some here, the last ones first, and the
record holds which row the first of them follows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field

from merganser.errors import InputError
from merganser.files.atomic import remove
from merganser.files.documents import read_bytes
from merganser.files.temporary_names import PARTIAL
from merganser.runs.checksums import CHANGED, is_intact, sealed, sha256_of
from merganser.runs.links import UNDONE
from merganser.runs.reading import damaged, read_record
from merganser.runs.record import Record
from merganser.runs.rows import RECORD, row_folders_in_part
from merganser.runs.tags import Tag

UNDONE_RECORD = "undone.json"


class Link(Record):
    """A row in the order in which they follow each other."""

    row: str = Field(description="its folder")
    sha256: str = Field(description="of its row.json")


class UndoneFile(Record):
    """``undone.json``."""

    chain: list[Link] = Field(description="the row before, then the rows that were taken away")
    tags: dict[str, Tag] = Field(default_factory=dict, description="of the rows that were taken away")
    created: str = Field(description="UTC time, ISO 8601")
    checksum: str = Field("", description="SHA-256 of this file with this value left empty")


@dataclass(frozen=True)
class Undone:
    """Rows that an undo took away and kept.

    Attributes:
        name: to go back to them.
        folder: where they are.
        file: their record.
        rows: their folders, in order.
    """

    name: str
    folder: Path
    file: UndoneFile
    rows: list[Path]

    @property
    def after(self) -> Link:
        """The row that the first of them follows."""
        names = [link.row for link in self.file.chain]
        return self.file.chain[names.index(self.rows[0].name) - 1]

    def continues(self, chain: Sequence[Link]) -> bool:
        """Return whether these rows follow the last of a chain, and were taken away after its first."""
        return self.after == chain[-1] and self.file.chain[: len(chain)] == list(chain)

    def position(self, rows: Sequence[Path]) -> int:
        """Return how many rows of the run come before the first of these.

        Args:
            rows: folders of the run's rows, in order.

        Raises:
            InputError: the row that they follow is not one of them.
        """
        for number, row in enumerate(rows, 1):
            if row.name == self.after.row and sha256_of(row / RECORD) == self.after.sha256:
                return number
        raise InputError(
            f"'{self.name}' follows a row '{self.after.row}' that is not in the run any more.",
            "Go back to that row first, if it was kept, too: `merganser history` lists what was.",
        )


def read_undone(run: Path) -> dict[str, Undone]:
    """Return what undo has kept, by name.

    Raises:
        InputError: a record is damaged.
    """
    by_name = {}
    for folder in sorted((run / UNDONE).glob("*")):
        if not folder.is_dir() or folder.name.endswith(PARTIAL) or not (rows := row_folders_in_part(folder)):
            continue
        path = folder / UNDONE_RECORD
        file = read_record(path, UndoneFile)
        if not is_intact(read_bytes(path), file.checksum):
            raise damaged(path, CHANGED)
        by_name[folder.name] = Undone(folder.name, folder, file, rows)
    return by_name


def sweep_undone(run: Path) -> None:
    """Delete what was not finished, and records whose rows are all back in their place."""
    for folder in sorted((run / UNDONE).glob("*")):
        begun = folder.name.endswith(PARTIAL)
        if folder.is_dir() and (begun or ((folder / UNDONE_RECORD).is_file() and not row_folders_in_part(folder))):
            remove(folder)


def chain_of(rows: Sequence[Path]) -> list[Link]:
    """Return rows as they follow each other; one without a record has an empty hash.

    Args:
        rows: their folders, in order.
    """
    records = [row / RECORD for row in rows]
    return [
        Link(row=row.name, sha256=sha256_of(record) if record.is_file() else "")
        for row, record in zip(rows, records, strict=True)
    ]


def undone_bytes(chain: Sequence[Link], tags: Mapping[str, Tag]) -> bytes:
    """Encode the record of rows that are taken away.

    Args:
        chain: the row before them, then these rows.
        tags: of these rows.
    """
    file = UndoneFile(chain=list(chain), tags=dict(tags), created=datetime.now(UTC).isoformat(timespec="seconds"))
    return sealed(file.model_dump(exclude={"checksum"}))


def undone_name(row: str, taken: Sequence[str]) -> str:
    """Return a name for rows that are taken away.

    Args:
        row: short name of the first of them.
        taken: names that something has already.
    """
    names = (f"{row}-undone{'' if number == 1 else f'-{number}'}" for number in range(1, len(taken) + 2))
    return next(name for name in names if name not in taken)
