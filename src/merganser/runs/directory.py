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
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from merganser.errors import InputError, MerganserError
from merganser.metrics.continual import summary
from merganser.metrics.matrix import ScoreMatrix
from merganser.runs.atomic import (
    PARTIAL,
    full_disk_is_an_error,
    replace_folder,
    sync_tree,
    write_json,
    write_json_lines,
    write_yaml,
)
from merganser.runs.lock import RunLock
from merganser.runs.record import (
    FORMAT,
    KeptExample,
    MergeRecord,
    MetricRecord,
    RowFile,
    RunInfo,
    RunRecord,
    Score,
    ScoresFile,
    SignalRecord,
)

ROW_FOLDER = re.compile(r"(\d{2,})-(.+)")
RecordT = TypeVar("RecordT", bound=BaseModel)


def damaged(path: Path, why: str) -> InputError:
    """The error for a file of a run that cannot be read."""
    return InputError(
        f"'{path}' is damaged: {why}.",
        "Restore it from a copy; or delete its folder under tasks/, if it is the last, to go back to the row before.",
    )


def read_lines(path: Path, kind: type[RecordT]) -> list[RecordT]:
    """The records of a JSON-lines file; an absent file has none.

    Raises:
        InputError: a line is not such a record (named).
    """
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            records.append(kind.model_validate_json(line))
        except ValidationError as error:
            raise damaged(path, f"line {number}: {error.errors()[0]['msg']}") from error
    return records


class RunDirectory:
    """One run on disk.

    Use :meth:`create` or :meth:`open`. Reading needs no lock; changing needs :attr:`lock`.
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
        cls.check_new(path)
        try:
            (path / "tasks").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"cannot create '{path}': {error.strerror}.", "Choose a folder that can be written."
            ) from error
        directory = cls(path, info)
        directory.lock.acquire()
        write_yaml(path / "run.yaml", info.model_dump())
        return directory

    @staticmethod
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
            raise InputError(f"there is no run in '{path}' (no run.yaml).", "Start one with `merganser run`.")
        try:
            value = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise damaged(file, "not YAML") from error
        if not isinstance(value, dict):
            raise damaged(file, "no mapping in it")
        found = value.get("format")
        if isinstance(found, int) and found > FORMAT:
            raise InputError(
                f"the run '{path}' was written by a newer version (format {found}; this version knows {FORMAT}).",
                "Upgrade: pip install --upgrade merganser.",
            )
        try:
            info = RunInfo.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            raise damaged(file, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        return cls(path, info)

    # -- rows -------------------------------------------------------------------------------------------------------

    def row_folders(self) -> list[Path]:
        """The complete rows in order.

        Raises:
            InputError: a row between two others is missing.
        """
        folders = {}
        for folder in (self.path / "tasks").iterdir():
            match = ROW_FOLDER.fullmatch(folder.name)
            if match and not folder.name.endswith(PARTIAL):
                folders[int(match[1])] = folder
        if sorted(folders) != list(range(len(folders))):
            raise InputError(
                f"the rows under '{self.path / 'tasks'}' are numbered {sorted(folders)}; one is missing.",
                "Restore it, or delete the rows after the gap.",
            )
        return [folders[number] for number in sorted(folders)]

    def read_row(self, folder: Path) -> RowFile:
        """``row.json`` of a row's folder."""
        file = folder / "row.json"
        try:
            return RowFile.model_validate_json(file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise damaged(file, "it is missing") from error
        except ValidationError as error:
            raise damaged(file, error.errors()[0]["msg"]) from error

    def rows(self) -> list[RowFile]:
        """``row.json`` of all rows, row 0 first."""
        return [self.read_row(folder) for folder in self.row_folders()]

    def examples(self, folder: Path, name: str) -> list[KeptExample]:
        """The examples in a row's ``memory.jsonl`` or ``test.jsonl``."""
        return read_lines(folder / f"{name}.jsonl", KeptExample)

    def begin_row(self, row: int, name: str) -> Path:
        """An empty folder to write a row into; it counts only after :meth:`commit_row`."""
        folder = self.path / "tasks" / f"{row:02d}-{name}{PARTIAL}"
        if folder.exists():
            shutil.rmtree(folder)
        with full_disk_is_an_error(folder):
            folder.mkdir(parents=True)
        return folder

    def commit_row(self, folder: Path) -> Path:
        """Make a row count: flush it, rename it, and bring the files beside ``tasks/`` up to date."""
        with full_disk_is_an_error(folder):
            sync_tree(folder)
        finished = folder.with_name(folder.name.removesuffix(PARTIAL))
        os.replace(folder, finished)
        self.refresh()
        return finished

    def abandon_row(self, folder: Path) -> None:
        """Throw away a row that was not committed."""
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
            matrix.add_row(row.scores.learned, {name: as_tuple(score) for name, score in row.scores.scores.items()})
        for row in rows:
            for number, scores in row.earlier.items():
                for name, score in scores.items():
                    matrix.set(number, name, as_tuple(score))
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

    def write_references(self, references: dict[str, Score]) -> None:
        """Keep scores of single-task models and bring the summary up to date."""
        write_json(self.path / "references.json", {name: score.model_dump() for name, score in references.items()})
        self.refresh()

    def scores(self) -> ScoresFile:
        """The whole matrix with its summary."""
        rows = self.rows()
        matrix = self.matrix(rows)
        references = self.references()
        metrics: dict[str, str] = {}
        for row in rows:
            metrics.update(row.metrics)
        described = matrix.to_dict()
        found = summary(matrix, {name: as_tuple(score) for name, score in references.items()})
        return ScoresFile(
            tasks=list(matrix.tasks),
            metrics=metrics,
            rows=described["rows"],
            references=references,
            summary=[
                MetricRecord(name=m.name, value=m.value, stderr=m.stderr, definition=m.definition, source=m.source)
                for m in found
            ],
        )

    def refresh(self) -> None:
        """Write ``scores.json``, ``ledger.jsonl`` and ``model/`` as the rows say."""
        folders = self.row_folders()
        if not folders:
            return
        write_json(self.path / "scores.json", self.scores().model_dump())
        write_json_lines(self.path / "ledger.jsonl", [merge.model_dump() for merge in self.merges()])
        target = self.path / "model"
        temporary = self.path / f"model{PARTIAL}"
        if temporary.exists():
            shutil.rmtree(temporary)
        with full_disk_is_an_error(temporary):
            shutil.copytree(folders[-1] / "adapter", temporary)
            (temporary / "ROW").write_text(folders[-1].name + "\n", encoding="utf-8")
            sync_tree(temporary)
        replace_folder(temporary, target)

    def repair(self) -> list[str]:
        """Throw away what was not finished and bring the files beside ``tasks/`` up to date.

        Returns:
            One sentence per thing that was done.
        """
        notes = []
        for folder in sorted((self.path / "tasks").glob(f"*{PARTIAL}")):
            match = ROW_FOLDER.fullmatch(folder.name.removesuffix(PARTIAL))
            name = match[2] if match else folder.name
            shutil.rmtree(folder)
            notes.append(f"'{name}' had been interrupted; it starts again from the task before it.")
        for leftover in sorted(self.path.glob(f"*{PARTIAL}")):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        folders = self.row_folders()
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

    def merges(self) -> list[MergeRecord]:
        """All merges of all rows."""
        return [merge for folder in self.row_folders() for merge in read_lines(folder / "merges.jsonl", MergeRecord)]

    def record(self) -> RunRecord:
        """Everything the report needs."""
        folders = self.row_folders()
        rows = [self.read_row(folder) for folder in folders]
        signals = {}
        for folder, row in zip(folders, rows, strict=True):
            # Tasks learned together share one training; their signals are kept under the first one's name.
            if row.tasks:
                signals[row.tasks[0].name] = read_lines(folder / "signals.jsonl", SignalRecord)
        return RunRecord(
            path=str(self.path),
            info=self.info,
            tasks=[task for row in rows for task in row.tasks],
            scores=self.scores(),
            merges=self.merges(),
            signals=signals,
        )


def as_tuple(score: Score) -> tuple[float, int, float]:
    """``(value, n, stderr)``."""
    return score.value, score.n, score.stderr


def read_run(path: Path | str) -> RunRecord:
    """Read a whole run without changing it.

    Raises:
        InputError: there is no run, nothing was learned or measured yet, it is damaged, or a newer version wrote it.
    """
    directory = RunDirectory.open(Path(path))
    if not directory.row_folders():
        raise InputError(f"nothing was measured yet in '{path}'.", "Start it again with the command that made it.")
    return directory.record()
