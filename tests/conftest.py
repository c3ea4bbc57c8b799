"""Settings that must be made before torch is imported, and the one process that forks others."""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.cli.spawner import Spawner

# Two torch threads on busy cores can be twenty times slower while OpenMP spins; tests are small, one thread is enough.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
# Nothing is compiled by torch; libraries that ask for it when they are imported would load the compiler first.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
# No test needs the network; without this a missing model would be looked for on the hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# As the command does: much of what is imported stays, and is not looked through for garbage again and again.
gc.set_threshold(10_000, 20, 50)

# Files on a disk that live for a second take half of the system's time; they are in memory where there is plenty of it.
MEMORY = Path("/dev/shm")
if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 1 << 30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))

# A flush waits for the disk, some hundred times in a run's life; no test cuts the power (tests/faults.py pretends to).
os.fsync = lambda descriptor: None

# A busy machine is no failure. Where a change is judged, the same cases are tried every time; elsewhere, new ones.
settings.register_profile("here", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a file in one worker, and begin with the longest group: all files that use the spawner.

    It takes long to start, so only one worker starts it.
    """
    spawning = {item.path for item in items if "spawner" in getattr(item, "fixturenames", ())}
    for item in items:
        item.add_marker(pytest.mark.xdist_group("spawner" if item.path in spawning else str(item.path)))
    items.sort(key=lambda item: item.path not in spawning)


def pytest_collection_finish() -> None:
    """Take what the test files imported out of the garbage collection that every training ends with."""
    gc.collect()
    gc.freeze()
    _seed_no_absent_device()


def _seed_no_absent_device() -> None:
    """Let ``torch.manual_seed`` keep no stack of calls for each kind of device that may be started later.

    These lists also grow with every seed, and none of these devices appears while tests run.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return
    for kind in (torch.cuda, torch.xpu, torch.mtia):
        if not kind.is_available():
            kind.manual_seed_all = lambda seed: None


@pytest.fixture(scope="module", autouse=True)
def imported_since() -> None:
    """Take what was imported since the last file of tests out of the garbage collection, too."""
    gc.freeze()


@pytest.fixture(scope="session")
def spawner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spawner]:
    """Start processes without the imports."""
    from tests.cli.spawner import Spawner

    started = Spawner(tmp_path_factory.mktemp("spawner"))
    yield started
    started.stop()
