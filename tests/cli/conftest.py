"""The command as a fixture, and a finished run to try it on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.learner import toys


@pytest.fixture(autouse=True)
def _quiet_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, cache and working folder of the test's own, a terminal of ordinary width."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("MERGANSER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def merganser(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> toys.Command:
    """``merganser("run", ...)`` in this process."""
    return toys.Command(monkeypatch, capsys)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run (tasks mood and topic, aim) in ``tmp_path/work/run``, its stream beside it."""
    return toys.copy_of_trained(tmp_path / "work")
