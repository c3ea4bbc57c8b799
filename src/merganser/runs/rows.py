"""The rows of a run: one folder under ``tasks/`` per row of the score matrix."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from merganser.errors import InputError
from merganser.files.atomic import write_bytes
from merganser.files.documents import read_bytes
from merganser.files.safetensors_file import read_header
from merganser.files.temporary_names import PARTIAL
from merganser.runs.checksums import CHANGED, checksums, files_of, first_problem, is_intact, sealed, sha256_of
from merganser.runs.reading import damaged, read_counted_lines, read_record
from merganser.runs.record import KeptAnswers, KeptExample, MergeRecord, RowFile, SignalRecord
from merganser.runs.removal import MARK, Removal, read_removal

ROW_FOLDER = re.compile(r"(\d{2,})-(.+)")
"""Names of the folders: the number of the row, and what was learned in it."""

RECORD = "row.json"
"""Name of the record of a row."""

IMAGES = "images.safetensors"
"""File of a row that has images."""


def folder_name(row: int, learned: Sequence[str]) -> str:
    """Return the name of a row's folder: its number with the task, or the first task and the number of the others."""
    others = f"+{len(learned) - 1}" if len(learned) > 1 else ""
    return f"{row:02d}-{learned[0]}{others}"


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
        """Read ``memory.jsonl``, ``test.jsonl``, ``dev.jsonl`` or ``watch.jsonl``.

        The row before training has only the last of them, and other rows have it where tasks are watched from there on.

        Raises:
            InputError: the file is missing or damaged.
        """
        if not self.file.watched if name == "watch" else self.is_start:
            return []
        examples = read_counted_lines(self.folder, name, KeptExample, self.file)
        self.checked(f"{name}.jsonl")
        return examples

    def signals(self) -> list[SignalRecord]:
        """Read ``signals.jsonl``; the row before training has none.

        Raises:
            InputError: the file is missing or damaged.
        """
        if self.is_start:
            return []
        signals = read_counted_lines(self.folder, "signals", SignalRecord, self.file)
        self.checked("signals.jsonl")
        return signals

    def answers(self) -> list[KeptAnswers]:
        """Read the answers to the test examples, a record per row and task; none where they were not kept.

        Raises:
            InputError: the file is missing or damaged.
        """
        if not self.file.lines.get("answers"):
            return []
        answers = read_counted_lines(self.folder, "answers", KeptAnswers, self.file)
        self.checked("answers.jsonl")
        return answers

    def checked(self, part: str) -> Path:
        """Return the path of a file or folder of the row, whose content is as recorded.

        Nothing is compared where no checksums were recorded.

        Raises:
            InputError: a file is missing or has changed, or the weights were removed to save space.
        """
        if (removal := self.removal()) is not None and part in removal.parts:
            raise self._gone(removal)
        recorded = {
            name: checksum for name, checksum in self.file.sha256.items() if name == part or name.startswith(f"{part}/")
        }
        if problem := first_problem(self.folder, recorded):
            raise damaged(*problem)
        return self.folder / part

    def removal(self) -> Removal | None:
        """Return what was removed of the row to save space; ``None``: nothing.

        Raises:
            InputError: the record of it is damaged.
        """
        return read_removal(self.folder, self.file)

    @property
    def has_weights(self) -> bool:
        """Whether the weights deployed after the row were not removed to save space."""
        removal = self.removal()
        return removal is None or "adapter" not in removal.parts

    def _gone(self, removal: Removal) -> InputError:
        others = [folder.name for folder in row_folders_in_part(self.folder.parent) if not (folder / MARK).is_file()]
        return InputError(
            f"The weights of '{self.folder.name}' were removed on {removal.removed[:10]} to save space "
            f"({removal.reason}); its scores and answers are there.",
            f"Rows with weights: {', '.join(others)}. A tag keeps those of a row: `merganser tag`.",
        )

    def sha256(self) -> dict[str, str]:
        """Return the SHA-256 of every other file of the row: as recorded, or where none was, computed."""
        return dict(self.file.sha256) or checksums(self.folder, without=(RECORD,))

    def check(self) -> None:
        """Check every file of the row: by its checksum, or where none was recorded by reading it.

        Raises:
            InputError: a file is missing or damaged, or the weights were removed to save space.
        """
        self.checked("adapter")
        if self.file.sha256:
            if problem := first_problem(self.folder, self.file.sha256):
                raise damaged(*problem)
            return
        for name in self.file.lines:
            if name in ("memory", "test", "dev", "watch"):
                self.examples(name)
        self.signals()
        for name in files_of(self.folder):
            if name.endswith(".safetensors"):
                read_header(self.folder / name)


def row_checksums(folder: Path) -> tuple[dict[str, str], str]:
    """Return what a row's record has of the files beside it, once they are complete: ``sha256`` and ``run_sha256``.

    Args:
        folder: of the row.
    """
    run = folder.parent.parent / "run.yaml"
    return checksums(folder, without=(RECORD,)), sha256_of(run)


def write_row_record(folder: Path, file: RowFile) -> None:
    """Write ``row.json``, sealed; the last file of a row.

    Raises:
        RunError: the disk is full.
    """
    write_bytes(folder / RECORD, sealed(file.model_dump()))


def read_row(folder: Path) -> Row:
    """Read a row's folder.

    Raises:
        InputError: ``row.json`` or ``merges.jsonl`` is missing or damaged.
    """
    file = read_row_record(folder)
    merges = [] if file.row == 0 else read_counted_lines(folder, "merges", MergeRecord, file)
    row = Row(folder, file, merges)
    row.checked("merges.jsonl")
    return row


def read_row_record(folder: Path) -> RowFile:
    """Read a row's ``row.json``.

    Raises:
        InputError: it is missing or damaged.
    """
    path = folder / RECORD
    try:
        file = read_record(path, RowFile)
    except InputError as error:
        # What no longer fits the record has mostly changed since: the cause then, not what the change led to.
        seal = re.search(rb'"checksum": "([0-9a-f]{64})"\s*\}\s*\Z', read_bytes(path)) if path.is_file() else None
        if seal and not is_intact(read_bytes(path), seal[1].decode()):
            raise damaged(path, CHANGED) from error
        raise
    if (file.checksum or file.sha256) and not is_intact(read_bytes(path), file.checksum):
        raise damaged(path, CHANGED)
    return file


def row_folders(tasks: Path) -> list[Path]:
    """Return the folders of the complete rows in order; anything else in ``tasks/`` is left alone.

    Args:
        tasks: the folder ``tasks/`` of a run.

    Raises:
        InputError: a row between two others is missing, or there twice.
    """
    folders = _numbered(tasks)
    if sorted(folders) != list(range(len(folders))):
        raise InputError(
            f"The rows under '{tasks}' are numbered {sorted(folders)}; one is missing.",
            "Restore it, or delete the rows after the gap.",
        )
    return [folders[number] for number in sorted(folders)]


def row_folders_in_part(above: Path) -> list[Path]:
    """Return the folders of complete rows in order, which need not begin with row 0.

    Raises:
        InputError: a row is there twice.
    """
    folders = _numbered(above)
    return [folders[number] for number in sorted(folders)]


def _numbered(above: Path) -> dict[int, Path]:
    """Return the folders of complete rows by their number."""
    folders: dict[int, Path] = {}
    for folder in sorted(above.iterdir()):
        match = ROW_FOLDER.fullmatch(folder.name)
        if not match or folder.name.endswith(PARTIAL) or not folder.is_dir():
            continue
        if other := folders.get(int(match[1])):
            raise InputError(
                f"'{above}' has two rows with the same number: {other.name} and {folder.name}.",
                "Move the one that does not belong to this run elsewhere.",
            )
        folders[int(match[1])] = folder
    return folders


def unfinished_rows(tasks: Path) -> list[Path]:
    """Return the folders of rows that were not completed; a file or a link is none, whatever its name.

    Args:
        tasks: the folder ``tasks/`` of a run.
    """
    return [
        folder
        for folder in sorted(tasks.iterdir())
        if folder.name.endswith(PARTIAL)
        and ROW_FOLDER.fullmatch(folder.name.removesuffix(PARTIAL))
        and folder.is_dir()
        and not folder.is_symlink()
    ]
