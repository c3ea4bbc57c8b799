"""Inference with a run: answer texts, evaluate the model as it is, export it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from merganser.errors import InputError, nearest
from merganser.evaluation import KnownTask, with_candidates
from merganser.files.atomic import new_folder
from merganser.learner.session import Session
from merganser.metrics.score import Score
from merganser.models.base import Answer
from merganser.models.export import export_model


def predict(session: Session, texts: Sequence[str], task: str | None = None) -> list[Answer]:
    """Answer texts with what was learned.

    Args:
        texts: as a person writes them; the task's prompt is applied.
        task: a learned task, whose labels and prompt are used. ``None``: all labels learned so far are candidates
            (for tasks with labels), or free text is generated.

    Raises:
        InputError: nothing was learned yet, the task is not known, a text is empty, or a task must be named.
    """
    known = session.require_learned()
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise InputError(f"Text {number} is empty.", "Give a text to answer.")
    if task is None:
        chosen = _any_task(session, known)
    elif task in known:
        chosen = known[task]
    else:
        hint = f"{nearest(task, known)} Learned tasks: {', '.join(known)}.".strip()
        raise InputError(f"There is no task '{task}'.", hint)
    session.use_task(chosen.name)
    if session.config.model.candidates == "seen" and not session.method.per_task_models:
        chosen = with_candidates(chosen, known.values())
    prompted = [chosen.ask(text) for text in texts]
    return session.backbone.answer(prompted, chosen.spec, session.config.evaluation.batch)


def _any_task(session: Session, known: Mapping[str, KnownTask]) -> KnownTask:
    if len(known) == 1:
        return next(iter(known.values()))
    names = ", ".join(known)
    if session.method.per_task_models:
        raise InputError("This method keeps several models.", f"Name a task: {names}.")
    if len({task.prompt for task in known.values()}) > 1:
        raise InputError("The learned tasks have different prompts.", f"Name a task: {names}.")
    every = list(known.values())
    if all(task.spec.labels is not None for task in every):
        return with_candidates(every[-1], every)
    if any(task.spec.labels is not None for task in every):
        raise InputError("Some learned tasks have labels and some write free text.", f"Name a task: {names}.")
    return every[-1]


def evaluate(session: Session) -> dict[str, Score]:
    """Score the model as it is now on the test sets of all learned tasks, without changing the run.

    Raises:
        InputError: nothing was learned yet, or no task has a test set.
    """
    known = session.require_learned()
    if not any(task.test for task in known.values()):
        raise InputError("There is nothing to evaluate: no learned task has a test set.", "Learn one with --test.")
    if not session.method.per_task_models:
        session.use(session.rows[-1])
        return session.score(list(known.values()), known)
    scores: dict[str, Score] = {}
    for name, task in known.items():
        session.use_task(name)
        scores.update(session.score([task], {}))
    return scores


def export(session: Session, out: Path, *, merged: bool = False, task: str | None = None) -> None:
    """Write the model for use without Merganser: a PEFT adapter, or the whole model.

    Args:
        out: a folder that does not exist yet.
        merged: add the adapter to the weights of the model and write the whole.
        task: with a method that keeps several models, the one that answers this task.

    Raises:
        InputError: ``out`` exists, nothing was learned yet, or a task must be named.
    """
    known = session.require_learned()
    if out.exists():
        raise InputError(f"'{out}' exists.", "Choose a new folder.")
    if session.method.per_task_models:
        if task not in known:
            raise InputError("This method keeps several models.", f"Name a task: {', '.join(known)}.")
        rows = session.answered_by()
        known = {name: other for name, other in known.items() if rows[name] == rows[task]}
        session.use_task(task)
    elif task is not None:
        raise InputError(f"One model answers all tasks, so there is none of '{task}' alone.", "Leave --task out.")
    with new_folder(out, shared=True) as folder:
        export_model(session.backbone, folder, {name: task.spec for name, task in known.items()}, merged)
