"""Scoring a model on the test sets of tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from merganser import processes
from merganser.events import Evaluating, Listener, silent
from merganser.integrations import harness
from merganser.metrics.score import Score
from merganser.metrics.text import score_each, score_of
from merganser.models.base import Backbone
from merganser.models.pairs import prefers_chosen
from merganser.streams.task import Task
from merganser.streams.watch import WatchedTask


@dataclass(frozen=True)
class ScoredTask:
    """The answers to a task's test set and their scores.

    Attributes:
        answers: one per example, as they were compared with the references; none for pairs.
        values: the score of each example, in [0, 1].
    """

    answers: tuple[str, ...]
    values: tuple[float, ...]

    @property
    def score(self) -> Score:
        """The mean over the examples."""
        return score_of(self.values)


def score_task(
    backbone: Backbone,
    task: Task,
    batch: int,
    listener: Listener = silent,
    offset: int = 0,
    total: int | None = None,
) -> ScoredTask:
    """Answer a task's test set and score it. Several processes share the work and must all call it.

    Pairs are not answered: their score is the share of those whose chosen answer is likelier than the rejected one.

    Args:
        batch: texts answered at a time.
        listener: receives after each batch how many of ``total`` texts, counted from ``offset``, are done.
    """
    done = offset
    everything = len(task.test) if total is None else total

    def progress(answered: int) -> None:
        nonlocal done
        done += answered
        listener(Evaluating(task.name, done, everything))

    if isinstance(task, WatchedTask) and task.harness is not None:
        scored = harness.score(backbone, task.harness, batch)
        progress(len(task.test))
        return ScoredTask(scored.answers, scored.values)
    if task.spec.dpo is not None:
        correct = prefers_chosen(backbone, task.test, task.spec, batch, progress)
        return ScoredTask((), tuple(map(float, correct)))
    answers = backbone.answer([example.read for example in task.test], task.spec, batch, progress, shared=True)
    references = [example.output for example in task.test]
    inputs = [example.input for example in task.test]
    predictions = [task.spec.counts_as(answer.text) for answer in answers]
    metric = task.spec.metric
    if isinstance(metric, str):
        values = score_each(metric, predictions, references, inputs).tolist()
    else:
        # A function may cost money, or differ from call to call: it runs once, and every process has its scores.
        values = processes.on_main(lambda: score_each(metric, predictions, references, inputs).tolist())
    return ScoredTask(tuple(predictions), tuple(values))


def score_tasks(
    backbone: Backbone, tasks: Sequence[Task], batch: int, listener: Listener = silent
) -> dict[str, ScoredTask]:
    """Answer and score all tasks that have a test set."""
    tested = [task for task in tasks if task.test]
    total = sum(len(task.test) for task in tested)
    scores: dict[str, ScoredTask] = {}
    done = 0
    for task in tested:
        scores[task.name] = score_task(backbone, task, batch, listener, done, total)
        done += len(task.test)
    return scores
