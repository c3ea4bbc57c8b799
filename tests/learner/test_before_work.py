"""Mismatches between texts, labels and model that are known before work: refused, or counted and reported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from merganser import AnswerSpec, Example, Learner, Task
from merganser.errors import InputError
from merganser.events import Event, Notice
from merganser.report.page import render
from tests.learner import toys


def sections(**changes: Any) -> dict[str, Any]:
    values = toys.settings(**{"training": {"steps": 1}, "method": "sequential", **changes})
    del values["stream"]
    return values


def task(name: str, labels: tuple[str, ...], texts: dict[str, str] | None = None) -> Task:
    examples = [Example(f"the film was good {i}", labels[i % len(labels)]) for i in range(8)]
    return Task(name, examples, test=examples[:4], spec=AnswerSpec(labels, texts or {}, metric="accuracy"))


@pytest.mark.parametrize("whole_stream", [True, False])
@pytest.mark.parametrize(
    ("kind", "labels", "why"),
    [
        ("matcher", ("Yes", "yes"), "letter case"),
        ("matcher", ("好", "坏"), "unknown tokens"),
        ("causal", ("a film with a weak story 1", "a film with a weak story 2"), "8 of their tokens"),
        ("seq2seq", ("a film with a weak story 1", "a film with a weak story 2"), "8 of their tokens"),
    ],
)
def test_labels_that_the_model_cannot_tell_apart_leave_nothing_behind(
    tmp_path: Path, kind: str, labels: tuple[str, ...], why: str, whole_stream: bool
) -> None:
    events: list[Event] = []
    model = {"name": str(toys.model_folder(kind)), "kind": kind}
    tasks = [task("mood", ("good", "bad")), task("odd", labels)][not whole_stream :]
    with (
        pytest.raises(InputError) as caught,
        Learner.open(tmp_path / "run", listener=events.append, **sections(model=model)) as learner,
    ):
        learner.learn_stream(tasks) if whole_stream else learner.learn(*tasks)
    assert caught.value.cause.startswith(
        f"Task 'odd': the model cannot tell apart the labels '{labels[0]}' and '{labels[1]}': "
    )
    assert why in caught.value.cause
    assert events == []  # before the first task
    assert not (tmp_path / "run").exists()


def test_labels_of_several_tasks_that_are_candidates_together(tmp_path: Path) -> None:
    tasks = [task("answers", ("Yes", "No")), task("moods", ("no", "good"))]
    with Learner.open(tmp_path / "apart", **sections()) as learner:
        learner.learn(tasks[0])
        learner.learn(tasks[1])
    cause = (
        "Task 'moods' (with the labels of the tasks before it): the model cannot tell apart the labels 'No' and 'no'"
    )
    with Learner.open(tmp_path / "seen", **sections(model={"candidates": "seen"})) as learner:
        with pytest.raises(InputError, match="with the labels of the tasks before it") as caught:
            learner.learn_stream(tasks)
        assert caught.value.cause.startswith(cause)
        learner.learn(tasks[0])
        with pytest.raises(InputError) as caught:
            learner.learn(tasks[1])
        assert caught.value.cause.startswith(cause)
        assert learner.learned == ["answers"]


LONG = "the film was good and the play was great and the film was good and the play was great"


def test_what_is_cut_is_counted_reported_and_recorded(tmp_path: Path) -> None:
    """With 16 tokens for an input and 8 for an answer; both texts of ``LONG`` are far above, "the film" far below."""
    model = {"name": str(toys.model_folder("seq2seq")), "kind": "seq2seq"}
    train = [Example("the film", "good"), Example(LONG, LONG), Example("the play", LONG), Example(LONG + " 2", "bad")]
    free = Task("free", train, test=[Example(LONG, "good"), Example("the play", "bad")], metric="exact_match")
    plain = Task("plain", train[:1] * 2, test=train[:1], metric="exact_match")
    events: list[Event] = []
    options = sections(model=model, training={"steps": 1, "max_input": 16})
    with Learner.open(tmp_path / "run", listener=events.append, **options) as learner:
        learner.learn_stream([plain, free])
        record = learner.record
        learner.predict(["the film", LONG, LONG], task="free")
    notices = [event.text for event in events if isinstance(event, Notice) and " cut after " in event.text]
    assert notices == [
        "Task 'free': 2 of 4 training inputs, 1 of 2 test inputs are cut after 16 tokens (training.max_input).",
        "Task 'free': 2 of 4 training answers are cut after 8 tokens (training.max_target).",
        "2 of 3 texts are cut after 16 tokens (training.max_input), with the prompt of task 'free'.",
    ]
    assert isinstance(events[0], Notice)  # before anything is measured or learned
    assert [entry.truncated for entry in record.tasks] == [
        {},
        {"train_inputs": 2, "train_answers": 2, "test_inputs": 1},
    ]
    page = render(record)
    for line in ("2 of 4 train inputs", "2 of 4 train answers", "1 of 2 test inputs"):
        assert page.count(line) == 1


def test_a_label_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    model = {"name": str(toys.model_folder("causal")), "kind": "causal"}
    events: list[Event] = []
    odd = task("odd", ("good", LONG))
    options = sections(model=model)
    with Learner.open(tmp_path / "run", listener=events.append, **options) as learner:
        learner.learn(odd)
        learner.learn(replace(odd, name="ranked", spec=replace(odd.spec, mode="rank")))
    notices = [event.text for event in events if isinstance(event, Notice) and "can never write" in event.text]
    assert len(notices) == 1
    assert notices[0].startswith(f"Task 'odd': the model can never write 1 of 2 labels: '{LONG}' becomes 'the film")
