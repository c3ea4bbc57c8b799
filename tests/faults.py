"""Fault injection: stop a piece of work at every call that changes a folder, by a kill, a power cut or an error.

The calls are those that Python's audit events report (opening for writing, renaming, removing, making folders), and,
beside them, ``fsync`` and the writer of safetensors. Everything here happens in forked processes: what was loaded
before is shared, and nothing that a fault leaves in memory outlives it.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch

from merganser.runs.checksums import is_intact

LIMIT = 300
"""Seconds after which a forked process is ended."""

CHANGING = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

TIMES = re.compile(rb'"(\w*seconds|finished|created|removed|checksum|run_sha256)": [^,\n}]+|created: .+')
"""What differs between two equal runs: times, and checksums of files with times in them."""


def forked(work: Callable[[], None]) -> None:
    """Call ``work`` in a forked process and fail with its traceback if it raises."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        code = 1
        try:
            os.close(reading)
            signal.alarm(LIMIT)
            work()
            code = 0
        except BaseException:
            with os.fdopen(writing, "w") as stream:
                stream.write(traceback.format_exc())
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as stream:
        error = stream.read()
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if code:
        raise AssertionError(error or f"the forked process ended with {code}")


class ChangingCalls:
    """Calls a function before every call in this process that changes something under a folder.

    Made once in a process, since an audit hook stays.
    """

    def __init__(self) -> None:
        self.folder = ""
        self.before: Callable[[str], None] | None = None
        self.flushed: set[tuple[int, int]] = set()
        sys.addaudithook(self._audit)
        fsync, serialize = os.fsync, safetensors.torch.serialize_file

        def flushing(descriptor: int) -> None:
            self._reach("fsync", descriptor)
            fsync(descriptor)
            self.flushed.add(self._state(os.fstat(descriptor)))

        def serializing(tensors: Any, path: Any, *more: Any, **options: Any) -> None:
            self._reach("serialize", path)
            serialize(tensors, path, *more, **options)

        os.fsync, safetensors.torch.serialize_file = flushing, serializing

    @staticmethod
    def _state(status: os.stat_result) -> tuple[int, int]:
        return status.st_ino, status.st_mtime_ns

    def is_flushed(self, status: os.stat_result) -> bool:
        """Whether the content of a file is on the disk."""
        return self._state(status) in self.flushed

    @contextmanager
    def watched(self, folder: Path, before: Callable[[str], None]) -> Iterator[None]:
        """Call ``before`` with the name of every call in the block that changes something under ``folder``."""
        self.folder, self.before = os.path.realpath(folder), before
        self.flushed = {self._state(path.stat()) for path in folder.rglob("*")}
        try:
            yield
        finally:
            self.before = None

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.before is None:
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, str | bytes | os.PathLike) and isinstance(flags, int) and flags & WRITING:
                self._reach(event, path)
        elif event in CHANGING:
            folders = [each for each in arguments[1:] if isinstance(each, int) and each >= 0]
            is_relative = event in ("os.remove", "os.rmdir") and folders
            self._reach(event, folders[-1] if is_relative else arguments[0])

    def _reach(self, call: str, path: Any) -> None:
        before = self.before
        name = os.path.realpath(f"/proc/self/fd/{path}" if isinstance(path, int) else os.fsdecode(path))
        if before is not None and (name == self.folder or name.startswith(self.folder + os.sep)):
            self.before = None  # what it does itself is not reported
            try:
                before(f"{call} {os.path.relpath(name, self.folder)}")
            finally:
                self.before = before


INJECTED = "No space left on device (injected)"


def is_injected(error: BaseException | None) -> bool:
    """Whether an error is the injected one, or was raised because of it."""
    return error is not None and (INJECTED in str(error) or is_injected(error.__cause__))


def record(folder: Path, work: Callable[[], None], states: Path) -> None:
    """Do the work in the current process and keep what a stop before each call that changes its folder would leave.

    Args:
        folder: is current while ``work`` is called, and holds all that it changes.
        states: a folder to make, for copies of ``folder`` named by the calls, which are also listed in ``calls``; equal
            states are kept once.
    """
    states.mkdir()
    os.chdir(folder)
    seen: set[int] = set()
    listed: list[str] = []

    def keep(state: Path) -> None:
        mark = hash(tuple(content_of(state).items()))
        if mark in seen:
            shutil.rmtree(state)
        seen.add(mark)

    def before(call: str) -> None:
        name = f"{len(listed):03d} {call}".replace(os.sep, " ")
        listed.append(call)
        shutil.copytree(folder, states / f"{name} (killed)")
        # After a power cut, half is lost of every file that was not flushed.
        shutil.copytree(folder, states / f"{name} (power cut)")
        for path in folder.rglob("*"):
            if path.is_file() and not calls.is_flushed(path.stat()):
                os.truncate(states / f"{name} (power cut)" / path.relative_to(folder), path.stat().st_size // 2)
        keep(states / f"{name} (killed)")
        keep(states / f"{name} (power cut)")

    calls = ChangingCalls()
    with calls.watched(folder, before):
        work()
    (states / "calls").write_text("\n".join(listed))


def work_with_error(folder: Path, number: int, work: Callable[[], None], calls: ChangingCalls) -> None:
    """Do the work in the current process, with an error in place of the call with this number, counted from 0."""
    reached = 0

    def before(call: str) -> None:
        nonlocal reached
        reached += 1
        if reached == number + 1:
            raise OSError(errno.ENOSPC, INJECTED, call)

    os.chdir(folder)
    with calls.watched(folder, before):
        try:
            work()
        except Exception as error:
            if not is_injected(error):
                raise


def errors_to_try(calls: list[str]) -> dict[str, int]:
    """Return the numbers of the calls to fail: the first of a kind in one unfinished folder, whatever its step."""
    chosen: dict[str, int] = {}
    for number, call in enumerate(calls):
        name, path = call.split(" ", 1)
        folder = os.path.dirname(path)
        where = folder if ".partial" in folder else path
        if name != "fsync":
            chosen.setdefault(re.sub(r"step-\d+", "step", f"{name} {where}"), number)
    return chosen


def check_every_stop(folder: Path, work: Callable[[], None], reopen: Callable[[], None] | None = None) -> None:
    """Check that work that was killed or lost its power anywhere ends in the same bytes when it is done again.

    Args:
        folder: is current while ``work`` is called, and holds all that it changes.
        work: may be called again wherever it was interrupted before.
        reopen: the cheap beginning of ``work`` that cleans up; the rest is tried on its distinct results alone.
    """
    states = folder.with_name(f"{folder.name} states")
    forked(lambda: record(folder, work, states))
    expected = content_of(folder)
    (states / "calls").unlink()
    stopped = sorted(states.iterdir())

    def finish() -> None:
        if reopen is not None:
            for state in stopped:
                os.chdir(state)
                reopen()
        for state in {tuple(content_of(state).items()): state for state in stopped}.values():
            os.chdir(state)
            work()
            check_same(content_of(state), expected, state.name)

    forked(finish)


def check_every_error(folder: Path, work: Callable[[], None]) -> None:
    """Check that work in which a call failed anywhere ends in the same bytes when it is done again; as above."""
    start, states = (folder.with_name(f"{folder.name} {name}") for name in ("at first", "states"))
    shutil.copytree(folder, start)
    forked(lambda: record(folder, work, states))
    expected = content_of(folder)
    calls = (states / "calls").read_text().splitlines()

    def fail() -> None:
        watch = ChangingCalls()
        for number in errors_to_try(calls).values():
            copy = states / f"{number:03d} {calls[number]} (error)".replace(os.sep, " ")
            shutil.copytree(start, copy)
            work_with_error(copy, number, work, watch)
            work()
            check_same(content_of(copy), expected, copy.name)

    forked(fail)


def check_same(content: dict[str, bytes | None], expected: dict[str, bytes | None], where: str) -> None:
    """Fail with the names of the files that differ."""
    differing = [name for name in sorted({*content, *expected}) if content.get(name, b"-") != expected.get(name, b"-")]
    assert not differing, f"{where}: these differ from undisturbed work: {differing}"


def content_of(folder: Path) -> dict[str, bytes | None]:
    """Every file of a folder with its bytes, every folder with ``None``; without locks and without times."""
    return {
        str(path.relative_to(folder)): without_times(path.read_bytes()) if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if not path.name.endswith(".lock")
    }


def without_times(content: bytes) -> bytes:
    """The content of a file without what differs between two equal runs; whether its own checksum holds stays."""
    checksum = re.search(rb'"checksum": "([0-9a-f]{64})"\s*}\s*$', content)
    mark = b"" if checksum is None else b"intact" if is_intact(content, checksum[1].decode()) else b"damaged"
    return TIMES.sub(b"", content) + mark
