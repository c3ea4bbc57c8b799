"""Machines whose clocks are years off: times are written down, and nothing depends on their order."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from merganser.learner import Learner
from merganser.study.cell_record import read_cell
from merganser.study.cells import load_study
from merganser.study.folder import StudyFolder
from merganser.study.orders import Data
from merganser.study.published import read_results
from merganser.study.run_cell import run_cell
from merganser.study.study import Outcome, find_work
from tests.learner import toys


@contextmanager
def machine_of(year: int, folder: Path) -> Iterator[None]:
    """A machine that takes this year for the present one: in what it writes, and in the times of its files."""
    now, before = datetime(year, 5, 1, tzinfo=UTC), set(folder.rglob("*"))

    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> Clock:
            return cls.fromtimestamp(now.timestamp(), UTC)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("merganser.learner.opening.datetime", Clock)
        patch.setattr("merganser.learner.row_files.datetime", Clock)
        patch.setattr(time, "time", now.timestamp)
        yield
    for path in set(folder.rglob("*")) - before:
        os.utime(path, (now.timestamp(), now.timestamp()))


def test_cells_of_machines_whose_clocks_differ_are_those_of_one(
    finished: Path, tmp_path: Path, run_study: Callable[..., Outcome]
) -> None:
    read, folder, data = load_study(finished / "study.yaml"), StudyFolder(tmp_path / "out"), Data(finished)
    begun = read.find("replay,order-1,s0")
    with machine_of(2045, tmp_path):
        folder.begin(read, 1)
        run_cell(read, read.find("sequential,order-1,s0"), folder, data)
        with Learner.of_config(folder.run(begun), begun.config, shared=folder.shared) as learner:
            learner.learn(data.tasks(begun.stream)[0])
    with machine_of(1998, tmp_path):
        run_cell(read, begun, folder, data)  # goes on from a row of the future, with parts of it
        run_cell(read, read.find("joint,order-1,s0"), folder, data)
    record = read_cell(folder.record_file(begun))
    assert (record.created[:4], record.finished[:4]) == ("2045", "1998")
    assert record.cost.seconds > 0
    left = find_work(read, folder, read.runs, resume_stopped=True).cells
    assert [cell.name for cell in left] == ["sequential,order-2,s0", "replay,order-2,s0"]
    assert run_study(finished / "study.yaml", folder.path, threads=1).complete
    for cell in read.runs:
        assert toys.results(folder.run(cell)) == toys.results(finished / "out" / "cells" / cell.name)
    assert len(list((folder.shared / "training").iterdir())) == 3  # taken from each other, as with one clock
    here, there = (read_results(each).table.results[0] for each in (folder.path, finished / "out"))
    assert {each.label: each.op for each in here.methods} == {each.label: each.op for each in there.methods}
