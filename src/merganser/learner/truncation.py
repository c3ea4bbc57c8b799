"""Inputs and answers that are longer than a run's lengths: how many of how many are cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from merganser.models.base import Backbone
from merganser.streams.answers import AnswerSpec
from merganser.streams.task import Example, Task

SPLITS = {"train": "training", "dev": "development", "test": "test", "mix": "mixed"}


def truncated_examples(backbone: Backbone, task: Task) -> dict[str, int]:
    """Count the inputs and answers that are cut: ``train_inputs``, ``train_answers``, ``dev_inputs`` ...; no zeros."""

    def count() -> list[dict[str, int]]:
        counts: dict[str, int] = {}
        for split in SPLITS:
            truncated = backbone.count_truncated(_examples(task, split), AnswerSpec() if split == "mix" else task.spec)
            counts |= {f"{split}_inputs": truncated.inputs, f"{split}_answers": truncated.answers}
        return [{name: count for name, count in counts.items() if count}]

    if backbone.modality == "image":
        return count()[0]  # nothing is tokenised
    counts: dict[str, int] = backbone.parts.tokens("cut", [task.fingerprint()], count)[0]
    return counts


def _examples(task: Task, split: str) -> Sequence[Example]:
    if split == "mix":
        return () if task.mix is None else task.mix.examples
    examples: Sequence[Example] = getattr(task, split)
    return examples


def _size(task: Task, split: str, part: str) -> int:
    """Return the number of inputs or answers of a part of the data; a pair has two answers."""
    examples = _examples(task, split)
    return len(examples) if part == "inputs" else sum(len(example.answers) for example in examples)


def truncation_notices(backbone: Backbone, task: Task, counts: Mapping[str, int]) -> list[str]:
    """Describe what is cut, and the labels that can therefore never be written; empty where nothing is."""
    notices = []
    for part, option, limit in (
        ("inputs", "max_input", backbone.lengths.input),
        ("answers", "max_target", backbone.lengths.target),
    ):
        longer = [
            f"{counts[name]:,} of {size:,} {SPLITS[split]} {part}"
            for split in SPLITS
            for size in [_size(task, split, part)]
            if (name := f"{split}_{part}") in counts
        ]
        if longer:
            if part == "answers" and backbone.kind == "matcher":
                option, limit = "max_input", backbone.lengths.input
            which = ", ".join(longer)
            how = "cut after"
            if part == "inputs" and backbone.has_chat_template and any(e.conversation for e in task.train):
                how = "shortened by their earliest turns to"
            notices.append(f"Task '{task.name}': {which} are {how} {limit} tokens (training.{option}).")
    if unwritable := backbone.unwritable_labels(task.spec):
        label, written = next(iter(unwritable.items()))
        notices.append(
            f"Task '{task.name}': the model can never write {len(unwritable)} of {len(task.spec.labels or ())} labels: "
            f"'{label}' becomes '{written}'. Use answer: rank, a larger training.max_target, or other labels."
        )
    return notices
