"""Run the cells of a study as tasks of a Ray cluster.

Every cell is one task with a request for processors and GPUs. When a worker or a node is lost, Ray starts the task
again on another, where the cell goes on from its last checkpoint: its folder must be on storage that all nodes see, or
be copied to and from a place that fsspec supports (:mod:`merganser.study.storage`).
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merganser.errors import InputError, first_line
from merganser.study.cells import Cell, Study
from merganser.study.folder import StudyFolder
from merganser.study.local import Progress

RETRIES = 3
"""How often a cell is started again whose worker or node was lost."""


def import_ray() -> Any:
    """Return the package.

    Raises:
        InputError: it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError("--ray needs the package ray.", 'Install it: pip install "merganser[ray]".') from error
    return ray


def connect(address: str) -> Any:
    """Connect to a cluster and return the package; ``local`` starts one on this machine.

    Raises:
        InputError: ray is not installed, or there is no cluster at the address.
    """
    ray = import_ray()
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(
                f"There is no Ray cluster at '{address}': {first_line(error)}",
                "Give the address of its head (HOST:6379), 'auto' on one of its nodes, or 'local'.",
            ) from error
    return ray


@dataclass(frozen=True)
class Cluster:
    """Where cells are run.

    Attributes:
        address: of the head.
        threads: of a cell, which are the processors that it requests.
        storage: a URL that cells are copied to and from; ``None``: all nodes see the folder of the study.
    """

    address: str
    threads: int
    storage: str | None = None


def run_on_ray(
    study: Study,
    cells: Sequence[Cell],
    folder: StudyFolder,
    cluster: Cluster,
    progress: Progress,
    early_stop: float | None = None,
) -> dict[str, str]:
    """Run cells on a cluster until all are done or have failed.

    Returns:
        failed cell -> why, with the node it failed on.

    Raises:
        InputError: ray is not installed, or there is no cluster at the address.
        KeyboardInterrupt: the cells that ran have been told to stop.
    """
    check_storage(cluster.storage)
    ray = connect(cluster.address)
    gpus, count = study.options.gpus, study.options.processes
    if gpus is None:
        gpus = 1.0 if ray.cluster_resources().get("GPU") else 0.0
    setting = {
        "study": json.loads(json.dumps(study.value, default=str)),
        # A worker has another current folder.
        "where": str(Path(study.where).absolute()) if Path(study.where).is_file() else study.where,
        "folder": str(study.folder),
        "out": str(folder.path.absolute()),
        "threads": cluster.threads,
        "early_stop": early_stop,
        "storage": cluster.storage,
    }
    request = {"CPU": count * cluster.threads, "GPU": count * gpus}
    if text := unmet(request, ray.nodes()):
        progress.notice(text)
    task = ray.remote(num_cpus=request["CPU"], num_gpus=request["GPU"], max_retries=RETRIES)(run_remotely)
    schedule = progress.schedule
    failures: dict[str, str] = {}
    names: dict[Any, str] = {}
    by_name = {cell.name: cell for cell in cells}
    try:
        while names or schedule.waiting:
            making = {name: _made(folder, by_name[name], cluster.storage) for name in schedule.running}
            while (name := schedule.next(making)) is not None:
                names[task.remote(setting, name)] = name
                schedule.begin(name)
                making[name] = _made(folder, by_name[name], cluster.storage)
                progress.begun(name)
            ready, _ = ray.wait(list(names), timeout=0.5)
            for reference in ready:
                name = names.pop(reference)
                error, seconds = _result(ray, reference)
                if error is not None:
                    failures[name] = error
                since = schedule.end(name, done=False)  # it was handed over, and may have waited
                progress.ended(name, since if seconds is None else seconds, error)
            progress.tick(progress)
    except BaseException:
        for reference in names:
            ray.cancel(reference)
        raise
    if cluster.storage is not None:
        from merganser.study.storage import Storage

        Storage(cluster.storage).fetch("records", folder.records)
    return failures


def unmet(request: Mapping[str, float], nodes: Sequence[Mapping[str, Any]]) -> str:
    """Say that no node has what a cell requests, for which Ray waits without a word; empty: one has.

    It is no error: a cluster may start such a node when it is asked for.

    Args:
        request: amount of each resource.
        nodes: as ``ray.nodes()`` describes them.
    """
    alive = [node["Resources"] for node in nodes if node.get("Alive")]
    if any(all(node.get(name, 0) >= amount for name, amount in request.items()) for node in alive):
        return ""
    wanted, has = (
        f"{cpus:g} processors" + (f" and {gpus:g} GPUs" if request["GPU"] else "")
        for cpus, gpus in ((request["CPU"], request["GPU"]), _largest(alive))
    )
    return (
        f"No node of the cluster has the {wanted} that a cell requests (the largest has {has}): cells wait until one "
        "joins. Request less with --threads, or processes and gpus in the study's file."
    )


def _largest(nodes: Sequence[Mapping[str, float]]) -> tuple[float, float]:
    sizes = [(node.get("GPU", 0.0), node.get("CPU", 0.0)) for node in nodes]
    gpus, cpus = max(sizes, default=(0.0, 0.0))
    return cpus, gpus


def _made(folder: StudyFolder, cell: Cell, storage: str | None) -> tuple[str, float]:
    """Return how far a cell is: not at all, or beyond its first task, which others may share."""
    known = storage is not None or any((folder.run(cell) / "tasks").glob("01-*/row.json"))
    return "", float(known)


def _result(ray: Any, reference: Any) -> tuple[str | None, float | None]:
    """Return why a cell failed, ``None`` if it did not, and the seconds that it ran, where they are known."""
    from merganser.study.server import cause

    try:
        answer = ray.get(reference)
    except ray.exceptions.RayTaskError as error:  # not by the cell, such as a node without this package
        return f"it could not be begun: {cause(error.cause)}", None
    except ray.exceptions.RayError as error:
        return f"its worker was lost {RETRIES + 1} times: {first_line(error)}", None
    reason, seconds = answer
    return reason, seconds


def run_remotely(setting: Mapping[str, Any], name: str) -> tuple[str | None, float]:
    """Run one cell on a node; return why it failed, ``None`` if it did not, and the seconds that it ran."""
    import torch

    from merganser.study.cells import make_study
    from merganser.study.early_stop import EarlyStop
    from merganser.study.launched import needs_launcher, run_launched
    from merganser.study.orders import Data
    from merganser.study.run_cell import run_cell
    from merganser.study.server import cause
    from merganser.study.storage import Storage

    began = time.monotonic()
    torch.set_num_threads(setting["threads"])
    study = make_study(setting["study"], setting["where"], Path(setting["folder"]), allow_many=True)
    folder = StudyFolder(Path(setting["out"]))
    cell = study.find(name)
    points = setting["early_stop"]
    try:
        early_stop = None if points is None else EarlyStop(study, folder, points)
        storage = None if setting["storage"] is None else Storage(setting["storage"])
        if storage is None:
            _wait_for_lock(folder.run(cell))
            if needs_launcher(study):
                run_launched(study, cell, folder, setting["threads"])
            else:
                run_cell(study, cell, folder, Data(study.folder), early_stop=early_stop)
        else:
            with storage.kept(folder, cell) as listener:
                run_cell(study, cell, folder, Data(study.folder), listener=listener, early_stop=early_stop)
            storage.store_records(study, folder, cell)
    except Exception as error:  # whatever it is, the other cells go on
        return f"on {socket.gethostname()}: {cause(error)}", time.monotonic() - began
    return None, time.monotonic() - began


def _wait_for_lock(run: Path, seconds: float = 30.0) -> None:
    """Wait while a worker that is just being lost still holds the run."""
    from merganser.runs.lock import RunInUse, RunLock

    deadline = time.monotonic() + seconds
    while run.is_dir():
        lock = RunLock(run)
        try:
            lock.acquire()
        except RunInUse:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
            continue
        lock.release()
        return


def check_storage(storage: str | None) -> None:
    """Refuse a place that cannot be written, before any work.

    Raises:
        InputError: a protocol that fsspec has no package for, or a place that cannot be written.
    """
    if storage is not None:
        from merganser.study.storage import Storage

        try:
            Storage(storage).probe()
        except (ImportError, ValueError, OSError) as error:
            raise InputError(
                f"--storage: '{storage}' cannot be written: {first_line(error)}",
                "Give a URL that fsspec knows (s3://bucket/path), install the package of its protocol, and log in.",
            ) from error
