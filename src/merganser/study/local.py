"""Run the cells of a study on this machine, some at a time, the longest first."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE, Popen
from types import TracebackType
from typing import Any

from merganser.errors import InputError, RunError
from merganser.study.cells import Cell, Study
from merganser.study.folder import StudyFolder
from merganser.study.schedule import Schedule

BUSY = "another process runs it, and it is left to that"

PAUSE = 0.5
"""Seconds between two looks at the progress when nothing is heard."""


@dataclass(frozen=True)
class Machine:
    """How much of this machine a study uses.

    Attributes:
        cells: that run at the same time.
        threads: of each of their processes.
        devices: accelerators of one cell each, separated by commas; empty: processors alone.
    """

    cells: int
    threads: int
    devices: tuple[str, ...] = ()


def num_cores() -> int:
    """Return the processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_machine(
    count: int, cells: int | None, threads: int | None, devices: Sequence[str], processes: int = 1
) -> Machine:
    """Divide this machine among cells: never more threads than cores, an accelerator for each cell if there are any.

    Args:
        count: cells of the study.
        cells: that shall run at a time; ``None``: as many as fit.
        threads: of each process; ``None``: the cores divided by the processes.
        processes: of a cell.

    Raises:
        InputError: there are not so many cores.
    """
    cores = num_cores()
    for option, given in (("--parallel", cells), ("--threads", threads)):
        if given is not None and given < 1:
            raise InputError(f"{option} is {given}.", "Give at least 1.")
    room = min(len(devices) or cores, cores // (threads or 1))
    chosen = cells or min(room // processes, count) or 1
    per_process = threads or max(cores // (chosen * processes), 1)
    if chosen * per_process * processes > cores:
        of = f"{per_process} threads" if processes == 1 else f"{processes} processes of {per_process} threads"
        raise InputError(
            f"{chosen} cells of {of} are more than the {cores} cores of this machine.",
            f"Use at most --parallel {max(cores // (per_process * processes), 1)}, or fewer --threads.",
        )
    places = [",".join(devices[i : i + processes]) for i in range(0, len(devices) - processes + 1, processes)]
    return Machine(chosen, per_process, tuple(places))


@dataclass
class Progress:
    """What a person is told while a study runs.

    Attributes:
        begun: called with a cell that begins.
        ended: called with a cell, its seconds, and why it failed (``None``: it did not).
        stopped: returns whether a cell that has ended was stopped by a rule.
        tick: called now and then.
        notice: called with what a person should know.
        schedule: cells that wait and run.
        fractions: running cell -> its task and how far it is.
    """

    schedule: Schedule
    slots: int
    begun: Callable[[str], None] = lambda name: None
    ended: Callable[[str, float, str | None], None] = lambda name, seconds, error: None
    stopped: Callable[[str], bool] = lambda name: False
    tick: Callable[[Progress], None] = lambda progress: None
    notice: Callable[[str], None] = lambda text: None
    fractions: dict[str, tuple[str, float]] = field(default_factory=dict)

    @property
    def seconds_left(self) -> float | None:
        """An estimate of the time until all is done."""
        return self.schedule.seconds_left(self.slots)


class Pool:
    """The process that cells are started from (:mod:`merganser.study.server`), as a context.

    Leaving it stops the cells that still run.

    Attributes:
        ready: it has imported everything, and a cell that is started begins at once.
    """

    def __init__(self, study: Study, folder: StudyFolder, early_stop: float | None = None) -> None:
        self._setting = {
            "study": json.loads(json.dumps(study.value, default=str)),
            "where": study.where,
            "folder": str(study.folder),
            "out": str(folder.path.absolute()),
            "early_stop": early_stop,
        }
        self._buffer = bytearray()
        self.ready = False

    def __enter__(self) -> Pool:
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
        path = [str(Path(__file__).parents[2]), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
        self.process = Popen(
            [sys.executable, "-m", "merganser.study.server"],
            stdin=PIPE,
            stdout=PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches this process alone, which then stops the others
        )
        self._selector = selectors.DefaultSelector()
        assert self.process.stdout is not None
        self._selector.register(self.process.stdout, selectors.EVENT_READ)
        self._send(self._setting)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended already, and with it the cells
            self.process.stdin.close()
        self._selector.close()
        try:
            while self.process.stdout.read(1 << 16):
                pass
        finally:
            self.process.stdout.close()
            self.process.wait()

    def start(self, cell: Cell, threads: int, device: str | None) -> None:
        """Start a cell."""
        self._send({"cell": cell.name, "threads": threads, "device": device})

    def _send(self, order: Mapping[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise _ended(self.process) from error

    def messages(self) -> Iterator[dict[str, Any]]:
        """Yield what has been reported, waiting a moment for the first.

        Raises:
            RunError: the process has ended.
        """
        assert self.process.stdout is not None
        if not self._selector.select(PAUSE):
            return
        read = os.read(self.process.stdout.fileno(), 1 << 16)
        if not read:
            raise _ended(self.process)
        self._buffer += read
        *lines, self._buffer[:] = self._buffer.split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "ready" in message:
                self.ready = True
            elif not message["cell"]:
                raise InputError(message["error"])
            else:
                yield message


def _ended(process: Popen[bytes]) -> RunError:
    process.wait()
    return RunError(
        f"The process that starts the cells has ended (exit code {process.returncode}).",
        "Nothing that was learned is lost: the same command goes on from there.",
    )


def run_locally(
    study: Study,
    cells: Sequence[Cell],
    folder: StudyFolder,
    machine: Machine,
    progress: Progress,
    early_stop: float | None = None,
) -> dict[str, str]:
    """Run cells until all are done or have failed.

    Args:
        cells: to run, with runs of their own.
        progress: with the schedule of these cells.

    Returns:
        failed cell -> why.

    Raises:
        KeyboardInterrupt: after the cells that ran were stopped.
        RunError: the process that starts them was ended.
    """
    by_name = {cell.name: cell for cell in cells}
    failures: dict[str, str] = {}
    reasons: dict[str, str] = {}
    places = [machine.devices[i % len(machine.devices)] if machine.devices else None for i in range(machine.cells)]
    placed: dict[str, str | None] = {}
    schedule = progress.schedule
    with Pool(study, folder, early_stop) as pool:
        while schedule.waiting or schedule.running:
            while pool.ready and places and (name := schedule.next(progress.fractions)) is not None:
                placed[name] = places.pop()
                schedule.begin(name)
                pool.start(by_name[name], machine.threads, placed[name])
                progress.begun(name)
            for message in pool.messages():
                name = message["cell"]
                if "fraction" in message:
                    progress.fractions[name] = (message["task"], message["fraction"])
                    schedule.move(name, message["fraction"])
                if "error" in message:
                    reasons[name] = "" if message.get("busy") else message["error"]
                if "ended" in message:
                    places.append(placed.pop(name))
                    _end(name, message["ended"], reasons, failures, progress)
            progress.tick(progress)
    return failures


def _end(name: str, code: int, reasons: Mapping[str, str], failures: dict[str, str], progress: Progress) -> None:
    reason = None
    if code:
        ended = f"its process was ended by signal {-code}" if code < 0 else f"its process ended with exit code {code}"
        memory = " (9: often for lack of memory)" if code == -9 else ""
        reason = failures[name] = reasons.get(name, f"{ended}{memory}")
        if not reason:
            del failures[name]
            reason = BUSY
    progress.fractions.pop(name, None)
    whole = not code and not progress.stopped(name)
    progress.ended(name, progress.schedule.end(name, done=whole), reason)
