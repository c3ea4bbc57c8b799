"""What makes a task fit to be learned. Every task passes here, from whatever file or program it comes."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from merganser.errors import InputError, first_repeated, nearest
from merganser.streams.bad_rows import BadRows, BadRowsError, Problem
from merganser.streams.decoding import unicode_problem
from merganser.streams.task import Example, Task
from merganser.streams.task_options import name_problem

_SHOWN_LABELS, _SHOWN_CHARACTERS = 20, 60
"""How many labels, and how much of each, a message shows."""
_COMPARED_LABELS = 2000
"""How many labels are searched for the one nearest to a wrong answer: the search is slow."""


def check_task(task: Task) -> None:
    """Refuse a task that cannot be learned or scored.

    Raises:
        InputError: a name unfit for a folder, no training texts, texts beside images, pairs beside examples with one
            answer, two labels with the same text.
            What is wrong with labels, prompt or metric alone is refused by
            :class:`~merganser.streams.answers.AnswerSpec`.
        BadRowsError: all examples with an empty text, text that is no valid Unicode, a rejected answer that equals the
            chosen one, an answer outside the label set, a label in dev or test that no training text has.
    """
    if problem := name_problem(task.name):
        raise InputError(f"{problem[0].upper()}{problem[1:]}.", "Rename the task.")
    where = f"Task '{task.name}'"
    if not task.train:
        raise InputError(f"{where} has no training texts.", "Give it at least one.")
    if len({example.image is None for _, examples in _splits(task) for example in examples}) > 1:
        raise InputError(f"{where} has both texts and images.", "Make two tasks of it.")
    _check_pairs(where, task)
    labels = task.spec.labels
    if labels is not None:
        _check_label_texts(where, task, labels)
    known = None if labels is None else frozenset(labels)
    learned = None if labels is None else frozenset(example.output for example in task.train)
    sources = []
    for split, examples in _splits(task):
        bad = BadRows(where, f"{split} text", good=len(examples))
        for number, example in enumerate(examples, start=1):
            wrong = text_problem(example)
            if wrong is None and labels is not None and known is not None and learned is not None:
                wrong = label_problem(example.output, known, labels) or unlearned_problem(example.output, learned)
            if wrong is not None:
                bad.add(number, wrong)
                bad.good -= 1
        if len(bad):
            sources.append(bad)
    if sources:
        raise BadRowsError(sources, can_skip=False)


def check_names(names: Sequence[str]) -> None:
    """Refuse a task name that stands twice in a stream.

    Raises:
        InputError: naming the task.
    """
    if (twice := first_repeated(names)) is not None:
        raise InputError(f"Task '{twice}' occurs twice.", "Give every task of a stream its own name.")


def text_problem(example: Example) -> Problem | None:
    """Return what is wrong with an example's texts alone."""
    texts = [("input", example.input), ("output", example.output), ("id", example.id)]
    if example.rejected is not None:
        texts.append(("rejected answer", example.rejected))
    for part, text in texts:
        if not isinstance(text, str):
            return Problem(f"the {part} is a {type(text).__name__}, not a text", "Give the example a text.")
        if part != "id" and not text.strip():
            return Problem(f"the {part} is empty", "Fill it, or remove it.")
        if problem := unicode_problem(text):
            return Problem(f"the {part} is no valid Unicode", "Replace these characters, or remove it.", problem)
    return None if example.rejected is None else pair_problem(example.output, example.rejected)


def pair_problem(chosen: str, rejected: str) -> Problem | None:
    """Return what is wrong with the two answers of a pair together."""
    if chosen.strip() != rejected.strip():
        return None
    return Problem("the chosen and the rejected answer are equal", "Correct one of them, or remove it.")


def label_problem(answer: str, known: Collection[str], labels: Sequence[str]) -> Problem | None:
    """Return what is wrong with an answer that is not a label.

    Args:
        answer: the answer of an example.
        known: the labels, for fast look-up.
        labels: the labels, in order.
    """
    if answer in known:
        return None

    def remedy() -> str:
        hint = nearest(answer, labels[:_COMPARED_LABELS])
        return hint or "Correct it, add it to 'labels', or use 'labels: none'."

    shown = ", ".join(map(_shortened, labels[:_SHOWN_LABELS])) + (", ..." if len(labels) > _SHOWN_LABELS else "")
    return Problem(f"the answer is not one of the labels ({shown})", remedy, f"'{_shortened(answer)}'")


def unlearned_problem(answer: str, learned: Collection[str]) -> Problem | None:
    """Return what is wrong with a label in dev or test that no training text has."""
    if answer in learned:
        return None
    remedy = "Add training texts with that label, or remove it; with a limit, raise the limit."
    return Problem("the answer is a label that no training text has", remedy, f"'{_shortened(answer)}'")


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."


def _splits(task: Task) -> tuple[tuple[str, Sequence[Example]], ...]:
    return ("train", task.train), ("dev", task.dev), ("test", task.test)


def _check_pairs(where: str, task: Task) -> None:
    """Refuse a task of preferences with an example that is no pair, and pairs in any other task."""
    pairs = {example.rejected is not None for _, examples in _splits(task) for example in examples}
    if pairs == {task.spec.dpo is not None}:
        return
    if task.spec.dpo is not None:
        raise InputError(f"{where} is one of preferences, and some examples have no rejected answer.", "Give them one.")
    raise InputError(
        f"{where} has examples with a rejected answer, and is no task of preferences.",
        "Give it spec=AnswerSpec(dpo=DpoOptions()), or leave the rejected answers out.",
    )


def _check_label_texts(where: str, task: Task, labels: Sequence[str]) -> None:
    if (twice := first_repeated(map(task.spec.text_of, labels))) is not None:
        raise InputError(
            f"{where}: two labels have the same text '{twice}'.", "Make the texts differ, or no encoder can."
        )
