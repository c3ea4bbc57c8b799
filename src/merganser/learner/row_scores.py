"""Score tasks for one row of the score matrix: learned tasks, the new ones, and those to come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from merganser.evaluation import ScoredTask
from merganser.learner.session import Session
from merganser.metrics.score import Score
from merganser.streams.task import Task


def tasks_to_score(session: Session, tasks: Sequence[Task]) -> list[Task]:
    """Return the learned tasks, the new ones, those to come, and the watched ones."""
    known = session.known_tasks()
    for task in [*tasks, *session.future_tasks, *session.watched().values()]:
        known.setdefault(task.name, task)
    return list(known.values())


def answered_by(session: Session, tasks: Sequence[Task], number: int) -> dict[str, int]:
    """Return task -> row whose weights answer it, once row ``number`` with these tasks is learned."""
    return session.method.answered_by({**session.learned_in(), **{task.name: number for task in tasks}})


def score_new_tasks(session: Session, tasks: Sequence[Task]) -> dict[int, dict[str, ScoredTask]]:
    """Score, with the weights of row 0 and of the last row, tasks that were not known when those were measured."""
    columns = set(session.directory.matrix().tasks)
    new = [task for task in [*tasks, *session.new_watched.values()] if task.name not in columns and task.test]
    if not new:
        return {}
    scores = {}
    for number in sorted({0, len(session.rows) - 1}):
        # With several models, a task that is not learned is answered by the pretrained one.
        alone = session.method.per_task_models
        session.use(session.rows[0 if alone else number])
        scores[number] = session.score_examples(new, session.known_tasks() if number else {})
    return scores


def score_all_tasks(
    session: Session, tasks: Sequence[Task], number: int, earlier: Mapping[int, Mapping[str, ScoredTask]]
) -> tuple[dict[str, Score], dict[str, ScoredTask]]:
    """Score every known task when these were trained, for row ``number``.

    Args:
        earlier: what :func:`score_new_tasks` returned for this row.

    Returns:
        The scores of all, and the examples of those that were answered: a task whose weights did not change keeps its
        score.
    """
    known = tasks_to_score(session, tasks)
    if session.method.per_task_models:
        kept = {name: score for row in session.rows for name, score in row.file.scores.scores.items()}
        # With several models, what is watched is answered by the pretrained one, row after row.
        kept |= {name: result.score for name, result in earlier.get(0, {}).items() if name in session.new_watched}
        changed = {name for name, row in answered_by(session, tasks, number).items() if row == number}
        scored = session.score_examples([task for task in known if task.name in changed], {})
    else:
        kept = {}
        names = {*session.learned, *(task.name for task in tasks)}
        scored = session.score_examples(known, {task.name: task for task in known if task.name in names})
    return {**kept, **{name: result.score for name, result in scored.items()}}, scored
