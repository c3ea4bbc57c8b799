"""A plan of what a run will do: its tasks, the memory it needs, and an estimate of its time. Nothing is written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from merganser import processes
from merganser.errors import InputError
from merganser.learner.checks import check_stream, memory_options, selects
from merganser.learner.learn_task import TaskRun
from merganser.learner.measuring import Speed, is_text_score, measure_answers, measure_steps
from merganser.learner.preview import Preview
from merganser.learner.session import Session
from merganser.learner.train_row import can_share, task_context
from merganser.methods import TaskContext, make_method
from merganser.options import LARGEST
from merganser.runs.options import Keep
from merganser.streams.task import Task
from merganser.training.trainer import steps_per_epoch


@dataclass(frozen=True)
class PlannedTask:
    """One task of a plan.

    Attributes:
        rows: training examples of one pass, mixed ones included.
        memory: examples in the memory when it is learned.
        tokens: tokens of input and answer of its own examples in one pass, as the model reads them; ``None``: images.
        tokens_trained: the same over all its steps.
        steps: optimizer steps.
        training_seconds: estimate of training and the method's work after it.
        answers: test and development examples that are answered before it (the first task), while it is learned and
            after it.
        evaluating_seconds: estimate of answering them.
    """

    name: str
    rows: int
    dev: int
    test: int
    memory: int
    tokens: int | None
    tokens_trained: int | None
    steps: int
    training_seconds: float
    answers: int
    evaluating_seconds: float

    @property
    def seconds(self) -> float:
        """The whole task."""
        return self.training_seconds + self.evaluating_seconds


@dataclass(frozen=True)
class PlannedMemory:
    """Bytes that training needs on its device.

    Attributes:
        weights: of the model.
        gradients, moments: of the trained weights, and what the optimizer keeps of them.
        snapshots: copies of weights and whatever else the method holds, at most at any moment that was looked at.
        activations: what the forward pass of the longest batch keeps for the backward pass.
        peak: what CUDA allocated at most while it was measured; ``None`` on other devices.
    """

    device: str
    weights: int
    gradients: int
    moments: int
    snapshots: int
    activations: int
    peak: int | None = None

    @property
    def total(self) -> int:
        """Their sum, or the measured peak if that is more."""
        parts = self.weights + self.gradients + self.moments + self.snapshots + self.activations
        return max(parts, self.peak or 0)


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
        method: its title.
        learned: tasks that the run has learned already.
        trainable: number of trained weights.
        step_seconds: one optimizer step of the task that was measured, merges aside.
        references_seconds: estimate of single-task references (``--fwt``); 0 without them.
        keep_weights: rows whose weights are kept (``runs.keep_weights``).
        row_bytes: about what the weights deployed after one row take on disk.
        remarks: what the estimate does not cover.
        plain_start: the first of these tasks is trained by plain fine-tuning, which other runs of a study may share.
    """

    method: str
    learned: list[str]
    tasks: list[PlannedTask]
    memory: PlannedMemory
    trainable: int
    measured_on: str
    step_seconds: float
    references_seconds: float = 0.0
    keep_weights: Keep = "all"
    row_bytes: int = 0
    remarks: list[str] = field(default_factory=list)
    plain_start: bool = False

    @property
    def seconds(self) -> float:
        """The estimate of the whole run."""
        return math.fsum(task.seconds for task in self.tasks) + self.references_seconds

    def as_json(self) -> dict[str, Any]:
        """Return plain values, totals included."""
        values = asdict(self)
        values["memory"]["total"] = self.memory.total
        values["steps"] = sum(task.steps for task in self.tasks)
        values["seconds"] = self.seconds
        return values


def make_plan(session: Session, tasks: Sequence[Task], *, fwt: bool = False, added: bool = False) -> Plan:
    """Check a stream, train ten steps and answer a few texts of it in memory, and plan the tasks not learned yet.

    The weights and the method of the session are changed: use it for nothing else.

    Args:
        fwt: with single-task references.
        added: these are not the whole stream but tasks to learn after those of the run.

    Raises:
        InputError: the stream cannot be learned, every task of it is learned, or there are several processes.
        RunError: the loss is not finite.
    """
    if processes.world_size() > 1:
        raise InputError("A plan is made by one process.", "Start it without torchrun or accelerate.")
    preview = Preview(session)
    if added:
        TaskRun(preview, tasks).check()
    else:
        check_stream(preview, tasks)
    learned = preview.learned
    preview.future_tasks = [] if added else list(tasks)
    missing = [task for task in tasks if task.name not in learned]
    if not missing:
        raise InputError("Every task of the stream is learned already.", "There is nothing to plan.")
    groups = [missing] if preview.method.joint else [[task] for task in missing]
    for task in missing:
        preview.backbone.prepare_labels(task.train, task.spec)
    first = len(preview.rows) or 1
    contexts = [
        task_context(Preview(session, missing[:number]), group, first + number) for number, group in enumerate(groups)
    ]
    # A later task has a memory and earlier tasks, so that the method does all that it does.
    measured = 0 if learned or len(groups) == 1 else 1
    speed, memory = measure_steps(Preview(session, missing[:measured]), contexts[measured])
    tested = {**preview.known_tasks(), **{task.name: task for task in missing}, **preview.watched()}
    answering = measure_answers(Preview(session, missing), [task for task in tested.values() if task.test])
    answered = _answered(preview, groups)
    planned = [
        _planned(
            preview,
            group,
            context,
            speed,
            _evaluation([*answered[number], *_selecting(preview, groups[: number + 1], context)], answering),
        )
        for number, (group, context) in enumerate(zip(groups, contexts, strict=True))
    ]
    trainable = sum(weight.numel() for weight in preview.backbone.trainable().values())
    references = _references(missing, contexts, speed, answering) if fwt and not preview.method.joint else 0.0
    return Plan(
        method=preview.method.title,
        learned=learned,
        tasks=planned,
        memory=PlannedMemory(**memory),
        trainable=trainable,
        measured_on=groups[measured][0].name,
        step_seconds=speed.step,
        references_seconds=references,
        keep_weights=session.config.keep_weights,
        row_bytes=sum(weight.nbytes for weight in preview.backbone.trainable().values()),
        remarks=_remarks(session, missing),
        plain_start=not learned and _is_plain(session, contexts[0]) and can_share(contexts[0].features),
    )


def _is_plain(session: Session, context: TaskContext) -> bool:
    """Return whether the method does nothing while a task is trained."""
    method = make_method(session.config.method)
    return not method.callbacks(context) and method.penalty(context) is None


def _planned(
    session: Session, group: Sequence[Task], context: TaskContext, speed: Speed, evaluation: tuple[int, float]
) -> PlannedTask:
    lengths = [feature["length"] for feature in context.features]
    texts = session.backbone.modality == "text"
    steps = context.steps
    per_step = session.config.training.batch * session.config.training.accumulation
    per_pass = _rows_per_pass(session, group, context)
    trained = sum(lengths) / len(lengths) * min(steps * per_step, _rows_trained(session, per_pass, steps))
    return PlannedTask(
        name="+".join(task.name for task in group),
        rows=per_pass,
        dev=sum(len(task.dev) for task in group),
        test=sum(len(task.test) for task in group),
        memory=len(context.memory),
        tokens=sum(lengths) if texts else None,
        tokens_trained=round(trained) if texts else None,
        steps=steps,
        training_seconds=speed.training(steps, sum(lengths) / len(lengths), bool(context.memory)),
        answers=evaluation[0],
        evaluating_seconds=evaluation[1],
    )


def _rows_per_pass(session: Session, group: Sequence[Task], context: TaskContext) -> int:
    """Return the examples of an epoch, with those mixed in."""
    return len(context.features) if session.method.joint else sum(task.rows_per_epoch for task in group)


def _rows_trained(session: Session, per_pass: int, steps: int) -> int:
    """Return the examples in so many steps: the last step of a pass may have fewer than a full batch."""
    whole, rest = divmod(steps, steps_per_epoch(per_pass, session.config.training))
    return whole * per_pass + rest * session.config.training.batch * session.config.training.accumulation


def _answered(session: Session, groups: Sequence[Sequence[Task]]) -> list[list[tuple[str, int]]]:
    """Return the tasks that are answered for each row to come, and the sizes of their test sets.

    The tasks of row 0 are with those of the first row.
    """
    watched = list(session.watched().values())
    known = [*(task for task in session.known_tasks().values() if task.test), *watched]
    everything = [task for group in groups for task in group if task.test]
    rows = []
    for number, group in enumerate(groups):
        new = [task for task in group if task.test]
        if session.method.per_task_models:
            rows.append([*new, *([] if session.rows or number else [*everything, *watched])])
            continue
        if session.config.evaluation.future and session.future_tasks:
            before = [] if session.rows or number else [*everything, *watched]  # row 0
            rows.append([*before, *known, *everything])
        else:
            # A new task is scored with the weights of row 0, and with those it starts from.
            twice = 2 if session.rows or number else 1
            rows.append([*new * twice, *known, *new, *([] if session.rows or number else watched)])
            known += new
    return [[(task.name, len(task.test)) for task in row] for row in rows]


def _selecting(session: Session, groups: Sequence[Sequence[Task]], context: TaskContext) -> list[tuple[str, int]]:
    """Return the development texts that select the weights of the last group, by task; none if their losses do."""
    options = session.config.training
    if not selects(session, groups[-1]) or options.select_by != "score":
        return []
    every = options.select_every or steps_per_epoch(_rows_per_pass(session, groups[-1], context), options)
    most = options.select_texts or LARGEST
    learned = [] if session.method.per_task_models else list(session.known_tasks("dev").values())
    seen = [(task.name, len(task.test)) for task in learned]
    seen += [(task.name, len(task.dev)) for group in groups for task in group]
    return [(name, math.ceil(context.steps / every) * min(most, count)) for name, count in seen]


def _evaluation(counts: Sequence[tuple[str, int]], seconds: dict[str, float]) -> tuple[int, float]:
    """Return how many texts are answered, and the seconds that takes."""
    usual = math.fsum(seconds.values()) / len(seconds) if seconds else 0.0
    return sum(count for _, count in counts), math.fsum(count * seconds.get(name, usual) for name, count in counts)


def _references(
    tasks: Sequence[Task], contexts: Sequence[TaskContext], speed: Speed, answering: dict[str, float]
) -> float:
    """Return the seconds of a fresh model per task with a test set, trained without the method's work."""
    total = 0.0
    for task, context in zip(tasks, contexts, strict=True):
        if task.test:
            length = sum(feature["length"] for feature in context.features) / len(context.features)
            total += speed.plain(context.steps, length) + len(task.test) * answering[task.name]
    return total


def _remarks(session: Session, tasks: Sequence[Task]) -> list[str]:
    remarks = []
    if functions := [task.name for task in tasks if not is_text_score(task.spec.metric)]:
        remarks.append(
            f"The functions that score {', '.join(functions)} were not called: their time is not in the estimate."
        )
    options = memory_options(session)
    if session.method.uses_memory and (options.reads_surprise or options.source == "self"):
        what = (
            "writing its texts"
            if options.source == "self"
            else f"measuring losses for memory.sampler: {options.sampler}"
        )
        remarks.append(f"The time of choosing the memory, {what}, is not in the estimate.")
    return remarks
