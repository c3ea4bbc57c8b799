"""Which answers ``auto`` takes for a closed set."""

from __future__ import annotations

import pytest

from merganser.streams.label_sets import choose_labels
from merganser.streams.task import Example

FAQ = ("Open the settings and choose reset.", "We are open from nine to five.", "Parcels arrive within two days.")
CLASSES = ("the sentence is correct", "the sentence is wrong")


def examples(answers: tuple[str, ...], each: int) -> list[Example]:
    return [Example(f"wording {i} of {answer}", answer) for answer in answers for i in range(each)]


@pytest.mark.parametrize(
    ("answers", "each", "closed", "remark"),
    [
        (("yes", "no"), 2, True, ""),
        (("Society & Culture", "Science or Technology"), 2, True, ""),
        (FAQ, 1, False, ""),
        (FAQ, 2, False, "sentences, are taken as free text; for a closed set of answers, set labels: train"),
        (FAQ, 4, False, "the 3 answers of the training examples"),
        (CLASSES, 40, True, "are taken as the closed set of labels; for free text, set labels: none"),
    ],
)
def test_sentences_with_few_examples_are_free_text(
    answers: tuple[str, ...], each: int, closed: bool, remark: str
) -> None:
    choice = choose_labels("auto", examples(answers, each))
    assert choice.labels == (tuple(sorted(answers)) if closed else None)
    assert remark in choice.remark if remark else choice.remark == ""


def test_what_was_asked_for_is_taken() -> None:
    train = examples(FAQ, 2)
    assert choose_labels("train", train).labels == tuple(sorted(FAQ))
    assert choose_labels("auto", train, needed=True).labels == tuple(sorted(FAQ)), "labels are to be ranked"
    assert choose_labels(None, examples(("a", "b"), 2)).labels is None
    assert choose_labels(list(FAQ), train).labels == FAQ
    assert choose_labels({"a": "first", "b": "second"}, train).texts == {"a": "first", "b": "second"}
