"""Watched tasks of a run: checked before any work, stored with the first row that scores them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from merganser.errors import InputError
from merganser.evaluation import ScoredTask
from merganser.events import Notice
from merganser.integrations import harness
from merganser.learner.conversations import check_conversations, conversation_remarks
from merganser.learner.example_store import as_line, kept_example
from merganser.learner.session import Session
from merganser.learner.truncation import truncated_examples, truncation_notices
from merganser.metrics.function import metric_name
from merganser.metrics.retained import Outcomes, outcomes
from merganser.runs.record import WatchRecord
from merganser.streams.checks import check_names
from merganser.streams.task import Task
from merganser.streams.watch import WatchedTask, check_watched


def watch(session: Session, tasks: Sequence[WatchedTask]) -> None:
    """Watch tasks from the next row on; those that are watched already are skipped.

    Raises:
        InputError: one cannot be scored, has the name of a learned task, or is watched with other examples.
    """
    check_names([task.name for task in tasks])
    known = session.watched()
    for task in tasks:
        asked = _with_examples(task)
        if task.name in known:
            _check_same(asked, known[task.name])
            continue
        check_watched(asked)
        if task.name in session.learned:
            raise InputError(
                f"Task '{task.name}' was learned, and a watched task is never learned.", "Choose another name."
            )
        _check_model(session, asked)
        session.add_metrics([asked])
        session.require_metrics([asked])
        session.new_watched[task.name] = asked
        for remark in [*asked.remarks, *conversation_remarks(session, asked.as_learned())]:
            session.listener(Notice(f"Watched task '{task.name}': {remark}."))
        counts = truncated_examples(session.backbone, asked) if asked.harness is None else {}
        session.truncated[task.name] = counts
        for text in truncation_notices(session.backbone, asked, counts) if asked.harness is None else ():
            session.listener(Notice(text))
    if session.new_watched and session.rows:
        names = ", ".join(session.new_watched)
        session.listener(Notice(f"Watched from the next task on: {names}."))


def check_watch(session: Session, tasks: Sequence[Task]) -> None:
    """Refuse to work where a watched task can no longer be scored, or is among those to learn.

    Raises:
        InputError: naming the task; its metric is not there, or lm-evaluation-harness has other examples of it now.
    """
    watched = session.watched()
    if both := [task.name for task in tasks if task.name in watched]:
        raise InputError(f"Task '{both[0]}' is watched, and a watched task is never learned.", "Choose another name.")
    session.require_metrics(watched.values())
    for task in watched.values():
        if task.harness is not None:
            _check_same(_with_examples(task), task)


def _with_examples(task: WatchedTask) -> WatchedTask:
    """Return a task of lm-evaluation-harness with its examples and what ``null`` stood for; others as they are."""
    if task.harness is None:
        return task
    loaded = harness.load(task.harness)
    return replace(task, test=loaded.examples, harness=loaded.options, source=loaded.source, metric=None)


def _check_same(task: WatchedTask, known: WatchedTask) -> None:
    if (task.fingerprint(), task.group) == (known.fingerprint(), known.group):
        return
    if known.harness is not None and task.harness is not None:
        raise InputError(
            f"Watched task '{task.name}' asks other questions now than in this run (lm-evaluation-harness).",
            "Use the version of the package and of the data set that the run began with, or another name.",
        )
    raise InputError(
        f"The examples or settings of watched task '{task.name}' are not those of this run.",
        "Restore them, or watch them under another name.",
    )


def _check_model(session: Session, task: WatchedTask) -> None:
    """Refuse a task that the run's model cannot answer."""
    backbone = session.backbone
    if task.harness is not None:
        harness.check_model(backbone, task.name)
        return
    backbone.check_examples(task.test, task.spec)
    if backbone.modality == "image" and not getattr(backbone, "has_text_encoder", False):
        raise InputError(
            f"Watched task '{task.name}' has images, and the labels of {backbone.options.name} are made from training "
            "images.",
            "Use an encoder of images and texts, such as CLIP, or leave it out.",
        )
    backbone.check_tokens(text for example in task.test for text in example.texts)
    check_conversations(session, task)
    backbone.check_labels(task.spec, f"Watched task '{task.name}'")


# What the row that scores them first has of them ----------------------------------------------------------------------


def watch_lines(session: Session) -> dict[str, list[dict[str, Any]]]:
    """Return the lines of ``watch.jsonl`` under their file's name; nothing where no task is new."""
    tasks = session.new_watched.values()
    lines = [as_line(kept_example(task.name, example)) for task in tasks for example in task.test]
    return {"watch": lines} if lines else {}


def watch_records(session: Session) -> list[WatchRecord]:
    """Return the records of the tasks that are watched from this row on."""
    return [
        WatchRecord(
            name=task.name,
            group=task.group,
            fingerprint=task.fingerprint(),
            test_examples=len(task.test),
            truncated=session.truncated.get(task.name, {}),
            spec=task.spec,
            harness=task.harness,
            source=dict(task.source),
            remarks=list(task.remarks),
        )
        for task in session.new_watched.values()
    ]


def metrics_of(tasks: Sequence[Task]) -> dict[str, str]:
    """Return the name of the score of each task."""
    return {
        task.name: f"{task.harness.metric} of {task.harness.task} (lm-evaluation-harness)"
        if isinstance(task, WatchedTask) and task.harness is not None
        else metric_name(task.spec.metric)
        for task in tasks
    }


def against_start(session: Session, measured: Mapping[int, Mapping[str, ScoredTask]]) -> dict[str, Outcomes]:
    """Compare the answers to the watched tasks in the row that is being written with those of row 0.

    Args:
        measured: row -> examples that its weights answered for this row; the last one is this row.
    """
    started = {
        kept.task: tuple(kept.scores)
        for row in session.rows
        if row.file.watched
        for kept in row.answers()
        if kept.row == 0
    }
    if session.config.evaluation.keep_answers:
        started |= {name: scored.values for name, scored in measured.get(0, {}).items()}
    now = measured[max(measured)]
    return {
        name: outcomes(started[name], now[name].values) for name in session.watched() if name in started and name in now
    }
