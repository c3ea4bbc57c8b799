"""Scoring a model on the test sets of tasks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from merganser.events import Evaluating, Listener, silent
from merganser.metrics.score import Score
from merganser.metrics.text import score_answers
from merganser.models.base import AnswerSpec, Backbone
from merganser.runs.record import TaskRecord
from merganser.streams.prompts import fill_with_text
from merganser.streams.task import Example, Task


@dataclass(frozen=True)
class KnownTask:
    """What must be known of a task to answer and score its texts, whether it is learned or still to come."""

    name: str
    spec: AnswerSpec
    metric: str
    prompt: str
    test: Sequence[Example] = field(default=(), repr=False)

    @classmethod
    def of_task(cls, task: Task) -> KnownTask:
        """From a task at hand."""
        spec = AnswerSpec(task.labels, dict(task.label_texts), task.answer)
        return cls(task.name, spec, task.metric, task.prompt, task.test)

    @classmethod
    def of_record(cls, record: TaskRecord, test: Sequence[Example]) -> KnownTask:
        """From a task learned earlier."""
        labels = None if record.labels is None else tuple(record.labels)
        spec = AnswerSpec(labels, dict(record.label_texts), "rank" if record.answer == "rank" else "generate")
        return cls(record.name, spec, record.metric, record.prompt, test)

    def ask(self, text: str) -> str:
        """``text`` as the model reads it for this task."""
        return fill_with_text(self.prompt, text)


def with_candidates(task: KnownTask, learned: Iterable[KnownTask]) -> KnownTask:
    """The task with all labels of the tasks learned so far as candidates too (class-incremental answering)."""
    if task.spec.labels is None:
        return task
    labels: list[str] = []
    texts: dict[str, str] = {}
    for other in [*learned, task]:
        labels += [label for label in other.spec.labels or () if label not in labels]
        texts.update(other.spec.label_texts)
    return replace(task, spec=replace(task.spec, labels=tuple(labels), label_texts=texts))


def score_task(
    backbone: Backbone,
    task: KnownTask,
    batch: int,
    listener: Listener = silent,
    offset: int = 0,
    total: int | None = None,
) -> Score:
    """Answer a task's test set and score it. Several processes share the work and must all call it.

    Args:
        batch: texts answered at a time.
        listener: told after each batch how many of ``total`` texts, counted from ``offset``, are done.
    """
    done = offset
    everything = len(task.test) if total is None else total

    def progress(answered: int) -> None:
        nonlocal done
        done += answered
        listener(Evaluating(task.name, done, everything))

    answers = backbone.answer([example.read for example in task.test], task.spec, batch, progress, shared=True)
    return score_answers(task.metric, [answer.text for answer in answers], [example.output for example in task.test])


def score_tasks(
    backbone: Backbone, tasks: Sequence[KnownTask], batch: int, listener: Listener = silent
) -> dict[str, Score]:
    """Scores of all tasks that have a test set."""
    tested = [task for task in tasks if task.test]
    total = sum(len(task.test) for task in tested)
    scores: dict[str, Score] = {}
    done = 0
    for task in tested:
        scores[task.name] = score_task(backbone, task, batch, listener, done, total)
        done += len(task.test)
    return scores
