"""A plan: its numbers are those of the run, and nothing is written."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from merganser import Learner, processes
from merganser.cli.plan import kept_line
from merganser.config import check_config, load_config
from merganser.errors import InputError
from merganser.events import Evaluating, Event
from merganser.learner.measuring import Speed, spread
from merganser.learner.plan import _rows_trained
from merganser.streams.loading import load_stream
from merganser.streams.watch import load_watched
from merganser.training.options import TrainingOptions
from tests.learner import toys
from tests.learner.toys import Command, contents


def stream_of(folder: Path, **changes: Any) -> Path:
    tasks = ("mood", "topic")
    return toys.write_stream(folder, tasks, training={"steps": None, "epochs": 2, "batch": 4}, **changes)


def check_memory(memory: dict[str, Any], trainable: int, weights: list[torch.nn.Parameter]) -> None:
    """Compare the parts of the estimate with the weights of the run."""
    trained = sum(weight.nbytes for weight in weights if weight.requires_grad)
    assert memory["device"] == "cpu"
    assert sum(weight.nbytes for weight in weights) <= memory["weights"] < 1.1 * sum(w.nbytes for w in weights) + 65536
    assert memory["gradients"] == trained == 4 * trainable
    assert 2 * trained <= memory["moments"] < 2 * trained + 1024  # and a step count per weight
    # At a merge: the weights after the last merge, those of the inner steps, their change, the optimizer's moments.
    assert 5 * trained <= memory["snapshots"] < 9 * trained
    assert memory["activations"] > 0
    assert memory["total"] == sum(
        memory[part] for part in ("weights", "gradients", "moments", "snapshots", "activations")
    )


def test_the_numbers_are_those_of_the_run_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    watch = {"watch": [{"name": "safety", "test": "truth-test.json"}]}
    stream = stream_of(tmp_path / "data", evaluation={"future": False}, stream=watch)
    (tmp_path / "temporary").mkdir()  # conftest.py puts the cache into this folder, too
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    done = Command(monkeypatch, capsys)("run", stream, "--plan", "--json")
    assert (done.code, contents(tmp_path)) == (0, before), done.err
    plan = json.loads(done.out)

    config = load_config(stream)
    assert config.stream is not None
    tasks = load_stream(config.stream, stream.parent).tasks
    events: list[Event] = []
    with Learner.of_config(tmp_path / "run", config, listener=events.append) as learner:
        learner.watch(*load_watched(config.stream, stream.parent))
        learner.learn_stream(tasks)
        record = learner.record
        features = [learner.session.backbone.features(task.train, task.spec) for task in tasks]
        weights = list(learner.session.backbone.module.parameters())
    assert [task["name"] for task in plan["tasks"]] == ["mood", "topic"]
    assert [task["steps"] for task in plan["tasks"]] == [task.cost.steps for task in record.tasks] == [6, 6]
    assert [task["rows"] for task in plan["tasks"]] == [12, 12]
    assert [task["memory"] for task in plan["tasks"]] == [0, 4]
    tokens = [sum(feature["length"] for feature in of_task) for of_task in features]
    assert [task["tokens"] for task in plan["tasks"]] == tokens
    assert [task["tokens_trained"] for task in plan["tasks"]] == [2 * count for count in tokens]
    answered = sum(e.total for e in events if isinstance(e, Evaluating) and e.done == e.total)
    assert sum(task["answers"] for task in plan["tasks"]) == answered

    check_memory(plan["memory"], plan["trainable"], weights)
    seconds = [task["training_seconds"] + task["evaluating_seconds"] for task in plan["tasks"]]
    assert plan["seconds"] == pytest.approx(sum(seconds))
    assert all(each > 0 for each in seconds)
    assert plan["measured_on"] == "topic"

    shutil.rmtree(tmp_path / "cache", ignore_errors=True)  # as on another machine
    before = contents(tmp_path)
    shown = Command(monkeypatch, capsys)("run", stream, "--plan", "--out", tmp_path / "run")
    assert shown.error == "Every task of the stream is learned already. There is nothing to plan."
    added = ("--task", "more", "--train", "data/mood.json", "--test", "data/mood-test.json")
    shown = Command(monkeypatch, capsys)("learn", tmp_path / "run", *added, "--plan")
    assert shown.code == 0, shown.err
    assert "Learned already: mood, topic" in shown.out
    assert "Nothing was written." in shown.out
    assert "Estimate: " in shown.out
    assert contents(tmp_path) == before


@pytest.mark.parametrize("method", ["joint", "ewc", "lwf"])
def test_every_kind_of_method(tmp_path: Path, method: str) -> None:
    """Snapshots are what the method holds: none, Fisher information, the weights before the task."""
    training = {"steps": 40, "select_best": False}
    model = {"name": str(toys.model_folder(layers=2))}
    config = check_config(toys.settings(method=method, training=training, memory={"number": 4}, model=model), "options")
    stream = toys.write_stream(tmp_path, ("mood", "topic"))
    options = load_config(stream).stream
    assert options is not None
    plan = Learner.plan(config, load_stream(options, tmp_path).tasks)
    trained = plan.memory.gradients
    copies = plan.memory.snapshots / trained
    # Batches and losses are as large as the factors of this tiny model.
    low, high = {"joint": (0, 2), "ewc": (1, 3), "lwf": (1, 3)}[method]
    assert low <= copies <= high, copies
    assert sum(task.steps for task in plan.tasks) == (40 if method == "joint" else 80)
    assert len(plan.tasks) == (1 if method == "joint" else 2)


def test_a_function_that_scores_is_not_called_and_processes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = check_config(toys.settings(method="replay", memory={"sampler": "mixed"}), "options")
    options = load_config(toys.write_stream(tmp_path, ("mood",))).stream
    assert options is not None
    (task,) = load_stream(options, tmp_path).tasks

    def judge(answers: Any, references: Any) -> Any:
        raise AssertionError("called")

    import dataclasses

    plan = Learner.plan(config, [dataclasses.replace(task, metric=judge)], fwt=True)
    assert plan.remarks == [
        "The functions that score mood were not called: their time is not in the estimate.",
        "The time of choosing the memory, measuring losses for memory.sampler: mixed, is not in the estimate.",
    ]
    assert plan.references_seconds > 0
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    with pytest.raises(InputError, match="A plan is made by one process"):
        Learner.plan(config, [task])


def test_seconds_of_a_task_from_those_of_the_measured_steps() -> None:
    speed = Speed(step=2.0, plain_share=0.5, length=10.0, merge=3.0, interval=5, after=7.0, memory=True)
    assert speed.training(20, 10.0, memory=True) == 20 * 2 + (20 / 5 + 1) * 3 + 7
    assert speed.training(20, 5.0, memory=True) == (20 * 2 + 5 * 3) / 2 + 7
    assert speed.training(20, 10.0, memory=False) == 20  # the first task: nothing to merge with
    assert Speed(2.0, 1.0, 10.0, 0.0, None, 0.0, memory=False).training(20, 10.0, memory=False) == 40


def test_the_last_step_of_a_pass_may_be_smaller() -> None:
    training = TrainingOptions(batch=4, accumulation=1)
    session: Any = SimpleNamespace(config=SimpleNamespace(training=training))
    # 10 rows are steps of 4, 4 and 2: seven steps are two passes and one step of 4.
    assert _rows_trained(session, 10, 7) == 24


def test_examples_are_spread_over_all_lengths() -> None:
    assert spread(range(10), 20) == list(range(10))
    assert spread(range(100), 4) == [24, 49, 74, 99]
    assert spread(range(7), 7) == list(range(7))


def test_options_of_a_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    merganser = Command(monkeypatch, capsys)
    stream = stream_of(tmp_path)
    assert merganser("run", stream).error == "There is no directory for the run. Name one: --out RUN."


@pytest.mark.parametrize(
    ("keep", "line"),
    [
        ("all", "Weights on disk: of every row, about 5 MB each, without what the method keeps besides"),
        (2, "Weights on disk: of row 0 and the last 2 rows, about 5 MB each"),
        ("tagged", "Weights on disk: of row 0 and the last row, about 5 MB each"),
    ],
)
def test_a_plan_says_which_weights_are_kept(keep: Any, line: str) -> None:
    plan: Any = SimpleNamespace(keep_weights=keep, row_bytes=5_000_000)
    text = kept_line(plan)
    assert text.startswith(line)
    assert f"(runs.keep_weights: {keep})" in text
    assert ("a tag (`merganser tag`) keeps those of a row" in text) == (keep != "all")
