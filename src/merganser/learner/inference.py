"""Inference with a run: answer texts, evaluate the model as it is, export it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from merganser.errors import InputError, nearest
from merganser.files.atomic import new_folder
from merganser.learner.session import Session
from merganser.metrics.score import Score
from merganser.models.base import Answer
from merganser.models.export import export_model
from merganser.streams.answers import AnswerSpec
from merganser.streams.task import Task


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
        name, spec = list(known)[-1], _common_spec(session, known)
    elif task in known:
        name, spec = task, known[task].spec
    else:
        hint = f"{nearest(task, known)} Learned tasks: {', '.join(known)}.".strip()
        raise InputError(f"There is no task '{task}'.", hint)
    session.use_task(name)
    spec = session.candidates.spec(spec, [learned.spec for learned in known.values()])
    prompted = [spec.prompted(text) for text in texts]
    return session.backbone.answer(prompted, spec, session.config.evaluation.batch)


def _common_spec(session: Session, known: Mapping[str, Task]) -> AnswerSpec:
    """Return how a text of no named task is answered: among the labels of all tasks, or in free text."""
    specs = [task.spec for task in known.values()]
    if len(specs) == 1:
        return specs[0]
    names = ", ".join(known)
    if session.method.per_task_models:
        raise InputError("This method keeps several models.", f"Name a task: {names}.")
    if len({spec.prompt for spec in specs}) > 1:
        raise InputError("The learned tasks have different prompts.", f"Name a task: {names}.")
    if len({spec.labels is None for spec in specs}) > 1:
        raise InputError("Some learned tasks have labels and some write free text.", f"Name a task: {names}.")
    return specs[-1].with_labels_of(specs)


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
        scores.update(session.score([task], known))
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
