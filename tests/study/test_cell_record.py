"""Records of cells: read from a run, written, read again, refused where they cannot be trusted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from merganser.errors import InputError
from merganser.study.cell_record import CellRecord, read_cells, record_cell, write_cell
from tests.report.answered import answers_of, to_disk
from tests.report.conftest import make_run

OF = {"name": "aim-1-0", "method": "aim", "options": {}, "stream": "five", "order": "1", "seed": 0}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_run(["sport", "trade"])
    made.info.versions.update(processor="Some CPU", gpu="Some GPU")
    return to_disk(made, tmp_path_factory.mktemp("study") / "runs" / "aim-1-0")


@pytest.fixture(scope="module")
def record(run: Path) -> CellRecord:
    return record_cell(run, **OF, study=run.parent.parent)


def test_a_finished_run_is_recorded_with_scores_examples_and_cost(record: CellRecord) -> None:
    expected = make_run(["sport", "trade"])
    assert (record.run, record.tasks, record.seed) == ("runs/aim-1-0", ["sport", "trade"], 0)
    assert record.rows == expected.scores.rows
    assert record.op == pytest.approx((record.final["sport"].value + record.final["trade"].value) / 2)
    assert record.bwt == pytest.approx(-0.03)
    assert record.fwt is None
    for task in record.tasks:
        assert record.examples[task].scores == answers_of(task, 2, record.final[task].value, 200).scores
    assert record.examples["sport"].test_sha256 != record.examples["trade"].test_sha256
    assert (record.cost.examples_trained, record.cost.examples_rehearsed) == (2 * 120 * 16, 2 * 640)
    assert record.cost.training_seconds == pytest.approx(2 * 14.1)
    assert record.bytes_stored == 2 * 1234 + 2_400_000
    assert record.cost.gpu_seconds is None


def test_the_hardware_is_that_of_the_run_with_its_accelerator(record: CellRecord) -> None:
    assert record.hardware == {"processor": "Some CPU", "gpu": "Some GPU", "device": "cpu"}
    assert set(record.versions) == {"merganser", "python", "torch"}


def test_a_record_is_read_as_it_was_written(record: CellRecord, tmp_path: Path) -> None:
    half = record.model_copy(deep=True, update={"seed": 1, "name": "aim-1-1", "stopped_by": "asha"})
    half.examples["sport"].scores[0] = 0.5
    for cell in (record, half):
        write_cell(tmp_path / "cells" / "alice", cell)
    read = read_cells(tmp_path / "cells")
    for cell, written in zip(read, (record, half), strict=True):
        assert cell.run == f"alice/{written.run}"  # as seen from the folder that was read
        assert cell.model_copy(update={"checksum": "", "run": written.run}) == written
    assert '"scores": "1' in (tmp_path / "cells/alice/aim-1-0.json").read_text()  # compact


def test_records_that_cannot_be_trusted_are_refused(record: CellRecord, tmp_path: Path) -> None:
    file = write_cell(tmp_path, record)
    whole = file.read_text()
    write_cell(tmp_path / "bob", record.model_copy(update={"name": "again"}))
    with pytest.raises(InputError, match="record the same cell: aim on five, order 1, seed 0"):
        read_cells(tmp_path)
    (tmp_path / "bob" / "again.json").unlink()
    for damage, cause in (
        (whole[:-20], "is damaged"),
        (whole.replace('"seed": 0', '"seed": 3'), "content has changed"),
        (json.dumps({**json.loads(whole), "format": 9}), "newer version"),
    ):
        file.write_text(damage)
        with pytest.raises(InputError, match=cause):
            read_cells(tmp_path)
    with pytest.raises(InputError, match="There is no folder"):
        read_cells(tmp_path / "nowhere")


def test_a_run_that_is_none_and_a_name_that_is_none(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no run"):
        record_cell(tmp_path, **OF)
    with pytest.raises(InputError, match="cannot have the name"):
        record_cell(run, **{**OF, "name": "../x"})
