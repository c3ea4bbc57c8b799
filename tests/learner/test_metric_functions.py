"""A function as a task's metric: learned, evaluated, and given again when the run is reopened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

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

    before = contents(run)
    with Learner.open(run) as learner:  # without the function
        for work, tasks in ((learner.evaluate, ()), (learner.learn, (task("truth"),)), (learner.learn_stream, ([],))):
            with pytest.raises(InputError) as caught:
                work(*tasks)  # type: ignore[operator]
            assert caught.value.cause == (
                f"Task 'mood' is scored by the function '{name}', and a run directory holds no functions."
            )
            assert caught.value.remedy == (
                f"Give it again, in Python: Learner.open('{run}', metrics={{'mood': length_share}})."
            )
        assert learner.predict(["a strong story"], task="mood")
    assert contents(run) == before
    assert "metrics={'mood': length_share}" in merganser("evaluate", run).error
    for command in (("report", run), ("ask", run, "a strong story")):  # only scoring needs it
        assert merganser(*command).code == 0

    with Learner.open(run, metrics={"mood": length_share}) as learner:
        assert learner.evaluate()["mood"] == record.scores.rows[-1].scores["mood"]
        row = learner.learn(task("truth"))
        assert row.scores["mood"].value == pytest.approx(by_hand(learner, "mood"))
    with Learner.open(run) as learner:  # the whole stream again brings it along
        learner.learn_stream([task("mood", length_share), task("topic"), task("truth")])
        assert learner.evaluate()["mood"].value == pytest.approx(by_hand(learner, "mood"))


def test_what_is_no_function_is_refused_before_work(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with Learner.open(run, **sections()) as learner:
        learner.learn(task("mood"))
    with pytest.raises(InputError, match="The metric given for task 'mood' is not a function"):
        Learner.open(run, metrics={"mood": "accuracy"})  # type: ignore[dict-item]
    with Learner.open(run) as learner:
        with pytest.raises(InputError, match="Task 'topic' is scored by the function 'my:score'"):
            learner.learn(task("topic", "my:score"))
        with pytest.raises(InputError, match=r"<lambda>' failed: KeyError: 'x'"):
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
