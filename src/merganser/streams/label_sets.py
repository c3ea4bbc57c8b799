"""The closed set of answers of a task: as the options say, or collected from the training examples."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from merganser.streams.task import Example
from merganser.streams.task_options import LabelSet

_SENTENCE_WORDS = 4
_SENTENCE_ENDS = (".", "!", "?", "。", "！", "？")
_FEW_EXAMPLES = 5
"""Fewer training examples per answer than these, on average, and sentences: a list of questions and answers."""


@dataclass(frozen=True)
class LabelSetChoice:
    """The closed set of answers that was chosen.

    Attributes:
        labels: in a fixed order (as listed, or sorted when collected); ``None``: free text.
        texts: label -> text that a matcher reads in its place.
        remark: what a person should know about a choice that was made for them, or an empty string.
    """

    labels: tuple[str, ...] | None
    texts: dict[str, str] = field(default_factory=dict)
    remark: str = ""


def choose_labels(options: LabelSet, train: Sequence[Example], needed: bool = False) -> LabelSetChoice:
    """Choose the closed set of answers.

    With ``auto`` the answers of the training examples are a closed set if each of them occurs at least twice. Not so
    where they are sentences with few examples each, as in a list of frequent questions whose wordings vary: a new text
    will have another answer, and a generated one is scored better by its overlap than by equality. Conversations are
    free text, whatever their last turns are.

    Args:
        options: the option ``labels``.
        train: the training examples, at least one.
        needed: whether the task cannot do without labels (it ranks them): ``auto`` then takes sentences too.
    """
    if options is None:
        return LabelSetChoice(None)
    if isinstance(options, dict):
        return LabelSetChoice(tuple(options), dict(options))
    if isinstance(options, list):
        return LabelSetChoice(tuple(options))
    counts = Counter(example.output for example in train)
    collected = LabelSetChoice(tuple(sorted(counts)))
    if options == "train":
        return collected
    if any(example.conversation is not None for example in train) and not needed:
        return LabelSetChoice(None, remark=_few_answers(counts))
    if min(counts.values()) < 2:
        return LabelSetChoice(None)
    if statistics.mean(map(_is_sentence, counts)) <= 0.5:
        return collected
    answers = f"the {len(counts):,} answers of the training examples, which are sentences, are taken as"
    if len(train) < _FEW_EXAMPLES * len(counts) and not needed:
        return LabelSetChoice(None, remark=f"{answers} free text; for a closed set of answers, set labels: train")
    return LabelSetChoice(
        collected.labels, remark=f"{answers} the closed set of labels; for free text, set labels: none"
    )


def _few_answers(counts: Counter[str]) -> str:
    """Return a remark where the last turns of conversations look like labels."""
    if min(counts.values()) < 2 or statistics.mean(map(_is_sentence, counts)) > 0.5:
        return ""
    answers = f"the {len(counts):,} answers of the training conversations look like labels"
    return f"{answers}, and are taken as free text; for a closed set of answers, set labels: train"


def _is_sentence(answer: str) -> bool:
    return len(answer.split()) >= _SENTENCE_WORDS or answer.endswith(_SENTENCE_ENDS)
