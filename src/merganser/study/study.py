"""Run a study: check it, run the cells that are missing, record them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from merganser.errors import InputError, RunError
from merganser.models.options import ModelOptions
from merganser.models.source import resolve_source
from merganser.processes import on_main
from merganser.runs.directory import RunDirectory
from merganser.study import on_ray
from merganser.study.cell_record import CellRecord, read_cells
from merganser.study.cells import Cell, Study, load_study, make_study
from merganser.study.early_stop import EarlyStop
from merganser.study.folder import Status, StudyFolder, record
from merganser.study.launched import check_launcher, needs_launcher
from merganser.study.local import Machine, Progress, find_machine, num_cores, run_locally
from merganser.study.orders import Data, OrderedStream, check_different
from merganser.study.schedule import Schedule, beginning, cell_size
from merganser.study.tuning import check_tuning, note_failed, tuned


@dataclass(frozen=True)
class Outcome:
    """What came of running a study.

    Attributes:
        folder: of the study.
        done: cells that are finished.
        failed: cell -> why it failed.
        changed: cell -> how the run under its name differs from it; such runs are left alone.
        stopped: cell -> the rule that stopped it.
        waiting: cells that were not asked for.
    """

    folder: Path
    done: Sequence[str] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    changed: Mapping[str, str] = field(default_factory=dict)
    stopped: Mapping[str, str] = field(default_factory=dict)
    waiting: Sequence[str] = ()

    @property
    def complete(self) -> bool:
        """Whether every cell of the study is finished as the study has it now."""
        return not (self.failed or self.changed or self.waiting)

    @property
    def records(self) -> list[CellRecord]:
        """The records of all finished cells in the folder."""
        return read_cells(self.folder / "records") if (self.folder / "records").is_dir() else []


@dataclass(frozen=True)
class Work:
    """What there is to do in a study.

    Attributes:
        cells: to run, each with a run of its own.
        statuses: of all cells.
        sizes: training examples of all runs, by cell.
        data: of the streams.
        digests: digest of a stream's options -> task -> that of its data.
    """

    cells: Sequence[Cell]
    statuses: Mapping[str, Status]
    sizes: Mapping[str, float]
    data: Data
    digests: Mapping[str, Mapping[str, str]]


Watcher = Callable[[Study, Work, Machine, Progress], None]
"""Shows the progress of a study: fills in the functions of the last argument."""


def study(
    study: str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    parallel: int | None = None,
    threads: int | None = None,
    early_stop: float | None = None,
    ray: str | None = None,
    storage: str | None = None,
    watch: Watcher | None = None,
) -> Outcome:
    """Run the cells of a study that are missing, from where they are.

    Args:
        study: its YAML file, or the same as plain values; their relative paths start from the current folder.
        out: folder of the study; an existing one is continued.
        parallel: cells at a time; by default as many as there are cores or accelerators.
        threads: of each cell; by default the cores divided by the cells.
        early_stop: stop cells that are so many percentage points behind, and mark them
            (:mod:`merganser.study.early_stop`).
        ray: address of a Ray cluster to run the cells on, instead of this machine.
        storage: with ``ray``: a URL that cells are copied to and from; by default all nodes see ``out``.
        watch: is told what begins, and puts functions into the progress that show it.

    Raises:
        InputError: the study, its data or the folder are wrong, or another process runs it; nothing was changed.
        RunError: the disk is full, or the process that starts the cells has ended.
    """
    if isinstance(study, Mapping):
        read = make_study(study, "study", Path.cwd())
    else:
        read = load_study(Path(study))
    resources = Resources(parallel, threads, ray, storage)
    folder = StudyFolder(Path(out))
    return run_study(run_tuning(read, folder, resources, watch), folder, resources, early_stop=early_stop, watch=watch)


@dataclass(frozen=True)
class Resources:
    """Where cells are run: as the arguments of :func:`study` of these names."""

    parallel: int | None = None
    threads: int | None = None
    ray: str | None = None
    storage: str | None = None

    def machine(self, runs: int, processes: int) -> Machine:
        """Divide this machine among cells of so many processes; on a cluster, each has one thread by default.

        Raises:
            InputError: there are not so many cores, or options contradict each other.
        """
        if self.ray is None:
            if self.storage is not None:
                raise InputError("--storage is for a Ray cluster.", "Give its address: --ray ADDRESS.")
            return find_machine(runs, self.parallel, self.threads, accelerators(), processes)
        if self.parallel is not None:
            raise InputError("--parallel is for this machine.", "Ray runs as many cells as the cluster has room for.")
        return Machine(runs, self.threads or 1)


def run_tuning(study: Study, folder: StudyFolder, resources: Resources, watch: Watcher | None = None) -> Study:
    """Run the trials of a study's tuning that are missing, and return the study with the options that it chose.

    A study without tuning is returned as it is.

    Raises:
        InputError: as :func:`study`.
        RunError: no trial of a method was finished.
    """
    if study.options.tune is None:
        return study
    check_tuning(study)
    folder.check(study)
    chosen = tuned(study, folder, lambda trials, place: _run_trials(trials, place, resources, watch))
    assert chosen is not None  # trials were run
    return chosen


def _run_trials(study: Study, folder: StudyFolder, resources: Resources, watch: Watcher | None) -> None:
    outcome = run_study(study, folder, resources, watch=watch)
    note_failed(study, folder, outcome.failed)
    if outcome.waiting:
        raise RunError(
            f"{len(outcome.waiting)} trials of the tuning were not run.",
            "Another process may run them; try again later.",
        )


def run_study(
    study: Study,
    folder: StudyFolder,
    resources: Resources = Resources(),
    *,
    cells: Sequence[Cell] | None = None,
    early_stop: float | None = None,
    watch: Watcher | None = None,
) -> Outcome:
    """Run cells as :func:`study` does; with ``cells`` only those, beside other processes that run others."""
    folder.check(study)
    check_launcher(study)
    if early_stop is not None:
        EarlyStop(study, folder, early_stop)
    if resources.storage is not None and early_stop is not None:
        raise InputError("--early-stop compares cells, and with --storage a node has no others.", "Give one of them.")
    if resources.storage is not None and needs_launcher(study):
        raise InputError(
            "--storage copies the cells of one process, and those of the study have several.",
            "Use a folder that all nodes see, without --storage.",
        )
    resources.machine(len(study.runs), study.options.processes)
    if cells is not None:
        return _run(study, folder, resources, cells, early_stop, watch)
    with folder.lock():
        return _run(study, folder, resources, study.runs, early_stop, watch)


def _run(
    study: Study,
    folder: StudyFolder,
    resources: Resources,
    cells: Sequence[Cell],
    early_stop: float | None,
    watch: Watcher | None,
) -> Outcome:
    work = find_work(study, folder, cells, resume_stopped=early_stop is None)
    # The threads stay those of the beginning: sums of another number of parts are rounded otherwise.
    kept = folder.state().get("threads")
    if resources.threads is None and kept and (resources.ray or kept <= num_cores()):
        resources = replace(resources, threads=int(kept))
    machine = resources.machine(len(study.runs), study.options.processes)
    folder.begin(study, machine.threads, work.digests)
    failed: dict[str, str] = {}
    if work.cells:
        progress = make_progress(study, folder, work, machine)
        if watch is not None:
            watch(study, work, machine, progress)
        if resources.ray is None:
            failed = run_locally(study, work.cells, folder, machine, progress, early_stop)
        else:
            place = on_ray.Cluster(resources.ray, machine.threads, resources.storage)
            failed = on_ray.run_on_ray(study, work.cells, folder, place, progress, early_stop)
    return outcome(study, folder, cells, failed)


def run_one(
    study: Study,
    folder: StudyFolder,
    cell: Cell,
    listener: Any,
    *,
    threads: int | None = None,
    early_stop: float | None = None,
) -> Outcome:
    """Run one cell in this process, or in those that torchrun has started.

    Args:
        threads: of each process; by default those that the study was begun with, else as many as torch takes.

    Raises:
        InputError, RunError: as a run.
    """
    import torch

    from merganser.study.run_cell import run_cell

    cell = study.find(cell.run)
    folder.check(study)
    rule = None if early_stop is None else EarlyStop(study, folder, early_stop)
    work = find_work(study, folder, [cell], resume_stopped=early_stop is None)
    if work.cells:
        kept = folder.state().get("threads")
        machine = find_machine(1, 1, threads or min(kept or torch.get_num_threads(), num_cores()), ())
        torch.set_num_threads(machine.threads)
        on_main(lambda: folder.begin(study, machine.threads, work.digests))
        run_cell(study, cell, folder, work.data, listener=listener, early_stop=rule)
    return outcome(study, folder, [cell], {})


def find_work(
    study: Study, folder: StudyFolder, cells: Sequence[Cell], *, resume_stopped: bool, models: bool = True
) -> Work:
    """Read the data of a study, and find out which of these cells are to be run.

    Args:
        models: those of cells to run must be there.

    Raises:
        InputError: data are missing or malformed, a model is not there, or a record is damaged.
    """
    data = Data(study.folder)
    streams: dict[tuple[str, str], OrderedStream] = {}
    for cell in study.cells:
        streams.setdefault((cell.stream.stream, cell.stream.order), cell.stream)
    for stream in streams.values():
        data.tasks(stream)
        data.watched(stream)
    statuses = {cell.name: folder.status(cell, resume_stopped) for cell in study.cells}
    if study.options.fwt:  # asked for when they were done already
        for cell in study.runs:
            if statuses[cell.name].stage == "done" and _lacks_references(folder.record(cell)):
                statuses[cell.name] = Status("begun")
    of_tasks = [data.digests(stream) for stream in streams.values()]
    # Only the data tell whether two orders of classes are the same, such as a list and a seed.
    check_different([*streams.values()], [json.dumps(list(of_stream.items())) for of_stream in of_tasks], study.where)
    digests = {stream.digest: of_stream for stream, of_stream in zip(streams.values(), of_tasks, strict=True)}
    kept = {cell.stream.digest for cell in study.cells if statuses[cell.name].stage in ("done", "stopped")}
    folder.check_data({key: digests[key] for key in kept})
    begun = [cell for cell in cells if statuses[cell.name].stage in ("waiting", "begun")]
    for cell in study.cells:  # its run may be done for another order
        done = statuses[cell.run].stage == "done" and models
        if cell.run != cell.name and statuses[cell.name].stage == "waiting" and done:
            record(study, study.find(cell.run), folder)
            statuses[cell.name] = Status("done")
    if models:
        _check_models(begun, folder)
    sizes = {cell.name: cell_size(cell, data.tasks(cell.stream)) for cell in study.runs}
    return Work(begun, statuses, sizes, data, digests)


def _lacks_references(record: CellRecord | None) -> bool:
    return record is not None and not {*record.tasks}.intersection(record.final).issubset(record.references)


def _check_models(cells: Sequence[Cell], folder: StudyFolder) -> None:
    """Refuse models that are not there, before any work; those of runs that have begun are checked with them."""
    models: dict[str, ModelOptions] = {}
    for cell in cells:
        if not RunDirectory.exists(folder.run(cell)):
            models.setdefault(cell.config.model.model_dump_json(), cell.config.model)
    for model in models.values():
        if not model.name.lower().endswith(".gguf"):
            resolve_source(model)


def make_progress(study: Study, folder: StudyFolder, work: Work, machine: Machine) -> Progress:
    """Return a progress that shows nothing, with estimates from the cells done before."""
    sizes = {cell.name: work.sizes[cell.name] for cell in work.cells}
    methods = {cell.name: cell.method for cell in work.cells}
    first = {cell.name: beginning(cell, len(work.data.tasks(cell.stream))) for cell in work.cells}
    schedule = Schedule(sizes, methods, first)
    for cell in study.runs:
        if work.statuses[cell.name].stage == "done" and (made := folder.record(cell)) is not None:
            schedule.learn(cell.method, made.cost.seconds, work.sizes[cell.name])
    by_name = {cell.name: cell for cell in work.cells}
    return Progress(schedule, machine.cells, stopped=lambda name: folder.status(by_name[name]).stage == "stopped")


def outcome(study: Study, folder: StudyFolder, cells: Sequence[Cell], failed: Mapping[str, str]) -> Outcome:
    """Return what came of cells that were to be run."""
    statuses = {cell.name: folder.status(cell) for cell in study.cells}
    asked = {cell.name for cell in cells}

    def of(*stages: str) -> list[str]:
        return [name for name, status in statuses.items() if status.stage in stages]

    return Outcome(
        folder=folder.path,
        done=of("done"),
        failed=failed,
        changed={
            cell.name: statuses[cell.name].reason
            for cell in study.cells
            if cell.run in asked and statuses[cell.name].stage == "changed"
        },
        stopped={
            cell.name: statuses[cell.name].reason
            for cell in study.cells
            if cell.run in asked and statuses[cell.name].stage == "stopped"
        },
        waiting=[
            cell.name
            for cell in study.cells
            if cell.run in asked and statuses[cell.name].stage in ("waiting", "begun") and cell.run not in failed
        ],
    )


DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""Files of a machine that may have accelerators; without any, torch is not imported to look for them."""


def accelerators() -> list[str]:
    """Return the CUDA devices of this machine, without using any."""
    if not any(map(os.path.exists, DRIVERS)):
        return []
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    named = visible.split(",") if visible else [str(number) for number in range(count)]
    return named[:count]
