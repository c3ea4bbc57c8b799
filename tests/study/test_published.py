"""Results of a folder: of a study, and of records of several people."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from merganser.errors import InputError
from merganser.study.cell_record import write_cell
from merganser.study.published import read_results
from tests.study.made_up import cell, study


def test_results_of_a_study_are_published_beside_it(tmp_path: Path) -> None:
    for record in study({"replay": 0.6, "aim": 0.7}, orders=("1",), seeds=2, n=10, tasks=("books", "tweets")):
        write_cell(tmp_path / "records", record)
    (tmp_path / "study.json").write_text(json.dumps({"format": 1, "name": "Two methods", "reference": "aim"}))
    results = read_results(tmp_path)
    assert results.table.results[0].reference == "aim"
    assert "Two methods" in results.publish().read_text()
    assert {path.name for path in (tmp_path / "results").iterdir()} == {
        "study.md", "study.tex", "study.csv", "cells.csv", "figures"
    }  # fmt: skip
    assert "results/figures/differences.svg" in (tmp_path / "study.html").read_text()
    # A page beside the records does not disturb them.
    assert len(read_results(tmp_path / "records", reference="replay").records) == 4


def test_folders_without_results_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no records"):
        read_results(tmp_path)
    (tmp_path / "study.json").write_text("{}")
    (tmp_path / "records").mkdir()
    write_cell(tmp_path / "records", cell("aim", n=10, tuning="grid"))
    with pytest.raises(InputError, match="no results of cells"):
        read_results(tmp_path)
