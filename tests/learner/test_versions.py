"""Runs that do not keep the weights of every row, whatever the method reads again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from merganser import Example
from merganser.errors import InputError
from merganser.learner import Learner
from merganser.learner.learn_task import RefusedRow
from merganser.runs import RunDirectory
from merganser.runs.verification import verify
from merganser.weights import Weights
from tests.learner import toys
from tests.learner.test_learner import sections, task


def learn_three(run: Path, keep: Any, method: dict[str, Any]) -> list[bool]:
    """Learn three tasks with whole weights and answer them; return whether the rows have their weights."""
    options = sections(training={"steps": 1}, runs={"keep_weights": keep})
    options["model"]["lora"], options["method"] = None, method
    with Learner.open(run, **options) as learner:
        for name in toys.LABELS:
            learner.learn(task(name))
        assert set(learner.evaluate()) == set(toys.LABELS)
    directory = RunDirectory.open(run)
    assert verify(directory, repair=False).damaged == []
    return [row.has_weights for row in directory.rows]


def test_weights_before_any_merge_that_a_method_reads_again_are_kept(tmp_path: Path) -> None:
    assert learn_three(tmp_path / "run", 1, {"name": "tunable_magmax"}) == [True, False, False, True]
    assert all((row / "trained").is_dir() for row in sorted((tmp_path / "run" / "tasks").iterdir())[1:])


def test_rows_that_answer_a_task_are_kept(tmp_path: Path) -> None:
    assert learn_three(tmp_path / "run", "tagged", {"name": "kmerge", "models": 2}) == [True, True, True, True]
    with Learner.open(tmp_path / "run") as learner:
        learner.undo()
        # A task whose model had been merged into that of the row that is gone is answered as before.
        assert set(learner.evaluate()) == {"mood", "topic"}


def test_the_weights_are_those_of_the_row_that_came_back(tmp_path: Path) -> None:
    with Learner.open(tmp_path / "run", **sections(training={"steps": 1}, method="sequential")) as learner:
        learner.learn(task("mood"))
        first = learner.session.deployed(1)
        learner.undo(keep=True)
        learner.learn(task("mood", list(task("mood").train[:6])))
        learner.undo("mood-undone", keep=True)
        assert learner.session.rows[-1].folder.name == "01-mood"
        weights = Weights.of(learner.session.backbone.module)
        assert all(torch.equal(value, first[name]) for name, value in weights.items())


def test_an_undone_task_is_learned_again_as_a_new_one(tmp_path: Path) -> None:
    def constant(answers: Sequence[str], references: Sequence[str]) -> list[float]:
        return [0.3] * len(answers)

    good = task("mood")
    with Learner.open(tmp_path / "run", **sections(training={"steps": 1}, method="sequential")) as learner:
        assert learner.learn(replace(good, metric=constant)).scores["mood"].value == pytest.approx(0.3)
        learner.undo()
        row = learner.learn(task("mood", [*good.train, Example("film " * 100, "good")]))
        assert 8 * row.scores["mood"].value == round(8 * row.scores["mood"].value)  # accuracy on eight examples
        assert learner.record.tasks[0].truncated["train_inputs"] == 1


def test_a_refusal_takes_nothing_away_that_was_learned(tmp_path: Path) -> None:
    def learn_two() -> None:
        with Learner.open(tmp_path / "run", **sections(training={"steps": 1}, method="sequential")) as learner:
            learner.learn(task("mood"))
            learner.learn(task("topic"), accept=lambda rows: False)

    with pytest.raises(RefusedRow):
        learn_two()
    assert [row.folder.name for row in RunDirectory.open(tmp_path / "run").rows] == ["00-start", "01-mood"]


def test_what_is_gone_says_so_everywhere(tmp_path: Path) -> None:
    run = tmp_path / "run"
    # Two rows: the default where all weights are trained.
    assert learn_three(run, "auto", {"name": "sequential"}) == [True, False, True, True]
    for row in ("mood", "01-mood"):
        with pytest.raises(InputError, match=r"The weights of '01-mood' were removed on .*\(runs\.keep_weights: 2\)"):
            Learner.open(run, read_only=True, row=row)
    with Learner.open(run, read_only=True) as learner, pytest.raises(InputError, match="were removed"):
        learner.export(tmp_path / "out", after="mood")
    assert not (tmp_path / "out").exists()
    with Learner.open(run) as learner:
        with pytest.raises(InputError, match="Rows with weights: 00-start, 02-topic, 03-truth"):
            learner.undo(to="mood")
        learner.tag("release")
        with pytest.raises(InputError, match="'release' is a tag of"):
            learner.learn(replace(task("topic"), name="release"))
        result = learner.undo(keep=True)
        assert (result.removed, result.kept_as, learner.learned) == (["truth"], "truth-undone", ["mood", "topic"])
        assert learner.undo(to="truth-undone").tags_restored == ["release"]
        assert learner.learned == list(toys.LABELS)


def test_more_is_kept_when_a_run_is_continued_so(tmp_path: Path) -> None:
    options = sections(training={"steps": 1}, method="sequential", runs={"keep_weights": 1})
    run = tmp_path / "run"
    with Learner.open(run, **options) as learner:
        learner.learn(task("mood"))
    with Learner.open(run, runs={"keep_weights": "all"}) as learner:
        learner.learn(task("topic"))
    with Learner.open(run) as learner:  # as the run was started
        learner.tag("best", "topic")
        learner.learn(task("truth"))
    assert [row.has_weights for row in RunDirectory.open(run).rows] == [True, False, True, True]
