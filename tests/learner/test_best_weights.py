"""``training.select_best``: the weights deployed are those that did best on the development texts of all tasks seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from merganser.config import load_config
from merganser.errors import InputError
from merganser.learner import Learner, best_weights
from merganser.metrics import Score
from merganser.runs import read_run
from merganser.streams.loading import load_stream
from merganser.weights import Weights
from tests.learner.toys import read_json, rows, settings, write_config, write_rows, write_stream


def learn(folder: Path, dev: bool = True, method: str = "sequential", **training: Any) -> Path:
    values = settings()
    values["training"].update({"select_best": True, **training})
    values["method"] = {"name": method}
    write_stream(folder)
    for task in values["stream"]["tasks"]:
        write_rows(folder / f"{task['name']}-dev.json", rows(task["name"], 6, seed=2))
        if dev:
            task["dev"] = f"{task['name']}-dev.json"
    config = load_config(write_config(folder / "stream.yaml", values))
    assert config.stream is not None
    with Learner.of_config(folder / "run", config) as learner:
        learner.learn_stream(load_stream(config.stream, folder).tasks)
    return folder / "run"


def test_the_best_of_all_seen_tasks_is_deployed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    weights: list[Weights] = []
    given = {"mood": iter([0.5, 0.75, 0.75]), "topic": iter([0.5, 0.25, 0.5])}
    measure = best_weights.BestWeights._measure

    def watched(self: best_weights.BestWeights, step: int, model: Any) -> None:
        real = self.score

        def score() -> dict[str, Score]:
            found = real()
            asked.append(list(found))
            weights.append(self._weights.snapshot())
            value = next(given[list(found)[-1]])
            return {name: Score(value=value, n=each.n, stderr=0.0) for name, each in found.items()}

        self.score = score
        measure(self, step, model)
        self.score = real

    monkeypatch.setattr(best_weights.BestWeights, "_measure", watched)
    run = learn(tmp_path, select_every=2)
    assert asked == [["mood"]] * 3 + [["mood", "topic"]] * 3
    first, second = (task for task in read_run(run).tasks)
    assert (first.selected_step, first.dev_scores) == (4, {2: 0.5, 4: 0.75, 6: 0.75})  # of equal ones the earlier
    assert (second.selected_step, second.dev_scores) == (2, {2: 0.5, 4: 0.25, 6: 0.5})
    monkeypatch.undo()
    with Learner.open(run) as learner:
        deployed = learner.session.deployed(2)
        assert all(bool((deployed[name] == value).all()) for name, value in weights[3].items())
        assert any(bool((deployed[name] != value).any()) for name, value in weights[5].items())
        assert [len(learner.session.known_tasks("dev")[name].test) for name in ("mood", "topic")] == [6, 6]
        assert learner.session.directory.undo_row() == ["topic"]


def test_once_per_epoch_by_default_and_training_is_the_same(tmp_path: Path) -> None:
    runs = [learn(tmp_path / str(on), select_best=on, method="aim") for on in (True, False)]
    on, off = (read_run(run) for run in runs)
    assert list(on.tasks[1].dev_scores) == [3, 6]  # 12 texts in batches of 4
    assert on.tasks[1].selected_step in (3, 6)
    assert (off.tasks[1].dev_scores, off.tasks[1].selected_step) == ({}, None)
    # Both tasks start at the same weights, so the first is trained alike; scoring disturbs nothing.
    assert on.signals["mood"] == off.signals["mood"]
    assert on.tasks[0].cost.examples_evaluated > off.tasks[0].cost.examples_evaluated
    assert (runs[0] / "tasks/02-topic/dev.jsonl").is_file()
    assert not (runs[1] / "tasks/02-topic/dev.jsonl").exists()
    assert read_json(runs[0] / "tasks/02-topic/row.json")["tasks"][0]["dev_examples"] == 6


def test_what_it_refuses(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'mood' has no development texts, and training.select_best selects weights"):
        learn(tmp_path / "a", dev=False)
    assert not (tmp_path / "a" / "run").exists()
    with pytest.raises(InputError, match=r"selects weights, and the merge of Trajectory Regularized Merging"):
        learn(tmp_path / "b", method="trm")
