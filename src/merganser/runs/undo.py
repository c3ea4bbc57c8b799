"""Take rows back, keep them beside the run, and go back to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from merganser.errors import InputError, nearest
from merganser.files.atomic import StagedChanges, full_disk_is_an_error, remove, write
from merganser.runs import checkpoint
from merganser.runs.derived import stage_derived
from merganser.runs.directory import RunDirectory
from merganser.runs.links import TASKS, UNDONE
from merganser.runs.row_names import RowName, names_of, position
from merganser.runs.rows import Row, read_row, row_folders
from merganser.runs.run_file import check_run_file
from merganser.runs.tags import TAGS, Tag, is_of, read_tags, tags_bytes
from merganser.runs.undone import UNDONE_RECORD, Undone, chain_of, undone_bytes, undone_name


@dataclass
class UndoResult:
    """What an undo did.

    Attributes:
        removed: tasks that were taken back; of a damaged row the name of its folder.
        tags: of these rows, which went with them.
        kept_as: name to go back to them; ``None``: they were not kept.
        restored: tasks that are there again.
        tags_restored: of these.
    """

    removed: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    kept_as: str | None = None
    restored: list[str] = field(default_factory=list)
    tags_restored: list[str] = field(default_factory=list)


def undo_rows(directory: RunDirectory, to: str | None = None, *, keep: bool = False) -> UndoResult:
    """Take back the last row, or all rows after one: their weights, memory, scores and merges.

    Interrupted, some of the rows are taken back, the last ones first, or none. The checkpoints of an unfinished task
    are deleted, too. ``run.yaml`` and the row that becomes the last are checked first; those that go may be damaged.

    Args:
        directory: whose lock the caller holds.
        to: the row that becomes the last: its folder, a task learned in it, or a tag; default: the last but one. Or
            the name of what an undo has kept: these rows take their place again.
        keep: put what is taken back into ``undone/``, under a name to go back to.

    Raises:
        InputError: there is nothing to take back, the weights to go back to were removed, or a file that stays is
            damaged; nothing was taken back.
        RunError: the disk is full; nothing was taken back.
    """
    folders = row_folders(directory.path / TASKS)
    kept = directory.undone()
    names = names_of(folders)
    if to is not None and to in kept:
        return _restore(_Change(directory, folders, names, kept), kept[to], keep)
    if len(folders) < 2:
        raise InputError(f"No task was learned in '{directory.path}'.", _what_is_kept(directory, kept))
    left = len(folders) - 1 if to is None else _position(directory, to, names, kept) + 1
    change = _Change(directory, folders, names, kept)
    with full_disk_is_an_error(folders[-1]), StagedChanges() as changes:
        remaining = _staying(directory, folders[:left])
        change.take_away(changes, left, keep)
        change.stage_derived(changes, remaining)
        change.stage_tags(changes)
    change.clean()
    return change.result


def discard_undone(directory: RunDirectory, name: str) -> list[str]:
    """Delete what an undo has kept, for good; return the names of its rows.

    Args:
        directory: whose lock the caller holds.

    Raises:
        InputError: there is nothing of that name.
    """
    kept = directory.undone()
    if name not in kept:
        raise InputError(f"Undo has kept no '{name}'.", nearest(name, kept) or _what_is_kept(directory, kept))
    remove(kept[name].folder)
    return [row.name for row in kept[name].rows]


def _what_is_kept(directory: RunDirectory, kept: Mapping[str, Undone]) -> str:
    return f"Kept are: {', '.join(kept)} (--to NAME)." if kept else "There is nothing to undo."


def _position(directory: RunDirectory, to: str, names: Sequence[RowName], kept: Mapping[str, Undone]) -> int:
    """Return the position of a row before the last."""
    folders = {row.folder: directory.path / TASKS / row.folder for row in names}
    tags = read_tags(directory.path / TAGS)
    known = {name: tag.row for name, tag in tags.items() if tag.row in folders and is_of(tag, folders[tag.row])}
    try:
        number = position(to, names, known, directory.path)
    except InputError as error:
        raise InputError(error.cause, f"{error.remedy} {_what_is_kept(directory, kept) if kept else ''}") from error
    if number == len(names) - 1:
        raise InputError(f"'{names[-1].folder}' is the last row of '{directory.path}'.", "There is nothing to undo.")
    return number


def _staying(directory: RunDirectory, folders: Sequence[Path]) -> list[Row]:
    """Read the rows that stay; the last of them is checked, and so is ``run.yaml``."""
    rows = [read_row(folder) for folder in folders]
    rows[-1].check()
    check_run_file(directory.path, rows)
    return rows


def _restore(change: _Change, version: Undone, keep: bool) -> UndoResult:
    """Put rows that were kept in their place again."""
    directory, folders = change.directory, change.folders
    left = version.position(folders)
    if left < len(folders) and not keep:
        since = ", ".join(name for row in change.names[left:] for name in row.tasks or (row.folder,))
        raise InputError(
            f"Going back to '{version.name}' would take away {since}, learned since.",
            "Add --keep to keep that under a name of its own.",
        )
    before = [read_row(folder) for folder in folders[:left]]
    restored = _staying(directory, version.rows)
    with full_disk_is_an_error(version.folder), StagedChanges() as changes:
        change.take_away(changes, left, keep)
        change.put_back_tags(changes, version)
        for folder in version.rows:
            changes.rename_folder(folder, directory.path / TASKS / folder.name)
        change.result.restored = [task.name for row in restored for task in row.file.tasks]
        change.stage_derived(changes, [*before, *restored])
        changes.remove_folder(version.folder)
    change.clean()
    return change.result


class _Change:
    """One undo: what it takes away, and the tags that are left."""

    def __init__(
        self, directory: RunDirectory, folders: list[Path], names: list[RowName], kept: Mapping[str, Undone]
    ) -> None:
        self.directory, self.folders, self.names, self.kept = directory, folders, names, kept
        self.tags: dict[str, Tag] = read_tags(directory.path / TAGS)
        self.result = UndoResult()
        self._tags_before = dict(self.tags)

    def take_away(self, changes: StagedChanges, left: int, keep: bool) -> None:
        """Remove the rows after the first ``left``, or move them to where they are kept."""
        going = self.folders[left:]
        if not going:
            return
        tags = {name: tag for name, tag in self.tags.items() if any(is_of(tag, folder) for folder in going)}
        staying = self.folders[:left]
        self.tags = {name: tag for name, tag in self.tags.items() if any(is_of(tag, folder) for folder in staying)}
        self.result.tags = list(tags)
        self.result.removed = [name for row in self.names[left:] for name in row.tasks or (row.folder,)]
        if not keep:
            for folder in reversed(going):
                changes.remove_folder(folder)
            return
        taken = [*self.kept, *self._tags_before, *(task for row in self.names for task in row.tasks)]
        chain = chain_of([staying[-1], *going])
        # An undo that was interrupted has kept the last of these rows; they are put together again.
        begun = next((version for version in self.kept.values() if version.continues(chain)), None)
        self.result.kept_as = undone_name(self.names[left].short, taken) if begun is None else begun.name
        target = self.directory.path / UNDONE / self.result.kept_as
        if begun is None:
            write(changes.folder(target) / UNDONE_RECORD, undone_bytes(chain, tags))
        else:  # with the tags that were given since
            changes.write(target / UNDONE_RECORD, undone_bytes(begun.file.chain, begun.file.tags | tags))
        for folder in reversed(going):
            changes.rename_folder(folder, target / folder.name)

    def put_back_tags(self, changes: StagedChanges, version: Undone) -> None:
        """Put back the tags of rows that were kept: before the rows, whose record goes when all are in their place."""
        back = {
            name: tag
            for name, tag in version.file.tags.items()
            if name not in self.tags and any(is_of(tag, folder) for folder in version.rows)
        }
        self.tags |= back
        self.result.tags_restored = list(back)
        self.stage_tags(changes)

    def stage_derived(self, changes: StagedChanges, rows: Sequence[Row]) -> None:
        """Prepare the files beside the rows."""
        stage_derived(changes, self.directory.path, rows, self.directory.references(), self.directory.info)

    def stage_tags(self, changes: StagedChanges) -> None:
        """Prepare ``tags.json``, if tags came or went."""
        if self.tags != self._tags_before:
            changes.write(self.directory.path / TAGS, tags_bytes(self.tags))

    def clean(self) -> None:
        """Delete the checkpoints of a task that had begun, and read the rows again when they are needed."""
        self.directory.reload()
        checkpoint.clear(self.directory.path)
