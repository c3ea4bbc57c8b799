"""The run directory: what survives a crash.

A learned row is one folder under ``tasks/``, complete from the moment it is renamed into place. Everything beside
``tasks/`` except ``run.yaml`` and ``references.json`` can be made again from those folders;
:meth:`RunDirectory.repair` does so.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

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
from merganser.files.documents import Malformed, parse_yaml
from merganser.files.temporary_names import PARTIAL, temporary_path
from merganser.metrics.matrix import ScoreMatrix
from merganser.metrics.score import Score
from merganser.runs import checkpoint
from merganser.runs.checksums import CHANGED, is_clutter, sha256_of
from merganser.runs.derived import LEDGER, MODEL, OUTDATED, SCORES, derived_problems, stage_derived
from merganser.runs.links import LOCK, TASKS, refuse_links
from merganser.runs.lock import RunLock
from merganser.runs.reading import damaged, problem, read_text
from merganser.runs.record import FORMAT, RunInfo, RunRecord, ScoresFile
from merganser.runs.references import REFERENCES, read_references, write_references
from merganser.runs.rows import ROW_FOLDER, Row, folder_name, read_row, row_folders, unfinished_rows
from merganser.runs.summary import run_record, score_matrix, scores_file

RUN = "run.yaml"

BESIDE = (SCORES, LEDGER, MODEL, REFERENCES, "report.html", "tensorboard", RUN)
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
        self._references: dict[str, Score] | None = None

    @staticmethod
    def exists(path: Path) -> bool:
        """Whether there is a run at ``path``."""
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
        file = path / RUN
        if not file.is_file():
            if (path / TASKS).is_dir() and row_folders(path / TASKS):
                raise InputError(f"'{path}' is damaged: it has tasks and no run.yaml.", "Restore run.yaml from a copy.")
            raise InputError(f"There is no run in '{path}' (no run.yaml).", "Start one with `merganser run`.")
        try:
            value = parse_yaml(read_text(file))
        except Malformed as error:
            raise damaged(file, f"not YAML: {error}") from error
        if not isinstance(value, dict):
            raise damaged(file, "no mapping in it")
        written_format = value.get("format")
        if isinstance(written_format, int) and written_format < FORMAT:
            raise InputError(
                f"The run '{path}' was written by an older version (format {written_format}; this version reads "
                f"{FORMAT}).",
                "Learn its tasks again in a new folder, or open it with the version that run.yaml names.",
            )
        if isinstance(written_format, int) and written_format > FORMAT:
            raise InputError(
                f"The run '{path}' was written by a newer version (format {written_format}; this version reads "
                f"{FORMAT}).",
                "Upgrade: pip install --upgrade merganser.",
            )
        try:
            info = RunInfo.model_validate(value)
        except ValidationError as error:
            raise damaged(file, problem(error)) from error
        if not (path / "tasks").is_dir():
            raise damaged(path / "tasks", "it is missing")
        return cls(path, info)

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
        for name in (*BESIDE, LOCK):
            remove(self.path / name)
        self.lock.release()
        # What is not of the run stays, in its folder.
        for folder in (tasks, self.path):
            if not folder.is_symlink() and not any(folder.iterdir()):
                folder.rmdir()

    def foreign_files(self) -> list[str]:
        """Return the names of files and folders beside ``tasks/`` that are not of the run."""
        known = {TASKS, LOCK, checkpoint.FOLDER, *BESIDE}
        names = [path.name for path in sorted(self.path.iterdir())]
        return [n for n in names if not (n in known or is_clutter(n) or n.removesuffix(PARTIAL) in known)]

    def discard_if_empty(self) -> None:
        """:meth:`discard` if no row was completed. Waits for no other process, as :meth:`abandon_row`."""
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
            rows = [read_row(folder) for folder in row_folders(self.path / TASKS)]
            self._check_run_file(rows)
            self._rows = rows
        return self._rows

    def reload(self) -> None:
        """Forget rows and references, which are read again at their next use."""
        self._rows = self._references = None

    @processes.main_only
    def begin_row(self, row: int, learned: list[str]) -> Path:
        """Create an empty folder to write a row into; it counts only after :meth:`commit_row`.

        Raises:
            InputError: something that no run has written has the folder's temporary name.
        """
        folder = temporary_path(self.path / TASKS / folder_name(row, learned))
        if folder.is_symlink() or folder.is_file():
            raise InputError(f"'{folder}' is not of this run, and in its way.", "Move it elsewhere.")
        remove(folder)
        return make_folder(folder)

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

    def undo_row(self, to: str | None = None) -> list[str]:
        """Take back the last row, or all rows after one: their weights, memory, scores and merges.

        The caller holds the lock. Interrupted, some of the rows are taken back, the last ones first, or none. The
        checkpoints of an unfinished task are deleted, too. ``run.yaml`` and the row that becomes the last are checked
        first; those that go may be damaged.

        Args:
            to: the folder of the row that becomes the last; default: of the last but one.

        Returns:
            The names of the tasks that were taken back; of a damaged row the name of its folder.

        Raises:
            InputError: there is nothing to take back, or a file that stays is damaged; nothing was taken back.
            RunError: the disk is full; nothing was taken back.
        """
        folders = row_folders(self.path / TASKS)
        if len(folders) < 2:
            raise InputError(f"No task was learned in '{self.path}'.", "There is nothing to undo.")
        left = len(folders) - 1 if to is None else self._position(to, folders) + 1
        remaining = [read_row(folder) for folder in folders[:left]]
        remaining[-1].check()
        self._check_run_file(remaining)
        names = [name for folder in folders[left:] for name in _task_names(folder)]
        with full_disk_is_an_error(folders[-1]), StagedChanges() as changes:
            for folder in reversed(folders[left:]):
                changes.remove_folder(folder)
            stage_derived(changes, self.path, remaining, self.references(), self.info)
        self._rows = remaining
        checkpoint.clear(self.path)
        return names

    def _position(self, name: str, folders: list[Path]) -> int:
        """Return the position of a row before the last."""
        names = [folder.name for folder in folders]
        if name not in names:
            raise InputError(f"There is no '{name}' under '{self.path / TASKS}'.", f"Its rows are {', '.join(names)}.")
        if name == names[-1]:
            raise InputError(f"'{name}' is the last row of '{self.path}'.", "There is nothing to undo.")
        return names.index(name)

    def _check_run_file(self, rows: list[Row]) -> None:
        """Compare ``run.yaml`` with the checksum in the last row."""
        recorded = rows[-1].file.run_sha256 if rows else ""
        if recorded and sha256_of(self.path / RUN) != recorded:
            raise damaged(self.path / RUN, CHANGED)

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


def _task_names(folder: Path) -> list[str]:
    """Return the names of a row's tasks; of a damaged row the name of its folder."""
    try:
        return [task.name for task in read_row(folder).file.tasks]
    except InputError:
        return [folder.name]
