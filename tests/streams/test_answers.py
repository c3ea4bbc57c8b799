"""How a task is answered, and which labels an answer is chosen from."""

from __future__ import annotations

import time
from typing import Any

import pytest
from pydantic import TypeAdapter

from merganser.errors import InputError
from merganser.streams.answers import AnswerSpec, CandidatePolicy

ONE = AnswerSpec(("x", "y"), {"x": "the letter x"})
TWO = AnswerSpec(("y", "z"), {"z": "the letter z"}, "rank", "accuracy", "Which? {input}")
FREE = AnswerSpec(metric="rouge_l")


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ({"metric": "accurac"}, "The metric 'accurac' does not exist. Did you mean 'accuracy'?"),
        ({"mode": "guess"}, "The answer mode 'guess' does not exist."),
        ({"labels": ()}, "The label set is empty"),
        ({"labels": ("x", " ")}, "holds an empty label"),
        ({"labels": ("x", "y", "x")}, "The label 'x' is in the label set twice."),
        ({"label_texts": {"z": "zed"}}, "There is a text for 'z', which is not a label."),
        ({"label_texts": {"x": " "}}, "The text for the label 'x' is empty."),
        ({"labels": None, "metric": "accuracy"}, "The metric 'accuracy' needs a label set"),
        ({"labels": None, "mode": "rank"}, "The answer mode 'rank' needs a label set"),
        ({"labels": None, "label_texts": {"x": "a"}}, "There are label texts and no labels."),
        ({"prompt": "none"}, "The prompt 'none' has no field."),
        ({"prompt": "{input.x}"}, "not a plain field name"),
    ],
)
def test_impossible_answers_are_refused(values: dict[str, Any], cause: str) -> None:
    with pytest.raises(InputError) as caught:
        AnswerSpec(**{"labels": ("x", "y"), **values})
    assert cause in str(caught.value)


def test_a_text_is_put_as_the_task_puts_its_examples() -> None:
    assert TWO.prompted("so {braces}") == "Which? so {braces}"


def test_candidates_are_the_labels_learned_in_order_of_learning() -> None:
    policy = CandidatePolicy("seen")
    wide = policy.spec(TWO, [ONE, FREE])
    assert wide.labels == ("x", "y", "z")
    assert dict(wide.label_texts) == {"x": "the letter x", "z": "the letter z"}
    assert (wide.mode, wide.metric, wide.prompt) == ("rank", "accuracy", "Which? {input}")
    assert policy.spec(FREE, [ONE, TWO]) is FREE
    assert policy.spec(ONE, []) == ONE


@pytest.mark.parametrize("policy", [CandidatePolicy("task"), CandidatePolicy("seen", per_task_models=True)])
def test_otherwise_a_task_is_answered_among_its_own_labels(policy: CandidatePolicy) -> None:
    assert policy.spec(TWO, [ONE]) is TWO
    assert policy.seen_without_effect == (policy.candidates == "seen")


def test_the_same_comes_back_from_a_file() -> None:
    adapter = TypeAdapter(AnswerSpec)
    assert adapter.validate_json(adapter.dump_json(TWO)) == TWO
    with pytest.raises(ValueError, match="answer"):
        adapter.validate_python({"labels": ["a"], "answer": "rank"})


def test_very_many_labels_are_linear_work() -> None:
    """Quadratic work takes half a minute."""
    started = time.process_time()
    from merganser.streams.checks import check_task
    from merganser.streams.task import Example, Task

    labels = tuple(f"label {number}" for number in range(30_000))
    spec = AnswerSpec(labels, {label: f"text of {label}" for label in labels})
    train = [Example(input="x", output=label) for label in labels]
    check_task(Task(name="many", train=train, dev=[], test=[], spec=spec))
    with pytest.raises(InputError, match="label 29999' is in the label set twice"):
        AnswerSpec((*labels, labels[-1]))
    same = Task(name="many", train=train, dev=[], test=[], spec=AnswerSpec(labels, {labels[-1]: labels[0]}))
    with pytest.raises(InputError, match="two labels have the same text 'label 0'"):
        check_task(same)
    unknown = Task(name="many", train=train, dev=[], test=[Example(input="x", output="label")], spec=spec)
    with pytest.raises(InputError, match="is not one of the labels"):
        check_task(unknown)
    assert time.process_time() - started < 6
