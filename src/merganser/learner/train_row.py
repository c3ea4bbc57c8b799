"""Train one row: from the weights it starts from to the weights deployed after it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merganser import processes
from merganser.errors import RunError
from merganser.events import Evaluating, Notice, TaskStarted
from merganser.files.atomic import full_disk_is_an_error, make_folder
from merganser.learner.best_weights import BestWeights
from merganser.learner.memory_choice import MemoryChoice
from merganser.learner.resume import REFERENCES, best_weights, resume
from merganser.learner.session import Session
from merganser.learner.shared_parts import TrainingData
from merganser.methods import TaskContext
from merganser.models.pairs import is_pair
from merganser.runs.record import CostRecord
from merganser.streams.answers import AnswerSpec
from merganser.streams.task import Example, Task
from merganser.training.checkpoint import TaskCheckpoints, part_state
from merganser.training.data import Mixture
from merganser.training.determinism import derive_seed
from merganser.training.dpo import References
from merganser.training.progress_callback import ProgressCallback
from merganser.training.records import TaskRecords
from merganser.training.trainer import Outcome, TaskHooks, planned_steps, train_task


@dataclass(frozen=True)
class TrainedRow:
    """The result of training.

    Attributes:
        records: signals of each step, and merges.
        cost: seconds and examples; scoring the row and writing it are added later.
        trained: source -> examples and tokens trained on.
        seconds_before: seconds before an interruption, up to the checkpoint from which training resumed.
        selector: where best weights were selected: their step and scores.
        memory: task -> examples to keep for rehearsal.
    """

    records: TaskRecords
    cost: CostRecord
    trained: Mapping[str, tuple[int, int]]
    seconds_before: float
    selector: BestWeights | None
    memory: Mapping[str, Sequence[Example]]


def train_row(session: Session, tasks: Sequence[Task], number: int, folder: Path) -> TrainedRow:
    """Train the tasks of row ``number`` and write weights and the method's state into its folder.

    The weights deployed are in the model afterwards.

    Raises:
        RunError: the loss or the weights became not finite, or the disk is full.
    """
    _load_start(session)
    session.weights_changed()
    context = task_context(session, tasks, number)
    session.method.records = records = TaskRecords(context.task, number, session.listener)
    session.method.begin_task()
    memory = MemoryChoice(session, tasks, context)
    memory.before_training()
    selector = best_weights(session, tasks)
    references = References([*context.features, *context.memory])
    checkpoints = resume(session, tasks, records, context.steps, selector, references)
    resumed = None if checkpoints is None else checkpoints.resume_from
    if resumed is None:
        _measure_references(session, context.task, references)
    else:
        references.load_task_state(part_state(resumed, REFERENCES))
    examples = (len(context.features), len(context.memory))
    session.listener(TaskStarted(context.task, number, *examples, context.steps, resumed.step if resumed else 0))
    outcome = _train(session, context, records, selector, checkpoints)
    _check_finite(session, context.task)
    if selector is not None:
        selector.put_best()
    if session.method.start == "trained":
        processes.on_main(lambda: save_weights(session, folder / "trained"))
    began = time.perf_counter()
    session.method.after_task(context)
    training_seconds = outcome.seconds + time.perf_counter() - began
    memory.after_training()
    processes.on_main(lambda: save_weights(session, folder / "adapter"))
    processes.on_main(lambda: save_method(session, folder / "method"))
    cost = _cost(records, outcome, training_seconds, selector)
    cost.memory_seconds = memory.seconds
    seconds_before = resumed.values["seconds"] if resumed else 0.0
    return TrainedRow(records, cost, outcome.trained, seconds_before, selector, memory.kept)


def _measure_references(session: Session, task: str, references: References) -> None:
    """Take the weights in the model as the reference of the pairs, and show how far that is."""
    done = 0
    if equal := references.num_equal():
        text = f"{equal:,} of {len(references.pairs):,} pairs have answers of the same tokens, and teach nothing"
        session.listener(Notice(f"Task '{task}': {text} (training.max_target is {session.backbone.lengths.target})."))

    def progress(measured: int) -> None:
        nonlocal done
        done += measured
        session.listener(Evaluating(task, done, len(references.pairs)))

    references.measure(session.backbone, session.config.evaluation.batch, progress)


def _load_start(session: Session) -> None:
    """Put the weights that the task starts from into the model."""
    last = session.rows[-1]
    if session.method.start == "pretrained":
        session.use(session.rows[0])
    elif session.method.start == "trained" and (trained := last.checked("trained")).is_dir():
        session.backbone.load_weights(trained)
    else:
        session.use(last)


def task_context(session: Session, tasks: Sequence[Task], number: int) -> TaskContext:
    """Return data and model for a method to learn the tasks of row ``number``."""
    earlier = {name: task.spec for name, task in session.known_tasks().items()}
    by_task = {**earlier, **{task.name: task.spec for task in tasks}}
    specs = {name: session.candidates.spec(spec, by_task.values()) for name, spec in by_task.items()}
    fresh_specs = by_task if session.config.training.asymmetric_loss and not session.method.joint else specs
    memory = session.memory()
    fresh = [(task.name, example) for task in tasks for example in task.train]
    if session.method.joint:  # everything kept is training data
        fresh, memory = [*memory, *fresh], []
    features = _features(session, fresh, fresh_specs)
    mixture = mixture_of(session, tasks[0])
    rows = len(features) if mixture is None else tasks[0].rows_per_epoch
    return TaskContext(
        task=tasks[0].name,
        index=number,
        backbone=session.backbone,
        memory=_features(session, memory, specs),
        memory_groups=[(task, example.output if specs[task].labels else "") for task, example in memory],
        training=session.config.training,
        seed=derive_seed(session.config.seed, "task", number),
        features=features,
        steps=planned_steps(rows, session.config.training),
        spec=tasks[0].spec,
        earlier=earlier,
        candidates=session.candidates,
        deployed=session.deployed,
        trained=session.trained,
        listener=session.listener,
        mixture=mixture,
    )


def mixture_of(session: Session, task: Task) -> Mixture | None:
    """Return the tokenised examples of the data mixed into a task."""
    if task.mix is None:
        return None
    return Mixture(session.backbone.features(task.mix.examples, AnswerSpec()), task.mix.share)


def _features(
    session: Session, examples: Sequence[tuple[str, Example]], specs: Mapping[str, AnswerSpec]
) -> list[dict[str, Any]]:
    by_task: dict[str, list[Example]] = {}
    for task, example in examples:
        by_task.setdefault(task, []).append(example)
    return [row for task, given in by_task.items() for row in session.backbone.features(given, specs[task])]


def _train(
    session: Session,
    context: TaskContext,
    records: TaskRecords,
    selector: BestWeights | None,
    checkpoints: TaskCheckpoints | None,
) -> Outcome:
    callbacks = [
        *session.method.callbacks(context),
        *([] if selector is None else [selector]),
        ProgressCallback(records),
    ]
    penalty = session.method.penalty(context)

    def train() -> Outcome:
        return train_task(
            session.backbone,
            context.features,
            session.config.training,
            seed=context.seed,
            records=records,
            hooks=TaskHooks(callbacks, penalty),
            checkpoints=checkpoints,
            mixture=context.mixture,
        )

    resumed = checkpoints is not None and checkpoints.resume_from is not None
    if resumed or len(callbacks) > 1 or penalty is not None or (context.index > 1 and not starts_alike(session)):
        return train()
    return train_shared(session, context.features, context.mixture, context.seed, records, train)


def starts_alike(session: Session) -> bool:
    """Return whether the method trains later tasks from the pretrained weights, as other runs may."""
    return session.method.start == "pretrained"


def can_share(features: Sequence[dict[str, Any]]) -> bool:
    """Return whether a training on these examples may be shared: not on pairs, whose loss reads reference weights."""
    return not any(is_pair(feature) for feature in features[:1])


def train_shared(
    session: Session,
    features: Sequence[dict[str, Any]],
    mixture: Mixture | None,
    seed: int,
    records: TaskRecords,
    train: Callable[[], Outcome],
) -> Outcome:
    """Train by plain fine-tuning, or take what another run has trained alike; see :class:`SharedParts`."""
    if session.shared is None or not can_share(features):
        return train()
    data = TrainingData(features, mixture, seed)
    return session.shared.train(session.backbone, session.config, data, records, train)


def _check_finite(session: Session, task: str) -> None:
    if not all(bool(weight.isfinite().all()) for weight in session.backbone.trainable().values()):
        raise processes.mark_collective(
            RunError(
                f"The weights are not finite after the last step of task '{task}'.",
                "Nothing of this task was kept; the run is as it was. Try a lower training.learning_rate.",
            )
        )


def _cost(records: TaskRecords, outcome: Outcome, training_seconds: float, selector: BestWeights | None) -> CostRecord:
    """Return the cost recorded in training; the time that no other part accounts for is that of the inner steps."""
    cost = records.cost.model_copy()
    cost.steps, cost.examples_trained = outcome.steps, outcome.examples
    if selector is not None:
        cost.evaluating_seconds, cost.examples_evaluated = selector.seconds, selector.examples
    elsewhere = cost.probing_seconds + cost.rehearsal_seconds + cost.merging_seconds
    elsewhere += cost.merge_eval_seconds + cost.bookkeeping_seconds + cost.evaluating_seconds
    cost.inner_seconds = max(0.0, training_seconds - elsewhere)
    return cost


def save_weights(session: Session, folder: Path) -> None:
    """Write the weights in the model."""
    with full_disk_is_an_error(folder):
        session.backbone.save_weights(folder)


def save_method(session: Session, folder: Path) -> None:
    """Write the state that the method keeps between tasks."""
    with full_disk_is_an_error(folder):
        session.method.save(make_folder(folder))
