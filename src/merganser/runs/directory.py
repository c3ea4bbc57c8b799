"""The run directory: what survives a crash.

A learned row is one folder under ``tasks/``, complete from the moment it is renamed into place. Everything beside
``tasks/`` except ``run.yaml``, ``references.json``, ``tags.json`` and ``undone/`` can be made again from those folders;
:meth:`RunDirectory.repair` does so.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from merganser import processes
from merganser.errors import InputError
from merganser.files.atomic import (
    StagedChanges,
    full_disk_is_an_error,
    make_folder,
    remove,
    sweep_all,
    write_yaml,
)
from merganser.files.temporary_names import PARTIAL, temporary_path
from merganser.metrics.matrix import ScoreMatrix
from merganser.metrics.score import Score
from merganser.runs import checkpoint
from merganser.runs.checksums import is_clutter
from merganser.runs.derived import LEDGER, MODEL, OUTDATED, SCORES, derived_problems, stage_derived
from merganser.runs.links import LOCK, TASKS, UNDONE, refuse_links
from merganser.runs.lock import RunLock
from merganser.runs.record import RunInfo, RunRecord, ScoresFile
from merganser.runs.references import REFERENCES, read_references, write_references
from merganser.runs.removal import finish_removals
from merganser.runs.row_names import RowName, position
from merganser.runs.rows import ROW_FOLDER, Row, folder_name, read_row, row_folders, unfinished_rows
from merganser.runs.run_file import RUN, check_run_file, read_run_file
from merganser.runs.summary import run_record, score_matrix, scores_file
from merganser.runs.tags import TAGS, is_of, read_tags
from merganser.runs.undone import Undone, read_undone, sweep_undone

BESIDE = (SCORES, LEDGER, MODEL, REFERENCES, TAGS, "report.html", "tensorboard", RUN)
"""What a run has beside ``tasks/``."""


class RunDirectory:
    """One run on disk.

    Use :meth:`create` or :meth:`open`. Reading needs no lock; changing needs :attr:`lock`. Of several processes that
    train together all call the methods that change the run, and process 0 changes it.

    Rows and references are read at first use, and kept: :meth:`reload` reads them again.
    """

    def __init__(self, path: Path, info: RunInfo) -> None:
        self.path = path
        self.info = info
        self.lock = RunLock(path)
        self._rows: list[Row] | None = None
        self._until: str | None = None
        self._references: dict[str, Score] | None = None

    @staticmethod
    def exists(path: Path) -> bool:
        """Return whether there is a run at ``path``."""
        return (path / RUN).is_file()

    @classmethod
    def create(cls, path: Path, info: RunInfo) -> RunDirectory:
        """Start a run in a folder that is new or empty, and hold its lock.

        Raises:
            InputError: the folder holds something else, cannot be written, or another process just began there.
        """
        directory = cls(path, info)
        directory._make_folders()
        directory.lock.acquire()
        processes.on_main(lambda: write_yaml(path / RUN, info.model_dump()))
        return directory

    @processes.main_only
    def _make_folders(self) -> None:
        self.check_new(self.path)
        refuse_links(self.path)
        make_folder(self.path / TASKS)

    @staticmethod
    @processes.main_only
    def check_new(path: Path) -> None:
        """Refuse a folder that holds anything but an unfinished :meth:`create`.

        Raises:
            InputError: it does.
        """
        if not path.exists():
            return
        foreign = [] if path.is_dir() else [path]
        if path.is_dir():
            beginnings = {LOCK, "tasks", temporary_path(path / RUN).name}
            foreign = [file for file in path.iterdir() if file.name not in beginnings and not is_clutter(file.name)]
        rows = (ROW_FOLDER.fullmatch(folder.name) for folder in path.glob("tasks/*") if folder.is_dir())
        if any(rows) and not RunDirectory.exists(path):
            raise InputError(
                f"'{path}' is a damaged run: it has tasks and no run.yaml.",
                "Restore run.yaml from a copy, or choose a new folder.",
            )
        if foreign:
            raise InputError(f"'{path}' exists and is not a run.", "Choose a new folder.")

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Open an existing run.

        Raises:
            InputError: there is no run, it is damaged, or a newer version wrote it.
        """
        return cls(path, read_run_file(path))

    def has_learned(self) -> bool:
        """Return whether a task was learned that is in the run, or that undo has kept.

        Raises:
            InputError: a row is missing, or the record of what undo has kept is damaged.
        """
        return len(row_folders(self.path / TASKS)) > 1 or bool(self.undone())

    def discard(self) -> None:
        """Delete the run and release its lock, which the caller holds.

        Raises:
            InputError: a link leads out of the run.
        """
        refuse_links(self.path)
        self._sweep()
        tasks = self.path / TASKS
        # Interrupted, it leaves a run with fewer rows, or the beginnings of one.
        for row in sorted([*row_folders(tasks), *unfinished_rows(tasks)], reverse=True):
            remove(row)
        checkpoint.clear(self.path)
        for name in (*BESIDE, UNDONE, LOCK):
            remove(self.path / name)
        self.lock.release()
        # What is not of the run stays, in its folder.
        for folder in (tasks, self.path):
            if not folder.is_symlink() and not any(folder.iterdir()):
                folder.rmdir()

    def foreign_files(self) -> list[str]:
        """Return the names of files and folders beside ``tasks/`` that are not of the run."""
        known = {TASKS, LOCK, checkpoint.FOLDER, UNDONE, *BESIDE}
        names = [path.name for path in sorted(self.path.iterdir())]
        return [n for n in names if not (n in known or is_clutter(n) or n.removesuffix(PARTIAL) in known)]

    def discard_if_empty(self) -> None:
        """Discard the run if no row was completed. Waits for no other process, as :meth:`abandon_row`."""
        if processes.is_main() and not row_folders(self.path / TASKS):
            self.discard()

    # -- rows -------------------------------------------------------------------------------------------------------

    @property
    def rows(self) -> list[Row]:
        """The complete rows, row 0 first.

        Raises:
            InputError: a row is damaged, is there twice, or one between two others is missing.
        """
        if self._rows is None:
            folders = row_folders(self.path / TASKS)
            if self._until is not None:
                folders = folders[: [folder.name for folder in folders].index(self._until) + 1]
            rows = [read_row(folder) for folder in folders]
            check_run_file(self.path, rows)
            self._rows = rows
        return self._rows

    def reload(self) -> None:
        """Forget rows and references, which are read again at their next use."""
        self._rows = self._references = None

    def find(self, name: str) -> Row:
        """Return the row that a folder of ``tasks/``, a task that was learned in it or a tag names.

        Raises:
            InputError: there is none.
        """
        rows = self.rows
        names = [RowName(row.folder.name, tuple(task.name for task in row.file.tasks)) for row in rows]
        return rows[position(name, names, {tag: row.folder.name for tag, row in self.tags().items()}, self.path)]

    def up_to(self, name: str) -> RunDirectory:
        """Return the run as it was after a row, for reading.

        Args:
            name: as for :meth:`find`.

        Raises:
            InputError: there is no such row, or it is the one before any training.
        """
        row = self.find(name)
        if row.is_start:
            raise InputError(f"'{row.folder.name}' is the row before any training.", "Name a row with a task.")
        earlier = RunDirectory(self.path, self.info)
        earlier._until = row.folder.name
        return earlier

    def tags(self) -> dict[str, Row]:
        """Return the row of every tag; tags of rows that are not there are left out.

        Raises:
            InputError: ``tags.json`` is damaged.
        """
        tags = read_tags(self.path / TAGS)
        return {name: row for name, tag in tags.items() for row in self.rows if is_of(tag, row.folder)}

    def undone(self) -> dict[str, Undone]:
        """Return the rows that undo took away and kept, by the name to go back to.

        Raises:
            InputError: a record of them is damaged.
        """
        return read_undone(self.path)

    @processes.main_only
    def path_of_new_row(self, row: int, learned: list[str]) -> Path:
        """Return the folder to write a row into; it counts only after :meth:`commit_row`.

        Raises:
            InputError: something that no run has written has the folder's temporary name.
        """
        folder = temporary_path(self.path / TASKS / folder_name(row, learned))
        if folder.is_symlink() or folder.is_file():
            raise InputError(f"'{folder}' is not of this run, and in its way.", "Move it elsewhere.")
        return folder

    @processes.main_only
    def begin_row(self, folder: Path) -> None:
        """Create the empty folder of a new row, under whatever calls :meth:`abandon_row` after an error or Ctrl-C."""
        remove(folder)
        make_folder(folder)

    def commit_row(self, folder: Path) -> Row:
        """Make a row count: flush it, rename it, and bring the files beside ``tasks/`` up to date.

        The checkpoints of its tasks are deleted.

        Raises:
            InputError: a file of the row is damaged; the run is unchanged.
            RunError: the disk is full. Everything that needs space comes before the first rename: the run is unchanged.
        """
        rows = self.rows
        row = processes.run_collectively(lambda: read_row(folder))
        row = replace(row, folder=processes.on_main(lambda: self._commit(rows, row)))
        rows.append(row)
        return row

    def _commit(self, rows: list[Row], row: Row) -> Path:
        target = row.folder.with_name(row.folder.name.removesuffix(PARTIAL))
        with full_disk_is_an_error(target), StagedChanges() as changes:
            changes.rename_folder(row.folder, target)
            stage_derived(changes, self.path, [*rows, row], self.references(), self.info)
        checkpoint.clear(self.path)
        return target

    def abandon_row(self, folder: Path) -> None:
        """Delete a row that was not committed. Waits for no other process: the one that failed may be alone in it."""
        if processes.is_main():
            remove(folder)

    # -- files derived from the rows --------------------------------------------------------------------------------

    def matrix(self) -> ScoreMatrix:
        """Return the score matrix of the rows."""
        return score_matrix([row.file for row in self.rows])

    def scores(self) -> ScoresFile:
        """Return the whole matrix with its summary."""
        return scores_file([row.file for row in self.rows], self.references())

    def references(self) -> dict[str, Score]:
        """Return scores of single-task models, as far as they were measured.

        Raises:
            InputError: ``references.json`` is damaged.
        """
        if self._references is None:
            self._references = read_references(self.path / REFERENCES)
        return dict(self._references)

    def write_references(self, references: dict[str, Score]) -> None:
        """Keep scores of single-task models and bring the summary up to date."""
        processes.on_main(lambda: self._write_references(references))
        self._references = dict(references)

    def _write_references(self, references: dict[str, Score]) -> None:
        write_references(self.path / REFERENCES, references)
        self._references = dict(references)
        self.refresh()

    def refresh(self) -> None:
        """Write ``scores.json``, ``ledger.jsonl`` and ``model/`` from the rows."""
        if self.rows:
            with full_disk_is_an_error(self.path / MODEL), StagedChanges() as changes:
                stage_derived(changes, self.path, self.rows, self.references(), self.info)

    @processes.main_only
    def repair(self) -> list[str]:
        """Delete what was not finished and bring the files beside ``tasks/`` up to date.

        Returns:
            One sentence per repair.

        Raises:
            InputError: a link leads out of the run, or a file of the run is damaged that cannot be made again.
        """
        return [*self.tidy(), *self._bring_up_to_date()]

    def tidy(self) -> list[str]:
        """Delete what was not finished; one sentence per task.

        Raises:
            InputError: a link leads out of the run.
        """
        refuse_links(self.path)
        notes = []
        self.reload()
        self._sweep()
        resumes = checkpoint.sweep(self.path, row=len(row_folders(self.path / TASKS)))
        for folder in unfinished_rows(self.path / TASKS):
            remove(folder)
            # Whether a checkpoint can be used is only known, and reported, when the task begins.
            then = "" if resumes else "; it starts again from the task before it"
            notes.append(f"'{folder.name.removesuffix(PARTIAL).split('-', 1)[1]}' had been interrupted{then}.")
        finish_removals(row_folders(self.path / TASKS))
        sweep_undone(self.path)
        return notes

    def _sweep(self) -> None:
        """Delete unfinished files and folders beside ``tasks/``."""
        sweep_all(self.path / name for name in (*BESIDE, checkpoint.FOLDER))

    def _bring_up_to_date(self) -> list[str]:
        problems = derived_problems(self.path, self.rows, self.references()) if self.rows else {}
        if not problems:
            return []
        self.refresh()
        changed = [f"'{name}' was made again: {problem}." for name, problem in problems.items() if problem != OUTDATED]
        return changed or ["Scores, ledger and model were brought up to date with the tasks learned."]

    def record(self) -> RunRecord:
        """Return everything a report needs.

        Raises:
            InputError: a file of the run is damaged.
        """
        return run_record(str(self.path), self.info, self.rows, self.scores())


def read_run(path: Path | str) -> RunRecord:
    """Read a whole run without changing it.

    Raises:
        InputError: there is no run, nothing was learned or measured yet, it is damaged, or a newer version wrote it.
    """
    directory = RunDirectory.open(Path(path))
    if not directory.rows:
        raise InputError(f"Nothing was measured yet in '{path}'.", "Start it again with the command that made it.")
    return directory.record()
