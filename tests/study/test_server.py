"""The process that cells are started from, when the command that it works for is gone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from merganser.runs import read_run
from merganser.study.cells import load_study
from merganser.study.folder import StudyFolder
from merganser.study.local import Pool
from tests.learner import toys
from tests.study.conftest import write_study


@pytest.mark.parametrize("ends", [("stdout",), ("stdin", "stdout")], ids=["answers", "orders and answers"])
def test_it_stops_its_cells_and_ends_without_a_word(
    ends: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    training = {**toys.settings()["training"], "steps": 5000, "checkpoint_steps": 4, "report_steps": 1}
    study = load_study(write_study(tmp_path, methods=["sequential", "replay"], training=training))
    folder = StudyFolder(tmp_path / "out")
    runs = [folder.run(cell) for cell in study.cells]
    pool = Pool(study, folder).__enter__()
    while not pool.ready:
        assert not list(pool.messages())
    for cell in study.cells:
        pool.start(cell, 1, None)
    while not all(list(run.glob("checkpoint/01-step-*/checkpoint.json")) for run in runs):
        assert all("fraction" in message for message in pool.messages())
    processes = [int((run / ".lock").read_text()) for run in runs]
    capfd.readouterr()
    for end in ends:  # as when the command is killed
        getattr(pool.process, end).close()
    assert pool.process.wait() == 0
    assert capfd.readouterr().err == ""
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
    for run in runs:
        assert read_run(run).tasks == []
        assert list(run.glob("checkpoint/01-step-*/checkpoint.json"))
