"""Find a row of a run by a name that a person uses for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from merganser.errors import InputError, nearest
from merganser.runs.rows import ROW_FOLDER, read_row_record


@dataclass(frozen=True)
class RowName:
    """What a row is called.

    Attributes:
        folder: name of its folder.
        tasks: learned in it.
    """

    folder: str
    tasks: tuple[str, ...]

    @property
    def short(self) -> str:
        """The folder's name without the number: ``start``, a task, or of several the first and how many more."""
        match = ROW_FOLDER.fullmatch(self.folder)
        return match[2] if match else self.folder


def names_of(folders: Sequence[Path]) -> list[RowName]:
    """Return the names of rows; a damaged one has that of its folder alone."""
    names = []
    for folder in folders:
        try:
            tasks = tuple(task.name for task in read_row_record(folder).tasks)
        except InputError:
            tasks = ()
        names.append(RowName(folder.name, tasks))
    return names


def position(name: str, rows: Sequence[RowName], tags: Mapping[str, str], run: Path) -> int:
    """Return the position of the row that a folder of ``tasks/``, a task or a tag names.

    Args:
        rows: of the run, in order.
        tags: tag -> folder of its row.
        run: named in an error.

    Raises:
        InputError: there is none.
    """
    folders = [row.folder for row in rows]
    if name in folders:
        return folders.index(name)
    for number, row in enumerate(rows):
        if name in row.tasks:
            return number
    if name in tags:
        return folders.index(tags[name])
    for number, row in enumerate(rows):
        if name == row.short:
            return number
    known = [*folders, *(task for row in rows for task in row.tasks), *tags]
    listed = f"Rows: {', '.join(folders)}." + (f" Tags: {', '.join(tags)}." if tags else "")
    raise InputError(f"There is no row '{name}' in '{run}'.", nearest(name, known) or listed)
