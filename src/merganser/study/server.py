"""The process that a study on this machine starts its cells from.

It has everything imported and the data read, and forks one process per cell: starting costs a cell next to nothing, and
what ends one cell, whatever it is, ends no other. It runs no model itself: no thread and no device is in use when it
forks.

Lines of JSON in: first the setting (``study``, ``where``, ``folder``, ``out``, ``early_stop``), then an order per cell,
``{"cell": NAME, "threads": N, "device": null}``, and ``{"stop": true}``. The end of the input stops everything.
Lines out: ``{"cell": "", "ready": true}``, then ``{"cell": NAME, ...}`` with ``task`` and ``fraction`` while it runs,
at last ``ended`` (the exit code; negative: a signal) and ``error``.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import selectors
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

GRACE = 20.0
"""Seconds that cells have to end when they are stopped; what they have learned is safe at any moment."""


class Server:
    """Forks a process per cell and passes on what they report.

    Args:
        setting: the first line.
    """

    def __init__(self, setting: dict[str, Any]) -> None:
        from merganser.study.cells import make_study
        from merganser.study.early_stop import EarlyStop
        from merganser.study.folder import StudyFolder
        from merganser.study.orders import Data

        folder = Path(setting["folder"])
        self.study = make_study(setting["study"], setting["where"], folder, allow_many=True)
        self.folder = StudyFolder(Path(setting["out"]))
        self.data = Data(folder)
        points = setting.get("early_stop")
        self.early_stop = None if points is None else EarlyStop(self.study, self.folder, points)
        self.selector = selectors.DefaultSelector()
        self.children: dict[int, tuple[int, str, bytearray]] = {}
        self.interrupted: set[int] = set()
        self.orders = bytearray()
        self.going = True

    def run(self) -> None:
        """Serve until the input ends; when nobody reads the answers any more, stop all cells and be silent."""
        try:
            self.serve()
        except KeyboardInterrupt:
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1)
            os.close(silent)
            self._stop()

    def serve(self) -> None:
        """Answer orders until the input ends and no cell runs."""
        self.selector.register(0, selectors.EVENT_READ)
        while self.going or self.children:
            for key, _ in self.selector.select():
                if key.fd == 0:
                    self._read_orders()
                else:
                    self._read_child(key.fd)

    def _read_orders(self) -> None:
        read = os.read(0, 1 << 16)
        self.orders += read
        *lines, self.orders[:] = self.orders.split(b"\n")
        for line in lines:
            order = json.loads(line)
            if "stop" in order:
                self._stop()
            else:
                self._begin(order)
        if not read:
            self.selector.unregister(0)
            self.going = False
            self._stop()

    def _stop(self) -> None:
        """Interrupt all cells, and end those that take too long."""
        for process, _, _ in self.children.values():
            if process not in self.interrupted:  # a second signal would break off what the first one begins
                self.interrupted.add(process)
                os.kill(process, signal.SIGINT)
        deadline = time.monotonic() + GRACE
        while self.children and (left := deadline - time.monotonic()) > 0:
            for key, _ in self.selector.select(left):
                if key.fd != 0:
                    self._read_child(key.fd)
                elif not os.read(0, 1 << 16):
                    self.selector.unregister(0)
                    self.going = False
        for process, _, _ in self.children.values():
            os.kill(process, signal.SIGKILL)

    def _begin(self, order: dict[str, Any]) -> None:
        cell = self.study.find(order["cell"])
        try:
            self.data.tasks(cell.stream)  # read once, before the fork
        except Exception as error:
            send(1, {"cell": cell.name, "error": cause(error), "ended": 2})
            return
        reading, writing = os.pipe()
        process = os.fork()
        if process == 0:
            code = 1
            try:
                os.close(reading)
                code = self._child(order, writing)
            finally:
                os._exit(code)
        os.close(writing)
        self.children[reading] = (process, cell.name, bytearray())
        self.selector.register(reading, selectors.EVENT_READ)

    def _read_child(self, descriptor: int) -> None:
        process, name, buffer = self.children[descriptor]
        read = os.read(descriptor, 1 << 16)
        buffer += read
        *lines, buffer[:] = buffer.split(b"\n")
        for line in lines:
            write_line(1, bytes(line))
        if not read:
            self.selector.unregister(descriptor)
            os.close(descriptor)
            del self.children[descriptor]
            code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            send(1, {"cell": name, "ended": code})

    def _child(self, order: dict[str, Any], writing: int) -> int:
        """Run a cell; return the exit code of its process."""
        from merganser.runs.lock import RunInUse
        from merganser.study.launched import needs_launcher, run_launched
        from merganser.study.run_cell import run_cell

        signal.signal(signal.SIGINT, signal.default_int_handler)
        for descriptor, _ in self.children.items():
            os.close(descriptor)
        cell = self.study.find(order["cell"])
        report = Reporter(cell.name, len(self.data.tasks(cell.stream)), writing, cell.joint)
        try:
            prepare_child(self.folder.log(cell.name), order["threads"], order["device"])
            if needs_launcher(self.study):
                run_launched(self.study, cell, self.folder, order["threads"])
            else:
                run_cell(self.study, cell, self.folder, self.data, listener=report, early_stop=self.early_stop)
        except KeyboardInterrupt:
            return 130
        except Exception as error:
            send(writing, {"cell": cell.name, "error": cause(error), "busy": isinstance(error, RunInUse)})
            traceback.print_exc()
            sys.stderr.flush()
            return 1
        self.folder.log(cell.name).unlink(missing_ok=True)
        return 0


def prepare_child(log: Path, threads: int, device: str | None) -> None:
    """Let this process print to a file, compute with so many threads, and see one accelerator."""
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    log.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
    empty = os.open(os.devnull, os.O_RDONLY)
    for descriptor, target in ((empty, 0), (file, 1), (file, 2)):
        os.dup2(descriptor, target)
    import torch

    torch.set_num_threads(threads)


class Reporter:
    """Passes the events of a run on as lines of JSON, a few per second.

    Args:
        name: of the cell.
        tasks: that it learns.
        descriptor: to write to.
        joint: all of them at once.
    """

    EVERY = 0.25

    def __init__(self, name: str, tasks: int, descriptor: int, joint: bool) -> None:
        self.name = name
        self.rows = 1 if joint else max(tasks, 1)
        self.descriptor = descriptor
        self._done = 0
        self._last = 0.0

    def __call__(self, event: object) -> None:
        from merganser.events import RowDone, StepDone, TaskStarted

        now = time.monotonic()
        if isinstance(event, TaskStarted):
            self._done = event.index - 1 if self.rows > 1 else 0
            self._send(event.task, event.step / max(event.steps, 1), now)
        elif isinstance(event, StepDone) and now - self._last >= self.EVERY:
            self._send(event.task, event.step / max(event.steps, 1), now)
        elif isinstance(event, RowDone):
            self._done += bool(event.learned)
            self._send("+".join(event.learned), 0.0, now)

    def _send(self, task: str, fraction: float, now: float) -> None:
        self._last = now
        send(
            self.descriptor,
            {"cell": self.name, "task": task[:80], "fraction": min((self._done + fraction) / self.rows, 1)},
        )


def cause(error: BaseException) -> str:
    """Return why a cell failed, in one line."""
    from merganser.errors import MerganserError, first_line

    if isinstance(error, MerganserError):
        return str(error)
    return f"{type(error).__name__}: {first_line(error)}"[:500]


def send(descriptor: int, value: dict[str, Any]) -> None:
    """Write one line of JSON.

    Raises:
        KeyboardInterrupt: nobody reads any more.
    """
    write_line(descriptor, json.dumps(value).encode())


def write_line(descriptor: int, line: bytes) -> None:
    """Write a line whole."""
    data = line + b"\n"
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except BrokenPipeError:
        raise KeyboardInterrupt from None


def main() -> None:
    """Serve until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.disable()  # what is imported stays: looking through it again and again takes a tenth of the start
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads are not those that the study counts
    import torch

    # No thread may exist where the process is copied.
    torch.set_num_threads(1)
    buffer = b""
    while b"\n" not in buffer:
        read = os.read(0, 1)
        if not read:
            return
        buffer += read
    from merganser.errors import MerganserError
    from merganser.models.library_output import silence_bitsandbytes

    silence_bitsandbytes()
    with contextlib.suppress(KeyboardInterrupt):  # nobody reads any more, and no cell runs yet
        try:
            server = Server(json.loads(buffer))
            preload()
        except MerganserError as error:
            send(1, {"cell": "", "error": str(error), "ended": 2})
            return
        send(1, {"cell": "", "ready": True})
        gc.collect()
        gc.freeze()  # pages of what is loaded stay shared with the cells
        gc.enable()
        server.run()


def preload() -> None:
    """Import what every cell needs."""
    import merganser.learner
    import merganser.study.run_cell
    import merganser.training.trainer  # noqa: F401


if __name__ == "__main__":
    main()
