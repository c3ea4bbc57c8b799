"""A function as a task's metric: learned, evaluated, and imported or given again when the run is reopened."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from merganser import AnswerSpec, Example, Learner, Task
from merganser.errors import InputError
from tests.learner import toys
from tests.learner.toys import Command, contents, read_json


def length_share(answers: Sequence[str], references: Sequence[str], inputs: Sequence[str]) -> list[float]:
    """A score that no built-in metric has: letters of the answer among those of answer and input."""
    assert len(answers) == len(references) == len(inputs)
    return [len(answer) / (len(answer) + len(text)) for answer, text in zip(answers, inputs, strict=True)]


def task(name: str, metric: Any = None) -> Task:
    sizes = ((8, 0), (5, 1))
    train, test = ([Example(row["input"], row["output"]) for row in toys.rows(name, *size)] for size in sizes)
    return Task(name, train, test=test, spec=AnswerSpec(toys.LABELS[name], metric="accuracy"), metric=metric)


def sections(**changes: Any) -> dict[str, Any]:
    values = toys.settings(**{"training": {"steps": 1}, "method": "sequential", **changes})
    del values["stream"]
    return values


def by_hand(learner: Learner, name: str) -> float:
    """Mean of the function over a task's test set."""
    texts = [example.input for example in task(name).test]
    answers = [answer.text for answer in learner.predict(texts, task=name)]
    return sum(len(a) / (len(a) + len(t)) for a, t in zip(answers, texts, strict=True)) / len(texts)


def test_a_task_takes_a_metric_by_name_or_function() -> None:
    assert task("mood", "f1").spec.metric == "f1"
    assert task("mood").spec.metric == "accuracy"
    assert task("mood", length_share).spec.metric is length_share
    assert task("mood", length_share).fingerprint() != task("mood").fingerprint()
    with pytest.raises(InputError, match="Did you mean 'accuracy'"):
        task("mood", "acuracy")


def test_learned_evaluated_and_reopened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    merganser = Command(monkeypatch, capsys)
    run = tmp_path / "run"
    with Learner.open(run, **sections()) as learner:
        row = learner.learn(task("mood", length_share))
        assert row.scores["mood"].value == pytest.approx(by_hand(learner, "mood"))
        learner.learn(task("topic"))
        assert learner.evaluate()["mood"].value == pytest.approx(by_hand(learner, "mood"))
        record = learner.record
    name = "tests.learner.test_metric_functions:length_share"
    assert record.scores.metrics == {"mood": name, "topic": "accuracy"}
    assert read_json(run / "tasks" / "01-mood" / "row.json")["tasks"][0]["spec"]["metric"] == name
    assert name in (run / "scores.json").read_text()

    with Learner.open(run) as learner:  # imported by its name
        assert learner.evaluate()["mood"] == record.scores.rows[-1].scores["mood"]
        row = learner.learn(task("truth"))
        assert row.scores["mood"].value == pytest.approx(by_hand(learner, "mood"))
    values = json.loads(merganser("evaluate", run, "--json").out)
    assert (values["mood"]["metric"], values["mood"]["value"]) == (name, row.scores["mood"].value)


def test_a_function_that_no_module_has_is_given_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    merganser = Command(monkeypatch, capsys)
    run = tmp_path / "run"

    def inner(answers: Sequence[str], references: Sequence[str], inputs: Sequence[str]) -> list[float]:
        return length_share(answers, references, inputs)

    with Learner.open(run, **sections()) as learner:
        learner.learn(task("mood", inner))
        score = learner.learn(task("topic")).scores["mood"]
    name = "tests.learner.test_metric_functions:test_a_function_that_no_module_has_is_given_again.<locals>.inner"
    before = contents(run)
    with Learner.open(run) as learner:
        for work, tasks in ((learner.evaluate, ()), (learner.learn, (task("truth"),)), (learner.learn_stream, ([],))):
            with pytest.raises(InputError) as caught:
                work(*tasks)  # type: ignore[operator]
            assert caught.value.cause.startswith(f"Task 'mood' is scored by the function '{name}': ")
            assert f"Learner.open('{run}', metrics={{'mood': inner}})." in caught.value.remedy
        assert learner.predict(["a strong story"], task="mood")
    assert contents(run) == before
    assert "metrics={'mood': inner}" in merganser("evaluate", run).error
    for command in (("report", run), ("ask", run, "a strong story")):  # only scoring needs it
        assert merganser(*command).code == 0
    verified = merganser("verify", run, "--check")
    assert (verified.code, "Task 'mood' cannot be scored here" in verified.out) == (0, True)

    with Learner.open(run, metrics={"mood": inner}) as learner:
        assert learner.evaluate()["mood"] == score
    with Learner.open(run) as learner:  # the whole stream again brings it along
        learner.learn_stream([task("mood", inner), task("topic")])
        assert learner.evaluate()["mood"] == score


def test_named_in_a_file_and_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A module beside the run's file; the run knows its name, and finds it again where it is on Python's path."""
    merganser = Command(monkeypatch, capsys)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    stream = toys.write_stream(tmp_path / "data", ("mood",), training={"steps": 1}, method="sequential")
    values = yaml.safe_load(stream.read_text())
    values["stream"]["tasks"][0]["metric"] = "my_scores:third"
    toys.write_config(stream, values)
    (tmp_path / "data" / "my_scores.py").write_text(
        "def third(answers, references):\n    return [1 / 3] * len(answers)\n"
    )
    run = tmp_path / "run"
    assert merganser("run", stream, "--out", run).code == 0
    row = read_json(run / "tasks" / "01-mood" / "row.json")
    assert (row["metrics"], row["scores"]["scores"]["mood"]["value"]) == ({"mood": "my_scores:third"}, 1 / 3)
    assert row["tasks"][0]["source"]["metric"].startswith("my_scores.py sha256:")
    assert merganser("evaluate", run).code == 0
    assert merganser("run", stream, "--out", run).code == 0  # resumed
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(stream.parent)])  # as in another process
    monkeypatch.delitem(sys.modules, "my_scores")
    missing = merganser("evaluate", run)
    assert (missing.code, "The module 'my_scores'" in missing.error, "PYTHONPATH" in missing.error) == (2, True, True)
    monkeypatch.chdir(stream.parent)
    options = ("--task", "topic", "--train", "topic.json", "--test", "topic-test.json", "--metric", "my_scores:third")
    assert merganser("learn", run, *options).code == 0
    assert read_json(run / "tasks" / "02-topic" / "row.json")["metrics"]["topic"] == "my_scores:third"


def test_what_is_no_function_is_refused_before_work(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with Learner.open(run, **sections()) as learner:
        learner.learn(task("mood"))
    with pytest.raises(InputError, match="The metric given for task 'mood' is not a function"):
        Learner.open(run, metrics={"mood": "accuracy"})  # type: ignore[dict-item]
    with Learner.open(run) as learner:
        with pytest.raises(InputError, match="Task 'topic' is scored by the function 'my:score': The module 'my'"):
            learner.learn(task("topic", "my:score"))
        with pytest.raises(InputError, match=r"<lambda>' failed at example 1 .*: KeyError: 'x'"):
            learner.learn(task("topic", lambda answers, references: {}["x"]))
        assert learner.learned == ["mood"]
        # A function without a name of its own is asked for all the same.
        learner.learn(task("topic", lambda answers, references: [1.0] * len(answers)))
    with Learner.open(run, read_only=True) as learner, pytest.raises(InputError, match=r"metrics={'topic': function}"):
        learner.evaluate()


def test_single_task_scores_of_a_function_are_not_shared_by_its_name(tmp_path: Path) -> None:
    values = []
    for number, value in enumerate((0.25, 0.75)):
        scored = task("mood", lambda answers, references, value=value: [value] * len(answers))
        with Learner.open(tmp_path / str(number), **sections()) as learner:
            learner.learn(scored)
            values.append(learner.measure_references([scored])["mood"].value)
    assert values == [0.25, 0.75]
