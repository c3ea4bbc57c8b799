"""What one lesson finds when it begins: a checkpoint to go on from, and whether the best weights are to be picked."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from merganser import processes
from merganser.evaluation import KnownTask
from merganser.events import Notice
from merganser.learner.best_weights import BestWeights
from merganser.learner.session import Session
from merganser.runs.checkpoint import CheckpointFolder
from merganser.streams.task import Example, Task
from merganser.training.checkpoint import TaskCheckpoints
from merganser.training.records import TaskRecords
from merganser.training.state import Resumable


def checkpoints_of(session: Session, tasks: Sequence[Task], number: int) -> CheckpointFolder:
    """Where the checkpoints of row ``number`` are; those of another lesson are not taken for its own."""
    identity = {
        "tasks": [task.name for task in tasks],
        "fingerprints": [task.fingerprint() for task in tasks],
        "before": [task.fingerprint for row in session.directory.rows() for task in row.tasks],
        "memory": _digest(session.memory()),
        "config": session.config.digest(),
    }
    return CheckpointFolder(
        session.directory.path, number, identity, processes.rank(), processes.world_size(), processes.uses_fsdp()
    )


def _digest(examples: Sequence[tuple[str, Example]]) -> str:
    """SHA-256 of examples as they are read: with others than before, a task would not end as it began."""
    digest = hashlib.sha256()
    for task, example in examples:
        digest.update("\0".join((task, example.identity, example.output, "")).encode())
    return digest.hexdigest()


def best_weights(session: Session, tasks: Sequence[Task]) -> BestWeights | None:
    """Picks the best weights by development texts, where that was asked for."""
    options = session.config.training
    if not options.select_best:
        return None
    new = [replace(KnownTask.of_task(task), test=task.dev) for task in tasks]
    # With several models, this task's answers its own texts alone.
    seen = {} if session.method.per_task_models else session.known_tasks("dev")
    everything = {**seen, **{task.name: task for task in new}}
    return BestWeights(
        session.backbone,
        lambda: session.score(list(everything.values()), {} if session.method.per_task_models else everything),
        options.select_every,
    )


def resume(
    session: Session, tasks: Sequence[Task], records: TaskRecords, steps: int, selector: BestWeights | None
) -> TaskCheckpoints | None:
    """The checkpoints of a lesson, with the one to go on from, if there is one; ``None``: none are taken.

    Args:
        records: those of the training, with the row as their index. steps: that the training takes in all.
    """
    options = session.config.training
    if not options.takes_checkpoints:
        return None
    folder = checkpoints_of(session, tasks, records.index)
    notes = processes.on_main(lambda: folder.latest()[1])
    found, _ = folder.latest()  # the others find what process 0 left
    for note in notes:
        session.listener(Notice(note))
    if found is not None:
        where = f"at step {found.step} of {steps}" if found.step < steps else "after its last step"
        session.listener(Notice(f"Going on with '{tasks[0].name}' {where}, from its checkpoint."))
    parts: dict[str, Resumable] = {"method": session.method}
    if selector is not None:
        parts["selection"] = selector
    return TaskCheckpoints(folder, options, parts, records, found)
