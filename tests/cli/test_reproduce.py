"""``merganser reproduce``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from merganser.streams.builtin import BUILTIN
from merganser.study.cell_record import write_cell
from tests.learner.toys import Command
from tests.study.made_up import cell

NAME = "forever-standard-cl"


def test_the_catalogue_is_listed_and_an_entry_shown(merganser: Command) -> None:
    listed = merganser("reproduce").out
    assert "aimmerging-llama2-13b-superni" in listed
    names = [each["name"] for each in json.loads(merganser("reproduce", "--json").out)]
    assert NAME in names
    shown = merganser("reproduce", NAME).out
    assert ["forever", "OP", "72.9", "2601.03938", "[N]"] in [line.split() for line in shown.splitlines()]
    assert "[N] notes on the paper by others" in shown
    assert f"merganser reproduce {NAME} --write study.yaml --data DATA" in shown


def test_published_and_measured_stand_side_by_side(
    tmp_path: Path, merganser: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = BUILTIN["standard-cl-1"].tasks
    for seed in range(3):
        write_cell(tmp_path / "records", cell("forever", seed=seed, tasks=tasks))
    monkeypatch.setenv("COLUMNS", "80")
    lines = merganser("reproduce", NAME, "--results", tmp_path).out.splitlines()
    rows = {tuple(line.split()[:2]): line.split() for line in lines if len(line.split()) > 4}
    number = rows["forever", "OP"]
    assert number[2:5] == ["72.9", "2601.03938", "[N]"]
    assert (60 < float(number[5]) < 80, number[7], number[9]) == (True, "to", "3")
    assert float(number[6]) < float(number[5]) < float(number[8])
    assert rows["olora", "OP"][5:] == rows["SAPT", "OP"][5:] == ["not", "run"]
    assert "No such method here: SAPT, SSR." in lines
    assert any("Runs made otherwise than the study of this table" in line for line in lines)
    value = json.loads(merganser("reproduce", NAME, "--results", tmp_path, "--json").out)
    measured = {(each["method"], each["figure"]): each["measured"] for each in value["comparison"]}
    assert measured["forever", "op"]["runs"] == 3
    assert measured["olora", "op"] is None


def test_a_study_is_written(tmp_path: Path, merganser: Command) -> None:
    done = merganser("reproduce", "magmax-cub", "--write", "study.yaml")
    assert (done.code, "Wrote study.yaml" in done.err) == (0, True)
    assert len(merganser("study", "study.yaml", "--print").out.splitlines()) == 12
    assert "exists" in merganser("reproduce", "magmax-cub", "--write", "study.yaml").error


def test_options_without_what_they_need_are_refused(merganser: Command) -> None:
    assert "is for one entry" in merganser("reproduce", "--results", ".").error
    assert "is for a study's file" in merganser("reproduce", NAME, "--model", "x").error
    assert "--write prints no figures" in merganser("reproduce", NAME, "--write", "x.yaml", "--json").error
    assert "There is no entry" in merganser("reproduce", "forever").error
