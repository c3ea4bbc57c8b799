"""Studies of toy cells, whose processes are copies of the test's."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
import yaml

from merganser.study.study import Outcome, study
from tests.learner import toys


class ForkedServer:
    """In the place of ``subprocess.Popen``: the program of :mod:`merganser.study.server` without its imports."""

    def __init__(self, command: list[str], **options: Any) -> None:
        orders, self.stdin = self._pipe()
        out, answers = os.pipe()
        self.stdout: IO[bytes] = os.fdopen(out, "rb", buffering=0)
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setsid()
                self.stdin.close()
                os.close(out)
                os.dup2(orders, 0)
                os.dup2(answers, 1)
                sys.stderr = os.fdopen(2, "w", closefd=False)  # not that of pytest
                signal.alarm(120)
                from merganser.study import server

                server.main()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        os.close(orders)
        os.close(answers)

    def _pipe(self) -> tuple[int, IO[bytes]]:
        reading, writing = os.pipe()
        return reading, os.fdopen(writing, "wb", buffering=0)

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr("merganser.study.local.Popen", ForkedServer)
    monkeypatch.setattr("merganser.study.local.num_cores", lambda: 2)
    monkeypatch.setenv("MERGANSER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    yield
    torch.set_num_threads(threads)


def write_study(folder: Path, **changes: Any) -> Path:
    """Data and ``study.yaml`` of toy cells in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for task in toys.LABELS:
        toys.write_rows(folder / f"{task}.json", toys.rows(task, 12))
        toys.write_rows(folder / f"{task}-test.json", toys.rows(task, 8, seed=1))
    of_run = toys.settings()
    values = {key: of_run[key] for key in ("model", "stream", "memory", "training")}
    values["training"] = {**values["training"], "steps": 2}
    values |= {"methods": ["sequential", "replay"], **changes}
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``study.yaml`` (sequential, replay, joint; two orders) and its study in ``out``."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("merganser.study.local.Popen", ForkedServer)
        patch.setattr("merganser.study.local.num_cores", lambda: 2)
        patch.setenv("MERGANSER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        file = write_study(
            folder, methods=["sequential", "replay", "joint"], orders=[["mood", "topic"], ["topic", "mood"]]
        )
        # One thread: a test that computes with several in its own process could not fork cells of several afterwards.
        result = study(file, folder / "out", parallel=1, threads=1)
    assert result.failed == {}
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to change."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


@pytest.fixture
def run_study() -> Callable[..., Outcome]:
    """:func:`merganser.study.study.study` with one cell at a time."""
    return lambda file, out, **options: study(file, out, **{"parallel": 1, **options})
