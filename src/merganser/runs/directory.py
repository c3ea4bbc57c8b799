"""The run directory: what survives a crash, and how it is read back.

A learned row is one folder under ``tasks/``, complete from the moment it is renamed into place. Everything beside
``tasks/`` except ``run.yaml`` can be made again from those folders; :meth:`RunDirectory.repair` does so.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import yaml
from pydantic import ValidationError

from merganser import processes
from merganser.errors import InputError, MerganserError
from merganser.files.atomic import (
    FULL,
    PARTIAL,
    full_disk_is_an_error,
    replace_folder,
    sync_tree,
    write_json,
    write_json_lines,
    write_yaml,
)
from merganser.metrics.continual import summary
from merganser.metrics.matrix import ScoreMatrix
from merganser.metrics.score import Score
from merganser.runs.checkpoint import clear, folder_of, sweep
from merganser.runs.lock import RunLock
from merganser.runs.reading import damaged, problem, read_record, read_row_lines, read_text
from merganser.runs.record import (
    FORMAT,
    KeptExample,
    MergeRecord,
    RowFile,
    RunInfo,
    RunRecord,
    ScoresFile,
    SignalRecord,
)

MADE_FROM_ROWS = ("scores.json", "ledger.jsonl", "model", "references.json")
"""What a run has beside ``tasks/`` and ``run.yaml``."""

ROW_FOLDER = re.compile(r"(\d{2,})-(.+)")


class RunDirectory:
    """One run on disk.

    Use :meth:`create` or :meth:`open`. Reading needs no lock; changing needs :attr:`lock`. Of several
    processes that train together all call what changes the run, and process 0 does it.
    """

    def __init__(self, path: Path, info: RunInfo) -> None:
        self.path = path
        self.info = info
        self.lock = RunLock(path)

    @staticmethod
    def exists(path: Path) -> bool:
        """Whether there is a run at ``path``."""
        return (path / "run.yaml").is_file()

    @classmethod
    def create(cls, path: Path, info: RunInfo) -> RunDirectory:
        """Start a run in a folder that is new or empty, and hold its lock.

        Raises:
            InputError: the folder holds something else, cannot be written, or another process just began there.
        """
        directory = cls(path, info)
        directory._begin()
        directory.lock.acquire()
        processes.on_main(lambda: write_yaml(path / "run.yaml", info.model_dump()))
        return directory

    @processes.main_only
    def _begin(self) -> None:
        self.check_new(self.path)
        with full_disk_is_an_error(self.path):
            try:
                (self.path / "tasks").mkdir(parents=True, exist_ok=True)
            except OSError as error:
                if error.errno in FULL:
                    raise
                raise InputError(
                    f"Cannot create '{self.path}': {error.strerror}.", "Choose a folder that can be written."
                ) from error

    def discard(self) -> None:
        """Take back :meth:`create` and everything after it; the caller holds the lock, and lets go of it here."""
        # run.yaml goes last: what is left if this is interrupted is still a run.
        for name in ("checkpoint", *MADE_FROM_ROWS, "report.html", "tasks", "run.yaml"):
            path = self.path / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        (self.path / ".lock").unlink(missing_ok=True)
        self.lock.release()
        if not any(self.path.iterdir()):
            self.path.rmdir()

    def discard_if_empty(self) -> None:
        """:meth:`discard` if no row was completed. Waits for no other process, as :meth:`abandon_row`."""
        if processes.is_main() and not self.row_folders():
            self.discard()

    @staticmethod
    @processes.main_only
    def check_new(path: Path) -> None:
        """Refuse a folder that holds something else than the beginnings of a run.

        Raises:
            InputError: it does.
        """
        if not path.exists():
            return
        strange = [] if path.is_dir() else [path]
        if path.is_dir():
            beginnings = {".lock", "tasks", f"run.yaml{PARTIAL}"}
            strange = [file for file in path.iterdir() if file.name not in beginnings]
        if any(ROW_FOLDER.fullmatch(folder.name) for folder in path.glob("tasks/*")) and not RunDirectory.exists(path):
            raise InputError(
                f"'{path}' is a damaged run: it has tasks and no run.yaml.",
                "Restore run.yaml from a copy, or choose a new folder.",
            )
        if strange:
            raise InputError(f"'{path}' exists and is not a run.", "Choose a new folder.")

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Open an existing run.

        Raises:
            InputError: there is no run, it is damaged, or a newer version wrote it.
        """
        file = path / "run.yaml"
        if not file.is_file():
            raise InputError(f"There is no run in '{path}' (no run.yaml).", "Start one with `merganser run`.")
        try:
            value = yaml.safe_load(read_text(file))
        except yaml.YAMLError as error:
            raise damaged(file, "not YAML") from error
        if not isinstance(value, dict):
            raise damaged(file, "no mapping in it")
        found = value.get("format")
        if isinstance(found, int) and found > FORMAT:
            raise InputError(
                f"The run '{path}' was written by a newer version (format {found}; this version knows {FORMAT}).",
                "Upgrade: pip install --upgrade merganser.",
            )
        try:
            info = RunInfo.model_validate(value)
        except ValidationError as error:
            raise damaged(file, problem(error)) from error
        if not (path / "tasks").is_dir():
            raise damaged(path / "tasks", "it is missing")
        return cls(path, info)

    # -- rows -------------------------------------------------------------------------------------------------------

    def row_folders(self) -> list[Path]:
        """The complete rows in order.

        Raises:
            InputError: a row between two others is missing, or there twice.
        """
        folders: dict[int, Path] = {}
        for folder in sorted((self.path / "tasks").iterdir()):
            match = ROW_FOLDER.fullmatch(folder.name)
            if not match or folder.name.endswith(PARTIAL):
                continue
            if other := folders.get(int(match[1])):
                raise InputError(
                    f"'{self.path / 'tasks'}' has two rows with the same number: {other.name} and {folder.name}.",
                    "Take the one away that does not belong to this run.",
                )
            folders[int(match[1])] = folder
        if sorted(folders) != list(range(len(folders))):
            raise InputError(
                f"The rows under '{self.path / 'tasks'}' are numbered {sorted(folders)}; one is missing.",
                "Restore it, or delete the rows after the gap.",
            )
        return [folders[number] for number in sorted(folders)]

    def read_row(self, folder: Path) -> RowFile:
        """``row.json`` of a row's folder."""
        return read_record(folder / "row.json", RowFile)

    def rows(self) -> list[RowFile]:
        """``row.json`` of all rows, row 0 first."""
        return [self.read_row(folder) for folder in self.row_folders()]

    def examples(self, folder: Path, name: str) -> list[KeptExample]:
        """The examples in a row's ``memory.jsonl`` or ``test.jsonl``; the row before training has none."""
        return [] if is_start(folder) else read_row_lines(folder, name, KeptExample)

    @processes.main_only
    def begin_row(self, row: int, name: str) -> Path:
        """An empty folder to write a row into; it counts only after :meth:`commit_row`."""
        folder = self.path / "tasks" / f"{row:02d}-{name}{PARTIAL}"
        if folder.exists():
            shutil.rmtree(folder)
        with full_disk_is_an_error(folder):
            folder.mkdir(parents=True)
        return folder

    @processes.main_only
    def commit_row(self, folder: Path) -> Path:
        """Make a row count: flush it, rename it, and bring the files beside ``tasks/`` up to date.

        The checkpoints of its tasks go.

        Raises:
            RunError: the disk is full. Everything that needs space comes before the first rename: the run is unchanged.
        """
        finished = folder.with_name(folder.name.removesuffix(PARTIAL))
        with full_disk_is_an_error(folder):
            sync_tree(folder)
        self._prepare([*self.row_folders(), folder])
        os.replace(folder, finished)
        self._put()
        clear(folder_of(self.path))
        return finished

    def undo_row(self) -> RowFile:
        """Take back the last row: its weights, memory, scores and merges; the caller holds the lock.

        Interrupted, it is either not done or done: the row counts until it is renamed away. Checkpoints of a task that
        was being learned after it go, too.

        Returns:
            What was taken back.

        Raises:
            InputError: no task was learned.
            RunError: the disk is full; nothing was taken back.
        """
        folders = self.row_folders()
        if len(folders) < 2:
            raise InputError(f"No task was learned in '{self.path}'.", "There is nothing to take back.")
        last = folders[-1]
        row = self.read_row(last)
        self._prepare(folders[:-1])
        gone = last.with_name(last.name + PARTIAL)
        os.replace(last, gone)
        self._put()
        shutil.rmtree(gone)
        clear(folder_of(self.path))
        return row

    def abandon_row(self, folder: Path) -> None:
        """Throw away a row that was not committed. Waits for no other process: who failed may be alone with it."""
        if processes.is_main():
            shutil.rmtree(folder, ignore_errors=True)

    # -- files made from the rows -----------------------------------------------------------------------------------

    def matrix(self, rows: Iterable[RowFile] | None = None) -> ScoreMatrix:
        """The score matrix of the rows."""
        rows = self.rows() if rows is None else list(rows)
        names: list[str] = [task.name for row in rows for task in row.tasks]
        for row in rows:
            names += [name for name in row.scores.scores if name not in names]
        matrix = ScoreMatrix(names)
        for row in rows:
            matrix.add_row(row.scores.learned, row.scores.scores)
        for row in rows:
            for number, scores in row.earlier.items():
                for name, score in scores.items():
                    matrix.set(number, name, score)
        return matrix

    def references(self) -> dict[str, Score]:
        """Scores of single-task models, as far as they were measured."""
        file = self.path / "references.json"
        if not file.exists():
            return {}
        try:
            return {name: Score.model_validate(score) for name, score in json.loads(file.read_text()).items()}
        except (ValueError, AttributeError) as error:
            raise damaged(file, "no scores in it") from error

    @processes.main_only
    def write_references(self, references: dict[str, Score]) -> None:
        """Keep scores of single-task models and bring the summary up to date."""
        write_json(self.path / "references.json", {name: score.model_dump() for name, score in references.items()})
        self.refresh()

    def scores(self, folders: Iterable[Path] | None = None) -> ScoresFile:
        """The whole matrix with its summary; of these rows, or of all that count."""
        rows = [self.read_row(folder) for folder in (self.row_folders() if folders is None else folders)]
        matrix = self.matrix(rows)
        references = self.references()
        metrics: dict[str, str] = {}
        for row in rows:
            metrics.update(row.metrics)
        return ScoresFile(
            tasks=list(matrix.tasks),
            metrics=metrics,
            rows=list(matrix.rows),
            references=references,
            summary=summary(matrix, references),
        )

    def refresh(self) -> None:
        """Write ``scores.json``, ``ledger.jsonl`` and ``model/`` as the rows say."""
        folders = self.row_folders()
        if folders:
            self._prepare(folders)
            self._put()

    def _prepare(self, folders: list[Path]) -> None:
        """Write what belongs beside these rows under names that do not count yet."""
        try:
            write_json(self._unfinished("scores.json"), self.scores(folders).model_dump())
            merges = [merge.model_dump() for merge in self.merges(folders)]
            write_json_lines(self._unfinished("ledger.jsonl"), merges)
            model = self._unfinished("model")
            shutil.rmtree(model, ignore_errors=True)
            with full_disk_is_an_error(model):
                shutil.copytree(folders[-1] / "adapter", model)
                (model / "ROW").write_text(folders[-1].name.removesuffix(PARTIAL) + "\n", encoding="utf-8")
                sync_tree(model)
        except BaseException:
            self._drop_unfinished()
            raise

    def _put(self) -> None:
        """Put what :meth:`_prepare` wrote into its place; ``model/`` last, whose mark says that all is up to date."""
        for name in ("scores.json", "ledger.jsonl"):
            os.replace(self._unfinished(name), self.path / name)
        replace_folder(self._unfinished("model"), self.path / "model")

    def _unfinished(self, name: str) -> Path:
        return self.path / f"{name}{PARTIAL}"

    def _drop_unfinished(self) -> None:
        for leftover in sorted(self.path.glob(f"*{PARTIAL}")):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()

    @processes.main_only
    def repair(self) -> list[str]:
        """Throw away what was not finished and bring the files beside ``tasks/`` up to date.

        Returns:
            One sentence per thing that was done.
        """
        notes = []
        self._drop_unfinished()
        folders = self.row_folders()
        goes_on = sweep(folder_of(self.path), row=len(folders))
        for folder in sorted((self.path / "tasks").glob(f"*{PARTIAL}")):
            match = ROW_FOLDER.fullmatch(folder.name.removesuffix(PARTIAL))
            name = match[2] if match else folder.name
            shutil.rmtree(folder)
            # Whether a checkpoint can be used is found out, and said, when the task begins.
            then = "" if goes_on else "; it starts again from the task before it"
            notes.append(f"'{name}' had been interrupted{then}.")
        if folders and not self._is_fresh(folders[-1]):
            self.refresh()
            notes.append("scores, ledger and model were brought up to date with the tasks learned.")
        return notes

    def _is_fresh(self, last: Path) -> bool:
        marker = self.path / "model" / "ROW"
        if not marker.is_file() or marker.read_text(encoding="utf-8").strip() != last.name:
            return False
        ledger, scores = self.path / "ledger.jsonl", self.path / "scores.json"
        if not (ledger.is_file() and scores.is_file()):
            return False
        try:
            return ScoresFile.model_validate_json(scores.read_text(encoding="utf-8")) == self.scores()
        except (ValidationError, MerganserError):
            return False

    def merges(self, folders: Iterable[Path] | None = None) -> list[MergeRecord]:
        """All merges of these rows, or of all that count."""
        folders = self.row_folders() if folders is None else folders
        trained = [folder for folder in folders if not is_start(folder)]
        return [merge for folder in trained for merge in read_row_lines(folder, "merges", MergeRecord)]

    def record(self) -> RunRecord:
        """Everything the report needs."""
        folders = self.row_folders()
        rows = [self.read_row(folder) for folder in folders]
        signals = {}
        for folder, row in zip(folders, rows, strict=True):
            # Tasks learned together share one training; their signals are kept under the first one's name.
            if row.tasks:
                signals[row.tasks[0].name] = read_row_lines(folder, "signals", SignalRecord)
        return RunRecord(
            path=str(self.path),
            info=self.info,
            tasks=[task for row in rows for task in row.tasks],
            scores=self.scores(),
            merges=self.merges(),
            signals=signals,
        )


def is_start(folder: Path) -> bool:
    """Whether a folder under ``tasks/`` is the row before any training, in which nothing was learned."""
    match = ROW_FOLDER.fullmatch(folder.name)
    return match is not None and int(match[1]) == 0


def read_run(path: Path | str) -> RunRecord:
    """Read a whole run without changing it.

    Raises:
        InputError: there is no run, nothing was learned or measured yet, it is damaged, or a newer version wrote it.
    """
    directory = RunDirectory.open(Path(path))
    if not directory.row_folders():
        raise InputError(f"Nothing was measured yet in '{path}'.", "Start it again with the command that made it.")
    return directory.record()
