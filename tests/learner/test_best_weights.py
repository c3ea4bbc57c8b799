"""``training.select_best``: the weights deployed are those that did best on the development texts of all tasks seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from merganser.config import load_config
from merganser.errors import InputError
from merganser.events import Event, Notice
from merganser.learner import Learner, best_weights, resume
from merganser.metrics import Score
from merganser.models.base import eval_mode
from merganser.runs import read_run
from merganser.runs.undo import undo_rows
from merganser.streams.loading import load_stream
from merganser.weights import Weights
from tests.learner.toys import read_json, rows, settings, write_config, write_rows, write_stream


def learn(
    folder: Path, dev: bool = True, method: Any = "sequential", notes: list[str] | None = None, **training: Any
) -> Path:
    values = settings()
    given = {"select_best": True, **training}
    values["training"].update({key: value for key, value in given.items() if value is not None})
    values["method"] = method
    write_stream(folder)
    for task in values["stream"]["tasks"]:
        write_rows(folder / f"{task['name']}-dev.json", rows(task["name"], 6, seed=2))
        if dev:
            task["dev"] = f"{task['name']}-dev.json"
    config = load_config(write_config(folder / "stream.yaml", values))
    assert config.stream is not None

    def listener(event: Event) -> None:
        if notes is not None and isinstance(event, Notice):
            notes.append(event.text)

    with Learner.of_config(folder / "run", config, listener=listener) as learner:
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
        assert undo_rows(learner.session.directory).removed == ["topic"]


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


def test_by_loss_of_some_texts_and_never_the_last_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of a task is the mean over all label tokens (for this model: texts); the lowest mean is deployed."""
    given = iter([3.0, 2.0, 1.0, 5.0])
    texts: list[dict[str, int]] = []
    real = resume.task_losses

    def measured(backbone: Any, features: Any, batch: int) -> dict[str, best_weights.TaskLoss]:
        found = real(backbone, features, batch)
        with torch.no_grad(), eval_mode(backbone.module):
            whole = {task: backbone.module(**backbone.collate(rows))["loss"].item() for task, rows in features.items()}
        assert {task: loss.value for task, loss in found.items()} == pytest.approx(whole)
        texts.append({task: loss.n for task, loss in found.items()})
        value = next(given)
        return {task: best_weights.TaskLoss(value if task == list(found)[-1] else 0.0, 5) for task in found}

    monkeypatch.setattr(resume, "task_losses", measured)
    run = learn(tmp_path, select_by="loss", select_every=2, select_texts=5, select_last=False)
    first, second = read_run(run).tasks
    assert (first.selected_step, first.dev_scores) == (4, {2: 3.0, 4: 2.0})
    assert (second.selected_step, second.dev_scores) == (2, {2: 0.5, 4: 2.5})
    assert texts == [{"mood": 5}] * 2 + [{"mood": 5, "topic": 5}] * 2


def test_as_the_released_program_where_there_are_development_texts(tmp_path: Path) -> None:
    """`compat: reference` selects; tasks without development texts are learned to their last step, which is said."""
    for dev, expected in ((True, {2, 4}), (False, set())):
        notes: list[str] = []
        compat = {"name": "aim", "compat": "reference", "interval": 2, "measure_merges": False}
        run = learn(tmp_path / str(dev), dev, compat, notes, select_best=None, select_every=2)
        assert {step for task in read_run(run).tasks for step in task.dev_scores} == expected
        told = [note for note in notes if "no development texts" in note]
        assert len(told) == (not dev)
        assert dev or told[0].startswith(
            "Task 'mood' (and 1 more) has no development texts: its last weights are deployed"
        )
