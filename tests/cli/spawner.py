"""A process, forked from the tests, that has everything imported and forks a real ``merganser`` process per order.

Importing torch and transformers takes longer than the toy runs themselves, and the tests of interruptions and of
several processes need many. Each child is a process of its own that runs the command's entry point and can be killed
like any other.

Lines in: ``{"arguments": [...], "out": FILE, "err": FILE, "folder": FOLDER, "environment": {...}}`` -> a line with the
child's number; with ``"call": "module:function"`` that is called with the arguments in place of the command.
``{"wait": NUMBER}`` -> a line with its exit code (negative: the signal that ended it), once it has ended.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import logging
import os
import pkgutil
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

import merganser.cli
from tests.learner import toys

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
ENVIRONMENT |= {"COLUMNS": "120", "NO_COLOR": "1", "GLOO_SOCKET_IFNAME": "lo"}
ROOT = Path(__file__).parents[2]
PRELOADED = (
    "merganser.learner",
    "merganser.merging.trajectory",
    "merganser.models.matcher",
    "merganser.report",
    "merganser.training.trainer",
    "peft",
    "rich.live",
    "rich.spinner",
    "scipy.stats",
    "torch.distributed.fsdp",
    "transformers.models.bert.modeling_bert",
    "transformers.models.llama.modeling_llama",
    "transformers.models.t5.modeling_t5",
)
"""What a command imports when it needs it, and takes longest."""
LIFE = 240
"""Seconds after which a child ends by itself, whatever it waits for."""


class Spawner:
    """Starts ``merganser`` processes without the imports; this file, run as a program, on the other end.

    Where mounting is permitted, it and its processes live in a mount namespace in which ``disk`` is a file system of
    one MiB; :attr:`seen_disk` is the same folder as seen from here.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.disk = folder / "disk"
        self.disk.mkdir()
        orders, answers = os.pipe(), os.pipe()
        self._number = os.fork()
        if self._number == 0:
            try:
                os.close(orders[1])
                os.close(answers[0])
                serve(folder, os.fdopen(orders[0]), os.fdopen(answers[1], "w", buffering=1))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)  # taking down what was loaded would take seconds
        os.close(orders[0])
        os.close(answers[1])
        self._files: dict[int, tuple[Path, Path]] = {}
        self._started = 0
        self._orders: IO[str] = os.fdopen(orders[1], "w")
        self._answers: IO[str] = os.fdopen(answers[0])
        self.has_disk = bool(int(self._answers.readline()))

    @property
    def seen_disk(self) -> Path:
        """The small file system, from outside its namespace."""
        return Path(f"/proc/{self._number}/root{self.disk}")

    def _ask(self, order: dict[str, object]) -> int:
        print(json.dumps(order), file=self._orders, flush=True)
        return int(self._answers.readline())

    def start(
        self,
        *arguments: str | Path,
        call: str | None = None,
        environment: Mapping[str, str] | None = None,
        pipe: Path | None = None,
    ) -> int:
        """Start a command, or a function ``module:name``; returns the number of its process.

        What it prints is kept, or goes into a named pipe that somebody reads.
        """
        self._started += 1
        out, err = (self.folder / f"{self._started}.{name}" for name in ("out", "err"))
        for file in (out, err):
            file.touch()  # the process may be killed before it opens them
        order = {
            "out": str(pipe or out),
            "err": str(pipe or err),
            "folder": str(self.folder),
            "environment": dict(environment or {}),
        }
        number = self._ask({"arguments": [str(a) for a in arguments], **order, "call": call})
        self._files[number] = out, err
        return number

    def wait(self, number: int) -> toys.Done:
        """Wait for a process to end."""
        code = self._ask({"wait": number})
        out, err = self._files.pop(number)
        return toys.Done(code, out.read_text(), err.read_text())

    def stop(self) -> None:
        """Let it end."""
        self._orders.close()
        os.waitpid(self._number, 0)
        self._answers.close()


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until a condition on the disk holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not hold within {seconds} seconds"
        time.sleep(0.002)


def newest(run: Path, row: int = 2) -> int:
    """Return the step of the newest checkpoint of a row; 0 without one."""
    try:
        names = os.listdir(run / "checkpoint")
    except FileNotFoundError:  # the run makes and removes the folder meanwhile
        names = []
    return max((int(name[-6:]) for name in names if re.fullmatch(rf"{row:02d}-step-\d{{6}}", name)), default=0)


# -- the other end: the program --------------------------------------------------------------------------------------


def child(order: dict[str, object]) -> int:
    """Become the command; returns its exit code."""
    from merganser.cli import main

    for descriptor, key in ((1, "out"), (2, "err")):
        file = os.open(str(order[key]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(file, descriptor)
    # What was opened on a file would seek in a pipe.
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", 1, closefd=False)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.chdir(str(order["folder"]))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.alarm(LIFE)
    arguments, environment = order["arguments"], order["environment"]
    assert isinstance(arguments, list)
    assert isinstance(environment, dict)
    os.environ.update(environment)
    sys.argv = ["merganser", *arguments]
    try:
        if order["call"]:
            module, name = str(order["call"]).split(":")
            getattr(importlib.import_module(module), name)(*arguments)
        else:
            main()
    except SystemExit as stopped:
        return stopped.code if isinstance(stopped.code, int) else 0
    return 0


def mounted(disk: Path) -> bool:
    """Enter a mount namespace of one's own in which a folder is a file system of one MiB; whether that is permitted."""
    if shutil.which("mount") is None or not sys.platform.startswith("linux"):
        return False
    if ctypes.CDLL(None).unshare(0x00020000):  # CLONE_NEWNS
        return False
    commands = (["mount", "--make-rprivate", "/"], ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)])
    return all(subprocess.run(each, capture_output=True, check=False).returncode == 0 for each in commands)


def stand_alone() -> None:
    """Leave behind what pytest had put in place of standard streams, warnings and logs."""
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)
    warnings.resetwarnings()
    for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", category)
    warnings.showwarning = lambda *given: print(warnings.formatwarning(*given[:4]), end="", file=sys.stderr)
    logging.getLogger().handlers.clear()
    for logger in filter(lambda each: isinstance(each, logging.Logger), logging.root.manager.loggerDict.values()):
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setStream(sys.stderr)


def warm_up(folder: Path) -> None:
    """Learn two toy tasks: what is made at first use is then made for every child."""
    from accelerate.state import AcceleratorState

    from merganser.cli import main

    environment = dict(os.environ)
    training, method = {"steps": 2, "warmup": 0}, {"interval": 2, "cold_start": 0, "rehearsal_steps": 1}
    stream = toys.write_stream(folder, training=training, method=method)
    sys.argv = ["merganser", "run", str(stream), "--out", str(folder / "run")]
    with suppress(SystemExit):
        main()
    AcceleratorState._reset_state(reset_partial_state=True)  # of one process; a child may be one of several
    os.environ.clear()
    os.environ.update(environment)


def serve(folder: Path, orders: IO[str], answers: IO[str]) -> None:
    """Answer orders until they end; first of all, whether there is a disk."""
    print(int(mounted(folder / "disk")), file=answers)
    stand_alone()
    os.environ.update(ENVIRONMENT, MERGANSER_CACHE=str(folder / "cache"), TOKENIZERS_PARALLELISM="false")
    os.chdir(ROOT)
    import torch

    for module in PRELOADED:
        importlib.import_module(module)
    for command in pkgutil.iter_modules(merganser.cli.__path__):
        importlib.import_module(f"merganser.cli.{command.name}")
    torch.set_num_threads(1)
    os.fsync = lambda descriptor: None  # as in tests/conftest.py
    warm_up(folder / "warm")
    gc.collect()
    gc.freeze()  # the pages of what is loaded stay shared with the children
    for line in orders:
        order = json.loads(line)
        if "wait" in order:
            status = os.waitpid(order["wait"], 0)[1]
            print(os.waitstatus_to_exitcode(status), file=answers)
            continue
        number = os.fork()
        if number == 0:
            code = 1
            try:
                code = child(order)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print(number, file=answers)
    os._exit(0)
