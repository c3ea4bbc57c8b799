"""What makes a task fit to be learned. Every task passes here, from whatever file or program it comes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from merganser.errors import InputError, nearest
from merganser.streams.options import name_problem
from merganser.streams.prompts import prompt_fields
from merganser.streams.task import AnswerMode, Example, MetricName, Task


def check_task(task: Task) -> None:
    """Refuse a task that cannot be learned or scored.

    Raises:
        InputError: a name unfit for a folder, an unknown metric or answer mode, a malformed prompt, no training texts,
            an empty text, an answer outside the label set, a label in dev or test that no training text has,
            ``rank`` or ``accuracy`` without labels, label texts that are empty, equal, or of unknown labels.
    """
    if problem := name_problem(task.name):
        raise InputError(f"{problem[0].upper()}{problem[1:]}.", "Rename the task.")
    where = f"Task '{task.name}'"
    for what, value, known in (
        ("metric", task.metric, get_args(MetricName)),
        ("answer", task.answer, get_args(AnswerMode)),
    ):
        if value not in known:
            raise InputError(
                f"{where}: {what} '{value}' is not known.", nearest(value, known) or f"Use one of {', '.join(known)}."
            )
    if not prompt_fields(task.prompt):
        raise InputError(f"{where}: the prompt {task.prompt!r} has no field.", "Put {input} where the text goes.")
    if not task.train:
        raise InputError(f"{where} has no training texts.", "Give it at least one.")
    if len({example.image is None for _, examples in _splits(task) for example in examples}) > 1:
        raise InputError(f"{where} has both texts and images.", "Make two tasks of it.")
    for split, examples in _splits(task):
        for number, example in enumerate(examples, start=1):
            if not example.input.strip() or not example.output.strip():
                part = "output" if example.input.strip() else "input"
                raise InputError(f"{where}: the {part} of {split} text {number} is empty.", "Fill it, or remove it.")
    if task.labels is None:
        if task.answer == "rank" or task.metric == "accuracy":
            what = "answer 'rank'" if task.answer == "rank" else "metric 'accuracy'"
            raise InputError(
                f"{where}: {what} needs a label set, and the answers are free text.",
                "Give 'labels' (a list, or 'train' for all outputs of the training texts), or choose another.",
            )
        if task.label_texts:
            raise InputError(f"{where} has label texts but no labels.", "Give its labels too.")
        return
    _check_labels(where, task, task.labels)


def check_names(names: Sequence[str]) -> None:
    """Refuse a task name that stands twice in a stream.

    Raises:
        InputError: naming the task.
    """
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"Task '{name}' occurs twice.", "Give every task of a stream its own name.")


def _splits(task: Task) -> tuple[tuple[str, Sequence[Example]], ...]:
    return ("train", task.train), ("dev", task.dev), ("test", task.test)


def _check_labels(where: str, task: Task, labels: tuple[str, ...]) -> None:
    if not labels or len(set(labels)) < len(labels):
        problem = "is empty" if not labels else "names a label twice"
        raise InputError(f"{where}: the label set {problem}.", "Name every label once.")
    texts = [task.label_text(label) for label in labels]
    if unknown := sorted(set(task.label_texts) - set(labels)):
        raise InputError(
            f"{where} has a text for '{unknown[0]}', which is not one of its labels.", nearest(unknown[0], labels)
        )
    for label, text in zip(labels, texts, strict=True):
        if not text.strip():
            raise InputError(f"{where}: the text of label '{label}' is empty.", "Describe the label in a few words.")
        if texts.count(text) > 1:
            raise InputError(
                f"{where}: two labels have the same text '{text}'.", "Make the texts differ, or no encoder can."
            )
    known = set(labels)
    for split, examples in _splits(task):
        for number, example in enumerate(examples, start=1):
            if example.output not in known:
                raise InputError(
                    f"{where}: {split} text {number} has the answer '{example.output}', which is not one of its labels"
                    f" ({', '.join(labels[:20])}{', ...' if len(labels) > 20 else ''}).",
                    nearest(example.output, labels) or "Correct it, add it to 'labels', or use 'labels: none'.",
                )
    learned = {example.output for example in task.train}
    for split, examples in _splits(task)[1:]:
        for number, example in enumerate(examples, start=1):
            if example.output not in learned:
                raise InputError(
                    f"{where}: {split} text {number} has the label '{example.output}', which no training text has.",
                    "Add training texts with that label, or remove it; with a limit, raise the limit.",
                )
