"""Inference: answer texts with a run or an exported model, evaluate the model of a run as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from merganser.errors import InputError, nearest
from merganser.events import Notice
from merganser.learner.answering import Answering
from merganser.learner.session import Session
from merganser.learner.watching import check_watch
from merganser.metrics.score import Score
from merganser.models.base import Answer
from merganser.streams.answers import AnswerSpec
from merganser.streams.conversation import Conversation, Turn
from merganser.streams.decoding import unicode_problem
from merganser.streams.prompts import prompt_fields
from merganser.streams.task import Example, Task
from merganser.streams.turns import conversation_of

Asked = str | Sequence[Mapping[str, Any]]
"""A text, or the messages of a conversation that ends before an answer."""


def predict(session: Answering, texts: Sequence[Asked], task: str | None = None) -> list[Answer]:
    """Answer texts with what was learned.

    Args:
        texts: as a person writes them; the task's prompt is applied. With a chat template also conversations: lists of
            messages with ``role`` and ``content``, as they are.
        task: a learned task, whose labels and prompt are used. ``None``: all labels learned so far are candidates
            (for tasks with labels), or free text is generated. Where tasks have different prompts, where some have
            labels and some free text, or where the method keeps several models, every task answers, and each text gets
            the most likely answer (:func:`_most_likely`) with the name of its task.

    Raises:
        InputError: nothing was learned yet, the task is not known, a text is empty or no valid Unicode, no prompt
            can be filled with one text, the turns of a conversation are in an impossible order, or a matcher is given
            one.
    """
    known = session.require_learned()
    asked = [_checked(number, text) for number, text in enumerate(texts, 1)]
    if session.backbone.kind == "matcher" and not all(isinstance(text, str) for text in asked):
        raise InputError("A matcher chooses a label for one text, and a conversation was given.", "Give texts.")
    if task is not None and task not in known:
        hint = f"{nearest(task, known)} Learned tasks: {', '.join(known)}.".strip()
        raise InputError(f"There is no task '{task}'.", hint)
    if task is not None:
        return _answers(session, asked, task, known[task].spec)
    spec = _common_spec(session, known)
    return _most_likely(session, asked, known) if spec is None else _answers(session, asked, list(known)[-1], spec)


def _checked(number: int, text: Asked) -> str | Conversation:
    """Return a text or conversation that can be answered.

    Raises:
        InputError: it cannot.
    """
    if not isinstance(text, str):
        conversation = conversation_of(text)
        if conversation.answer.role == "assistant":
            raise InputError(
                f"Conversation {number} ends with an answer.", "Add the user's next message, or remove it."
            )
        return conversation
    if not text.strip():
        raise InputError(f"Text {number} is empty.", "Give a text to answer.")
    if problem := unicode_problem(text):
        raise InputError(f"Text {number} is no valid Unicode: {problem}.", "Write it as UTF-8.")
    return text


def _answers(session: Answering, texts: Sequence[str | Conversation], task: str, spec: AnswerSpec) -> list[Answer]:
    """Answer texts with the model of a task."""
    session.use_task(task)
    spec = _candidates(session, spec)
    prompted = [spec.prompted(text) if isinstance(text, str) else text for text in texts]
    if cut := session.backbone.count_truncated([_example(text) for text in prompted], spec).inputs:
        limit = f"{session.backbone.lengths.input} tokens (training.max_input)"
        notice = f"{cut:,} of {len(texts):,} texts are cut after {limit}, with the prompt of task '{task}'."
        session.listener(Notice(notice))
    return session.backbone.answer(prompted, spec, session.config.evaluation.batch)


def _example(text: str | Conversation) -> Example:
    """Return an example to count by, with some answer."""
    if isinstance(text, str):
        return Example(text, "")
    return Example.of_conversation(replace(text, turns=(*text.turns, Turn("assistant", "?"))))


def _candidates(session: Answering, spec: AnswerSpec) -> AnswerSpec:
    return session.candidates.spec(spec, [learned.spec for learned in session.known_tasks().values()])


def _common_spec(session: Answering, known: Mapping[str, Task]) -> AnswerSpec | None:
    """Return how a text of no named task is answered: among the labels of all tasks, or in free text.

    ``None`` where tasks must be asked one by one.
    """
    specs = [task.spec for task in known.values()]
    if len(specs) == 1:
        return specs[0]
    if session.candidates.per_task_models or len({(spec.prompt, spec.labels is None) for spec in specs}) > 1:
        return None
    return specs[-1].with_labels_of(specs)


def _most_likely(session: Answering, texts: Sequence[str | Conversation], known: Mapping[str, Task]) -> list[Answer]:
    """Return for each text the answer that is furthest above chance, of all tasks whose prompt has one field.

    Of ``n`` labels each has a chance of ``1 / n``, so probabilities ``p`` among few and among many labels are compared
    as ``(p - 1 / n) / (1 - 1 / n)``; those of free text as they are. Of equal ones the earliest task's is taken.
    """
    specs = {name: task.spec for name, task in known.items()}
    specs = {name: spec for name, spec in specs.items() if len(prompt_fields(spec.prompt)) == 1} or specs
    answers: dict[str, list[Answer]] = {}
    rows = session.answered_by()
    for name in sorted(specs, key=lambda name: rows[name]):  # weights are loaded once
        answers[name] = _answers(session, texts, name, specs[name])
    chance = {name: 1 / len(labels) if (labels := _candidates(session, specs[name]).labels) else 0.0 for name in specs}
    chosen = []
    for number in range(len(texts)):
        of_task = {name: answers[name][number] for name in specs}
        best = max(specs, key=lambda name: _above_chance(of_task[name].score, chance[name]))
        chosen.append(replace(of_task[best], task=best))
    return chosen


def _above_chance(probability: float, chance: float) -> float:
    return (probability - chance) / (1 - chance) if chance < 1 else 0.0


def evaluate(session: Session) -> dict[str, Score]:
    """Score the model as it is now on the test sets of all learned and watched tasks, without changing the run.

    Raises:
        InputError: nothing was learned yet, no task has a test set, or a function that scores a task is not there.
    """
    known = session.require_learned()
    session.require_metrics(task for task in known.values() if task.test)
    watched = session.watched()
    if not watched and not any(task.test for task in known.values()):
        raise InputError("There is nothing to evaluate: no learned task has a test set.", "Learn one with --test.")
    check_watch(session, ())
    if not session.method.per_task_models:
        session.use(session.rows[-1])
        return session.score([*known.values(), *watched.values()], known)
    scores: dict[str, Score] = {}
    for name, task in known.items():
        session.use_task(name)
        scores.update(session.score([task], known))
    if watched:
        session.use(session.rows[0])  # what is not learned is answered by the pretrained model
        scores.update(session.score(list(watched.values()), {}))
    return scores
