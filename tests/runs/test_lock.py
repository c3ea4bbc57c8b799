"""The lock that keeps two processes out of one run."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from merganser.errors import InputError, RunError
from merganser.runs.lock import RunLock


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    first, second = RunLock(tmp_path), RunLock(tmp_path)
    with first:
        assert first.held
        with pytest.raises(InputError) as raised:
            second.acquire()
        assert f"is in use by another process (number {os.getpid()})" in str(raised.value)
        assert not second.held
    assert not first.held
    with second:
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"
    second.release()  # harmless


def test_released_by_the_death_of_its_process(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from merganser.runs.lock import RunLock; "
        "RunLock(Path(sys.argv[1])).acquire(); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"number {holder.pid}"):
            RunLock(tmp_path).acquire()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with RunLock(tmp_path) as lock:
            assert lock.held


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be changed: No such file or directory"):
        RunLock(tmp_path / "absent").acquire()


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        lock = RunLock(tmp_path)
        with pytest.raises(RunError, match="The disk is full"):
            lock.acquire()
        assert not lock.held
    with RunLock(tmp_path):
        pass  # and nothing holds it
