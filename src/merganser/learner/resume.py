"""Resume a task from its checkpoint, and select its best weights where that is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

from merganser import processes
from merganser.events import Notice
from merganser.learner.best_weights import BestWeights, TaskLoss, task_losses
from merganser.learner.checks import selects
from merganser.learner.session import Session
from merganser.runs.checkpoint import CheckpointFolder
from merganser.streams.sampling import generator, pick
from merganser.streams.task import Example, Task
from merganser.training.checkpoint import TaskCheckpoints
from merganser.training.dpo import References
from merganser.training.records import TaskRecords
from merganser.training.state import Resumable

REFERENCES = "references"
"""Name of the part of a checkpoint with the reference log-probabilities of pairs."""


def checkpoints_of(session: Session, tasks: Sequence[Task], number: int) -> CheckpointFolder:
    """Return the folder of the checkpoints of row ``number``, with the identity that they must have."""
    identity = {
        "tasks": [task.name for task in tasks],
        "fingerprints": [task.fingerprint() for task in tasks],
        "before": [task.fingerprint for row in session.rows for task in row.file.tasks],
        "memory": _digest(session.memory()),
        "config": session.config.digest(),
    }
    return CheckpointFolder(
        session.directory.path, number, identity, processes.rank(), processes.world_size(), processes.uses_fsdp()
    )


def _digest(examples: Sequence[tuple[str, Example]]) -> str:
    """Return the SHA-256 of examples as the model reads them: with others, resuming would not give the same result."""
    digest = hashlib.sha256()
    for task, example in examples:
        digest.update("\0".join((task, example.learned, example.output, "")).encode())
    return digest.hexdigest()


def best_weights(session: Session, tasks: Sequence[Task]) -> BestWeights | None:
    """Return the callback that selects the best weights by development texts, where that is asked for."""
    options = session.config.training
    if not selects(session, tasks):
        return None
    new = [replace(task, test=task.dev) for task in tasks]
    # With several models, the model of this task answers only its own texts.
    seen = {} if session.method.per_task_models else session.known_tasks("dev")
    everything = {**seen, **{task.name: task for task in new}}
    by_loss = options.select_by == "loss"
    used = [replace(task, test=_drawn(session, task)) for task in everything.values()]
    measure = _losses(session, used) if by_loss else lambda: session.score(used, everything)
    return BestWeights(session.backbone, measure, options.select_every, last=options.select_last, lowest=by_loss)


def _drawn(session: Session, task: Task) -> Sequence[Example]:
    """Draw ``select_texts`` of a task's development texts, the same ones in every row."""
    number = session.config.training.select_texts
    if number is None or len(task.test) <= number:
        return task.test
    rng = generator(session.config.seed, "selection", task.name)
    return [task.test[index] for index in pick(range(len(task.test)), number, rng)]


def _losses(session: Session, tasks: Sequence[Task]) -> Callable[[], dict[str, TaskLoss]]:
    """Return what measures the losses on the tasks' texts, which are tokenised once.

    The reference of pairs is the model as it is now, with the weights that the task starts from.
    """
    specs = [task.spec for task in tasks]
    features = {
        task.name: session.backbone.features(task.test, session.candidates.spec(task.spec, specs))
        for task in tasks
        if task.test
    }
    References([row for rows in features.values() for row in rows]).measure(
        session.backbone, session.config.evaluation.batch
    )
    return lambda: task_losses(session.backbone, features, session.config.training.batch)


def resume(
    session: Session,
    tasks: Sequence[Task],
    records: TaskRecords,
    steps: int,
    selector: BestWeights | None,
    references: References,
) -> TaskCheckpoints | None:
    """Return the checkpoints of a row, with the one to resume from, if there is one.

    Args:
        records: of the training; their index is the number of the row.
        steps: optimizer steps of the training.
        references: of the pairs that are trained on.

    Returns:
        ``None`` where no checkpoints are written.
    """
    options = session.config.training
    if not options.takes_checkpoints:
        return None
    folder = checkpoints_of(session, tasks, records.index)
    notes = processes.on_main(lambda: folder.latest()[1])
    checkpoint, _ = folder.latest(compare=False)  # the other processes read what process 0 left
    for note in notes:
        session.listener(Notice(note))
    if checkpoint is not None:
        where = f"at step {checkpoint.step} of {steps}" if checkpoint.step < steps else "after its last step"
        session.listener(Notice(f"Resuming '{tasks[0].name}' {where}, from its checkpoint."))
    parts: dict[str, Resumable] = {"method": session.method}
    if selector is not None:
        parts["selection"] = selector
    if references.pairs:
        parts[REFERENCES] = references
    return TaskCheckpoints(folder, options, parts, records, checkpoint)
