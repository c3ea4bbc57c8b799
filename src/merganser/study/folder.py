"""The folder of a study: what is done, and what there must not be touched.

``study.json``       the study that the folder was begun with, and the threads of a cell
``cells/NAME/``      the run directory of each cell
``records/NAME.json``  :class:`~merganser.study.cell_record.CellRecord` of each finished cell
``logs/NAME.log``    what a cell that failed has printed
``shared/``          parts that are the same for several cells (:mod:`merganser.learner.shared_parts`)
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from merganser.config import check_config, differences
from merganser.errors import InputError, MerganserError
from merganser.files.atomic import full_disk_is_an_error, make_folder, write_json
from merganser.files.documents import parse_json, read_text
from merganser.files.target_lock import TargetTaken, target_lock
from merganser.runs.checksums import is_clutter
from merganser.runs.directory import RunDirectory
from merganser.runs.run_file import read_run_file
from merganser.study.cell_record import RECORDS, CellRecord, read_cell, record_cell, write_cell
from merganser.study.cells import Cell, Study, make_study

FORMAT = 1
STATE = "study.json"
TUNING = "tuning"
"""Folder of the trials of a study's tuning."""

COMMAND = "merganser study"
"""How the command begins that a cell's run was started with."""

Stage = Literal["waiting", "begun", "done", "stopped", "changed"]


@dataclass(frozen=True)
class Status:
    """How far a cell is.

    Attributes:
        stage: ``changed``: there is a run of its name that was made otherwise, which is left alone.
        reason: of ``changed`` and ``stopped``.
    """

    stage: Stage
    reason: str = ""


class StudyFolder:
    """The folder of a study on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def run(self, cell: Cell) -> Path:
        """Return the run directory of a cell."""
        return self.path / "cells" / cell.run

    @property
    def records(self) -> Path:
        """The folder with a record per finished cell."""
        return self.path / RECORDS

    @property
    def shared(self) -> Path:
        """The folder of parts that several cells have."""
        return self.path / "shared"

    def record_file(self, cell: Cell) -> Path:
        """Return where the record of a cell is, once it is finished."""
        return self.records / f"{cell.name}.json"

    def kept(self, name: str) -> list[Path]:
        """Return what there is of a cell that is left alone: its run, its record. Without them it is run anew."""
        return [path for path in (self.path / "cells" / name, self.records / f"{name}.json") if path.exists()]

    def log(self, name: str) -> Path:
        """Return where a cell prints to."""
        return self.path / "logs" / f"{name}.log"

    def record(self, cell: Cell) -> CellRecord | None:
        """Return the record of a finished cell; ``None``: it is not finished.

        Raises:
            InputError: it is damaged.
        """
        file = self.record_file(cell)
        return read_cell(file) if file.is_file() else None

    # -- what the folder was begun with ---------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return what ``study.json`` has; empty where there is no study yet.

        Raises:
            InputError: it is damaged, or another version wrote it.
        """
        file = self.path / STATE
        if not file.exists():
            return {}
        try:
            value = parse_json(read_text(file))
        except (OSError, ValueError) as error:
            raise InputError(
                f"'{file}' cannot be read: {error}.", "Restore it, or delete it: it is made again."
            ) from error
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise InputError(f"'{file}' is not of this version.", "Use the version that began the study.")
        return value

    def study(self) -> Study:
        """Return the study that the folder holds, as it was when it was last run.

        Raises:
            InputError: there is none.
        """
        state = self.state() if self.path.is_dir() else {}
        if not state:
            raise InputError(
                f"There is no study in '{self.path}'.", "Name the folder of one: `merganser study DIR --table`."
            )
        return make_study(state["study"], state["where"], Path(state["folder"]), allow_many=True)

    def check(self, study: Study) -> None:
        """Refuse a folder that holds something else, or another study.

        Raises:
            InputError: it does.
        """
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise InputError(f"'{self.path}' is a file.", "Name a folder for the study.")
        if RunDirectory.exists(self.path):
            raise InputError(f"'{self.path}' is the directory of a run.", "Name another folder for the study.")
        state = self.state()
        if not state:
            known = {"cells", "records", "logs", "shared", TUNING}
            foreign = [file.name for file in self.path.iterdir() if file.name not in known and not _beside(file.name)]
            if foreign:
                raise InputError(f"'{self.path}' exists and is not a study ('{foreign[0]}').", "Choose a new folder.")
            return
        other = state.get("name") != study.name and study.options.name is not None
        if state.get("cells") and (other or self._has_nothing_of(study, state)):
            raise InputError(
                f"'{self.path}' holds another study ('{state.get('name')}', with cells such as '{state['cells'][0]}').",
                "Choose another folder for this one.",
            )

    def _has_nothing_of(self, study: Study, state: Mapping[str, Any]) -> bool:
        """Return whether no cell of a study is here; of a tuned one, whose cells have the names of what is chosen, no
        method."""
        if study.options.tune is None and not (self.path / TUNING).is_dir():
            return {cell.name for cell in study.cells}.isdisjoint(state["cells"])
        methods = state["study"]["methods"]
        return set(study.options.methods).isdisjoint([methods] if isinstance(methods, str) else map(str, methods))

    def check_data(self, data: Mapping[str, Mapping[str, str]]) -> None:
        """Refuse data that are others than those of the cells that are done.

        Args:
            data: of streams of which cells are done, as :meth:`~merganser.study.orders.Data.digests`.

        Raises:
            InputError: they are.
        """
        before = self.state().get("data", {})
        for key, tasks in data.items():
            if changed := [task for task in tasks if before.get(key, {}).get(task, tasks[task]) != tasks[task]]:
                raise InputError(
                    f"The data of '{changed[0]}' have changed since the study in '{self.path}' was begun "
                    "(its files, or 'development').",
                    "Scores on different data cannot be compared: take the change back, or choose another folder.",
                )

    def begin(
        self, study: Study, threads: int | None = None, data: Mapping[str, Mapping[str, str]] | None = None
    ) -> int:
        """Write down which study the folder holds; return the threads of a cell, which stay those of its beginning.

        Args:
            data: digests of the tasks, as for :meth:`check_data`.

        Raises:
            InputError: the folder holds something else, another study, or cannot be written.
            RunError: the disk is full.
        """
        self.check(study)
        state = self.state()
        cells = [*dict.fromkeys([*state.get("cells", []), *(cell.name for cell in study.cells)])]
        value: dict[str, Any] = {
            "format": FORMAT,
            "name": study.name,
            "threads": threads or state.get("threads") or 1,
            "reference": study.options.reference,
            "cells": cells,
            "where": study.where,
            "folder": str(study.folder),
            "study": study.value,
            "data": {**state.get("data", {}), **(data or {})},
        }
        if value != state:
            make_folder(self.path)
            with full_disk_is_an_error(self.path / STATE):
                write_json(self.path / STATE, json.loads(json.dumps(value, default=str)), shared=True)
        return int(value["threads"])

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the study: a second process that runs all of it is refused.

        Raises:
            InputError: another one does.
        """
        make_folder(self.path)
        try:
            with contextlib.ExitStack() as held:
                try:
                    held.enter_context(target_lock(self.path / "study"))
                except TargetTaken as error:
                    raise InputError(
                        f"Another process runs the study in '{self.path}'.",
                        "Wait until it has ended, or run slices of the study beside each other (--only I/N).",
                    ) from error
                except OSError as error:
                    raise InputError(
                        f"Cannot write in '{self.path}': {error.strerror}.", "Choose a folder that can be written."
                    ) from error
                yield
        finally:
            if not any(self.path.iterdir()):  # nothing was begun in it
                self.path.rmdir()

    # -- cells ----------------------------------------------------------------------------------------------------

    def status(self, cell: Cell, resume_stopped: bool = False) -> Status:
        """Return how far a cell is.

        Args:
            resume_stopped: cells that a rule stopped are not done.

        Raises:
            InputError: its record is damaged.
        """
        record = self.record(cell)
        if record is not None:
            if changes := config_changes(record.configuration, cell):
                return Status("changed", _listed(changes))
            if record.stopped_by is not None:
                return Status("begun" if resume_stopped else "stopped", record.stopped_by)
            return Status("done")
        return self._run_status(cell)

    def _run_status(self, cell: Cell) -> Status:
        run = self.run(cell)
        if cell.run != cell.name or not RunDirectory.exists(run):
            return Status("waiting")
        try:
            info = read_run_file(run)
        except MerganserError as error:
            return Status("changed", str(error))
        if changes := config_changes(info.config, cell):
            made = "" if info.command.startswith(COMMAND) else f"it was made by hand (`{info.command}`); "
            return Status("changed", f"{made}{_listed(changes)}")
        return Status("begun")


def record(
    study: Study, cell: Cell, folder: StudyFolder, stopped_by: str | None = None, spent: float | None = None
) -> None:
    """Write the record of a finished cell, and of the others that have the same run.

    Args:
        stopped_by: the rule that stopped it.
        spent: processor seconds of the whole run; ``None``: not measured, or those that were recorded before.

    Raises:
        InputError: the run is damaged.
        RunError: the disk is full.
    """
    before = None if spent is not None else folder.record(study.find(cell.run))
    if before is not None:
        spent = before.cost.processor_seconds
    for sibling in study.of_run(cell.run):
        if sibling.run != sibling.name and folder.status(sibling).stage == "changed":
            continue  # it was made otherwise, and is left alone
        made = record_cell(
            folder.run(sibling),
            name=sibling.name,
            method=sibling.method,
            options=sibling.options,
            stream=sibling.stream.stream,
            order=sibling.stream.order,
            seed=sibling.seed,
            study=folder.path,
        )
        cost = made.cost.model_copy(update={"processor_seconds": spent})
        write_cell(folder.records, made.model_copy(update={"stopped_by": stopped_by, "cost": cost}))


def _beside(name: str) -> bool:
    return is_clutter(name) or name.startswith(".")


def _listed(changes: Sequence[str]) -> str:
    more = f" (and {len(changes) - 3} more)" if len(changes) > 3 else ""
    return f"{'; '.join(changes[:3])}{more}"


def config_changes(stored: Mapping[str, Any], cell: Cell) -> list[str]:
    """Return how the configuration of a run differs from that of a cell, apart from what changes no result.

    A run that serves all orders has the tasks in one of them, which is no difference.
    """
    values = {key: value for key, value in stored.items() if key != "resolved"}
    wanted = cell.config.model_dump(mode="json")
    if values == wanted:
        return []
    try:
        config = check_config(values, "run.yaml")
    except InputError as error:
        return [error.cause.rstrip(".")]
    changes = differences(config.sections(), cell.config.sections())
    if cell.run != cell.name:
        return changes
    stream = {} if config.stream is None else config.stream.model_dump(mode="json")
    return changes + differences(stream, wanted["stream"], "stream.")
