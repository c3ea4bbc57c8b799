"""Tuning: trials on development data before the results, the same budget for every method, resumed where it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from merganser.errors import InputError
from merganser.report.formatting import score
from merganser.streams.task import Example, Task
from merganser.study import tuning
from merganser.study.cell_record import read_cells, write_cell
from merganser.study.cells import Study, load_study
from merganser.study.folder import StudyFolder
from merganser.study.orders import on_development
from merganser.study.study import Outcome
from merganser.study.tuning import check_tuning, most_trials, note_failed, tuned
from merganser.study.tuning_table import tuning_tables
from tests.learner import toys
from tests.study.conftest import write_study
from tests.study.made_up import cell

Run = Callable[..., Outcome]

GRID = {"memory": {"number": [2, 4]}}


def test_the_best_trial_is_what_the_results_are_made_with(
    tmp_path: Path, run_study: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune = {"grid": GRID, "trials": 2, "development": 0.25}
    file = write_study(tmp_path, methods=["replay"], tune=tune)
    study, folder = load_study(file), StudyFolder(tmp_path / "out")
    assert most_trials(study) == 2
    assert tuned(study, folder, None) is None  # nothing is tried yet
    result = run_study(file, tmp_path / "out")
    assert not result.failed
    records = read_cells(tmp_path / "out" / "records")
    trials, results = ([r for r in records if (r.tuning is None) == kind] for kind in (False, True))
    assert [trial.options for trial in trials] == [{"memory.number": 2}, {"memory.number": 4}]
    assert {trial.method for trial in trials} == {"replay"}
    assert {known.n for trial in trials for known in trial.final.values()} == {3}  # of 12 training texts
    best = max(trials, key=lambda trial: trial.op or 0.0)
    assert [record.options for record in results] == [best.options]
    assert results[0].final["mood"].n == 8
    (table,) = tuning_tables(records, {trials[0].name: "records/trial.json"})
    rows = sorted(table["rows"], key=lambda row: row["options"])
    assert [row["cells"] for row in rows] == [[("seed 1000", "records/trial.json")], [("seed 1000", "")]]
    assert [row["chosen"] for row in table["rows"]] == [True, False]
    assert table["rows"][0]["op"] == score(best.op)

    def never(*_: object) -> None:
        raise AssertionError("a trial is run again")

    monkeypatch.setattr("merganser.study.study.run_locally", never)
    again = tuned(study, folder, None)
    assert again is not None
    assert [dict(cell.options) for cell in again.cells] == [best.options]
    assert run_study(file.rename(tmp_path / "renamed.yaml"), tmp_path / "out").complete
    training = {**toys.settings()["training"], "steps": 3}
    file = write_study(tmp_path, methods=["replay"], tune=tune, training=training)
    with pytest.raises(InputError, match=r"The trial 'replay-1,.* training\.steps: 2 in the run, 3"):
        run_study(file, tmp_path / "out")


def test_a_search_of_which_trials_have_failed_is_finished(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path, methods=["replay"], tune={"grid": GRID, "trials": 2}))
    folder = StudyFolder(tmp_path / "out")

    def run(trials: Study, place: StudyFolder) -> None:
        place.begin(trials)
        first, second = trials.cells
        note_failed(trials, place, [first.name])
        made = cell(second.method, options=second.options, configuration=second.config.model_dump(mode="json"))
        write_cell(place.records, made.model_copy(update={"name": second.name}))

    assert tuned(study, folder, None) is None
    chosen = [tuned(study, folder, how) for how in (run, None)]
    assert [dict(each.cells[0].options) for each in chosen if each] == [{"memory.number": 4}] * 2


def test_the_memory_is_tuned_of_methods_that_have_one(tmp_path: Path) -> None:
    tune = {"grid": GRID, "trials": 2}
    study = load_study(write_study(tmp_path, methods=["sequential", "replay", "joint"], tune=tune))
    assert study.options.tune is not None
    assert [len(search.axes) for search in tuning._searches(study, study.options.tune)] == [0, 1, 0]
    assert most_trials(study) == 2


def test_optuna_chooses_among_more_points_than_there_are_trials(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    grid = {"memory": {"number": list(range(1, 9))}, "training": {"batch": list(range(1, 9))}}
    study = load_study(write_study(tmp_path, methods=["replay"], tune={"grid": grid, "trials": 16}))
    assert study.options.tune is not None

    def search() -> list[tuple[int, ...]]:
        (found,) = tuning._searches(study, study.options.tune)
        while tuning._propose(found, study.options.tune):
            found.scores = [1.0 - abs(p["memory", "number"] - 6) / 10 for p in found.points]
        assert found.best()["memory", "number"] in (5, 6, 7)
        return [tuple(point.values()) for point in found.points]

    points = search()
    assert len(points) == len(set(points)) == 16
    assert points == search()  # so that an interrupted search goes on where it was


def test_development_data_are_in_the_place_of_the_test_data() -> None:
    texts = [Example(f"text {number}", "yes" if number % 2 else "no") for number in range(10)]
    task = Task("mood", texts, texts[:2], texts[2:5])
    assert on_development(task, None) is task
    assert list(on_development(task, "dev").test) == texts[:2]
    held = on_development(task, 0.3)
    assert (len(held.train), len(held.test)) == (7, 3)
    assert {example.input for example in (*held.train, *held.test)} == {example.input for example in texts}
    with pytest.raises(InputError, match="no development texts"):
        on_development(Task("mood", texts, (), texts), "dev")
    with pytest.raises(InputError, match="too few training texts"):
        on_development(Task("mood", texts[:1], (), texts), 0.5)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"tune": {"grid": {}, "trials": 2}}, "tune.grid is empty"),
        ({"tune": {"grid": {"method": {"lamda": [1, 2]}}, "trials": 2}}, "no method of the study has the option"),
        (
            {"tune": {"grid": GRID, "trials": 2}, "methods": ["ewc", "coma"]},
            "no method of the study has a memory to vary",
        ),
        ({"tune": {"grid": GRID, "trials": 2}, "grid": {"training": {"batch": [2]}}}, "both 'tune' and a 'grid'"),
        ({"tune": {"grid": GRID, "trials": 2}, "processes": 2}, "cells of one process"),
    ],
)
def test_a_tuning_that_cannot_be_is_refused(tmp_path: Path, changes: dict[str, object], cause: str) -> None:
    with pytest.raises(InputError, match=cause):
        check_tuning(load_study(write_study(tmp_path, **json.loads(json.dumps(changes)))))


def test_without_optuna_a_larger_grid_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    study = load_study(write_study(tmp_path, tune={"grid": GRID, "trials": 1}))
    with pytest.raises(InputError, match="Optuna") as error:
        check_tuning(study)
    assert "merganser[tune]" in error.value.remedy
