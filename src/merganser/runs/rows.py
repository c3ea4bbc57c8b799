"""The rows of a run: one folder under ``tasks/`` per row of the score matrix."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from merganser.errors import InputError
from merganser.files.atomic import PARTIAL
from merganser.runs.reading import read_counted_lines, read_record
from merganser.runs.record import KeptExample, MergeRecord, RowFile, SignalRecord

ROW_FOLDER = re.compile(r"(\d{2,})-(.+)")
"""Names of the folders: the number of the row, and what was learned in it."""


@dataclass(frozen=True)
class Row:
    """A row as read.

    Attributes:
        folder: where it is.
        file: its ``row.json``.
        merges: its ``merges.jsonl``; empty for the row before any training.
    """

    folder: Path
    file: RowFile
    merges: list[MergeRecord]

    @property
    def is_start(self) -> bool:
        """Whether this is the row before any training, in which nothing was learned."""
        return self.file.row == 0

    def examples(self, name: str) -> list[KeptExample]:
        """Read ``memory.jsonl``, ``test.jsonl`` or ``dev.jsonl``; the row before training has none.

        Raises:
            InputError: the file is missing or damaged.
        """
        return [] if self.is_start else read_counted_lines(self.folder, name, KeptExample, self.file)

    def signals(self) -> list[SignalRecord]:
        """Read ``signals.jsonl``; the row before training has none.

        Raises:
            InputError: the file is missing or damaged.
        """
        return [] if self.is_start else read_counted_lines(self.folder, "signals", SignalRecord, self.file)


def read_row(folder: Path) -> Row:
    """Read a row's folder.

    Raises:
        InputError: ``row.json`` or ``merges.jsonl`` is missing or damaged.
    """
    file = read_record(folder / "row.json", RowFile)
    merges = [] if file.row == 0 else read_counted_lines(folder, "merges", MergeRecord, file)
    return Row(folder, file, merges)


def row_folders(tasks: Path) -> list[Path]:
    """Return the folders of the complete rows in order.

    Args:
        tasks: the folder ``tasks/`` of a run.

    Raises:
        InputError: a row between two others is missing, or there twice.
    """
    folders: dict[int, Path] = {}
    for folder in sorted(tasks.iterdir()):
        match = ROW_FOLDER.fullmatch(folder.name)
        if not match or folder.name.endswith(PARTIAL):
            continue
        if other := folders.get(int(match[1])):
            raise InputError(
                f"'{tasks}' has two rows with the same number: {other.name} and {folder.name}.",
                "Move the one that does not belong to this run elsewhere.",
            )
        folders[int(match[1])] = folder
    if sorted(folders) != list(range(len(folders))):
        raise InputError(
            f"The rows under '{tasks}' are numbered {sorted(folders)}; one is missing.",
            "Restore it, or delete the rows after the gap.",
        )
    return [folders[number] for number in sorted(folders)]
