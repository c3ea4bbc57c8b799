"""Measure steps, answers and memory of a run before it begins, in this process and without writing anything."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from merganser.devices import peak_memory, reset_peak_memory, synchronize
from merganser.evaluation import score_task
from merganser.events import Event, Merged
from merganser.learner.session import Session
from merganser.methods import TaskContext
from merganser.metrics.text import TEXT_SCORES
from merganser.models.pairs import is_pairs
from merganser.models.precision import autocast
from merganser.streams.task import Task
from merganser.streams.watch import WatchedTask
from merganser.training.dpo import References, preference_loss
from merganser.training.packing import training_collator
from merganser.training.progress_callback import ProgressCallback
from merganser.training.records import TaskRecords
from merganser.training.rehearsal import model_loss, to_device, without_cache
from merganser.training.trainer import TaskHooks, train_task

WARM, STEPS = 2, 10
"""Steps before the clock runs, and steps that are measured."""

FEW = 8
"""Texts of a task that are answered first; as many as fit into a batch, if that took less than a second."""

SHARE_OF_RATE = 0.01
"""Share of the learning rate in the measured steps: without a warm-up, the whole could make the loss infinite."""


@dataclass(frozen=True)
class Speed:
    """What a method's training takes, measured on one task.

    Attributes:
        step: seconds of one optimizer step, merges aside.
        plain_share: share of it that plain fine-tuning takes.
        length: mean tokens of an example in these steps; steps of other tasks are scaled by theirs.
        merge: seconds of one merge along the trajectory, with rehearsal.
        interval: planned steps between two of them; ``None``: the method has none.
        after: seconds of the method's work after the task.
        memory: whether the task had a memory. Without one, merges are not made.
    """

    step: float
    plain_share: float
    length: float
    merge: float
    interval: int | None
    after: float
    memory: bool

    def plain(self, steps: int, length: float) -> float:
        """Return the seconds of a task of so many steps and mean tokens per example, by plain fine-tuning."""
        return steps * self.step * self.plain_share * (length / self.length)

    def training(self, steps: int, length: float, memory: bool) -> float:
        """Return the seconds of such a task by the method, with its work after the task."""
        if self.memory and not memory:
            return self.plain(steps, length)
        merges = 0.0 if self.interval is None else steps / self.interval + 1
        return (steps * self.step + merges * self.merge) * (length / self.length) + self.after


def measure_steps(session: Session, context: TaskContext) -> tuple[Speed, dict[str, Any]]:
    """Train a few steps of a task by the session's method, on examples whose lengths are spread as the task's are.

    Returns:
        The speed, and the fields of :class:`~merganser.learner.plan.PlannedMemory`.

    Raises:
        RunError: the loss is not finite.
    """
    options = context.training
    size = (WARM + STEPS) * options.batch * options.accumulation
    steady = {"schedule": "constant_with_warmup", "warmup": 0.0, "steps": WARM + STEPS}
    training = options.model_copy(
        update={**steady, "learning_rate": options.learning_rate * SHARE_OF_RATE, "select_best": False}
    )
    features = spread(sorted(context.features, key=lambda feature: feature["length"]), size)
    context = replace(context, features=features, training=training, steps=WARM + STEPS)
    gauge = Gauge(session)
    method = session.method
    method.records = records = TaskRecords(context.task, context.index, gauge.hear)
    method.begin_task()
    References([*context.features, *context.memory]).measure(session.backbone, session.config.evaluation.batch)
    clock = Clock(records, gauge)
    hooks = TaskHooks(
        [clock.start, *method.callbacks(context), ProgressCallback(records), clock], method.penalty(context)
    )
    train_task(
        session.backbone,
        context.features,
        training,
        seed=context.seed,
        records=records,
        hooks=hooks,
        mixture=context.mixture,
    )
    began = time.perf_counter()
    method.after_task(context)
    after = time.perf_counter() - began
    gauge.look()
    activations = activation_bytes(session, sorted(features, key=lambda f: -f["length"])[: options.batch], context)
    length = sum(feature["length"] for feature in features) / len(features)
    return clock.speed(length, after, bool(context.memory)), gauge.bytes(activations)


def spread(ordered: Sequence[Any], number: int) -> list[Any]:
    """Return so many items at equal distances, the last one included; all of them if there are fewer."""
    if len(ordered) <= number:
        return list(ordered)
    return [ordered[math.ceil((i + 1) * len(ordered) / number) - 1] for i in range(number)]


class Clock(TrainerCallback):
    """Measures steps with all callbacks before it; ``start`` must be the first of them.

    Args:
        records: of the task, with the seconds that the method spent.
        gauge: looks at the memory when the first step is done, and its gradients when there are any.
    """

    def __init__(self, records: TaskRecords, gauge: Gauge) -> None:
        self.records = records
        self.gauge = gauge
        self.start = _BeforeUpdate(gauge)
        self._at: dict[int, float] = {}
        self._spent: dict[int, dict[str, float]] = {}
        self._merges: dict[int, int] = {}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        step = state.global_step
        if step == 1:
            self.gauge.moments = _storages(_tensors_of(kwargs["optimizer"].state.values()))
            self.gauge.look()
        if step in (WARM, WARM + STEPS):
            synchronize(self.gauge.session.backbone.device)
            self._at[step] = time.perf_counter()
            self._spent[step] = self.records.cost.model_dump()
            self._merges[step] = len(self.records.merges)

    def speed(self, length: float, after: float, memory: bool) -> Speed:
        """Return the speed of the measured steps.

        Args:
            length: mean tokens of an example in them.
            after: seconds of the method's work after the task.
            memory: whether the task had one.
        """
        spent = {name: self._spent[WARM + STEPS][name] - value for name, value in self._spent[WARM].items()}
        seconds = self._at[WARM + STEPS] - self._at[WARM]
        merges = self._merges[WARM + STEPS] - self._merges[WARM]
        interval = self.records.signals[-1].interval
        merging = spent["rehearsal_seconds"] + spent["merging_seconds"] + spent["merge_eval_seconds"]
        aside = merging if interval is not None and merges else 0.0
        extra = merging + spent["probing_seconds"] + spent["bookkeeping_seconds"]
        step = max(seconds - aside, 1e-9) / STEPS
        plain = max(seconds - extra, 0.0) / STEPS / step
        # The merges of ten steps are those of a task of ten steps: planned ones, and one at its end.
        return Speed(step, min(plain, 1.0), length, aside / merges if merges else 0.0, interval, after, memory)


class _BeforeUpdate(TrainerCallback):
    def __init__(self, gauge: Gauge) -> None:
        self.gauge = gauge

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self.gauge.gradients:
            parameters = self.gauge.session.backbone.module.parameters()
            self.gauge.gradients = _bytes(p.grad for p in parameters if p.grad is not None)


class Gauge:
    """Bytes of tensors that came to be while a task was trained.

    Between steps, at merges and after the task, what is there beyond the optimizer's moments is held by the method.

    Args:
        session: whose model is trained.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.gradients = self.snapshots = 0
        self.moments: dict[int, int] = {}
        self._before = set(_storages(_live_tensors()))
        reset_peak_memory(session.backbone.device)

    def hear(self, event: Event) -> None:
        """Look when a merge is recorded: its copies of the weights are there."""
        if isinstance(event, Merged):
            self.look()

    def look(self) -> None:
        """Add up the tensors that are there now."""
        module = self.session.backbone.module
        gradients = _storages(p.grad for p in module.parameters() if p.grad is not None)
        known = {*self._before, *self.moments, *gradients}
        new = {place: size for place, size in _storages(_live_tensors()).items() if place not in known}
        self.snapshots = max(self.snapshots, sum(new.values()))

    def bytes(self, activations: int) -> dict[str, Any]:
        """Return all bytes by their names."""
        module = self.session.backbone.module
        device = self.session.backbone.device
        return {
            "device": device.type,
            "weights": _bytes([*module.parameters(), *module.buffers()]),
            "gradients": self.gradients,
            "moments": sum(self.moments.values()),
            "snapshots": self.snapshots,
            "activations": activations,
            "peak": peak_memory(device),
        }


def activation_bytes(session: Session, features: list[dict[str, Any]], context: TaskContext) -> int:
    """Return the bytes that one forward pass keeps for the backward pass, weights aside."""
    backbone = session.backbone
    batch = to_device(training_collator(backbone, context.training)(features), backbone.device)
    weights = set(_storages([*backbone.module.parameters(), *backbone.module.buffers()]))
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved.update(_storages([tensor]))
        return tensor

    backbone.module.train()
    with (
        autocast(backbone.device, backbone.precision),
        without_cache(backbone.module),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        loss = preference_loss(backbone.module, batch)[0] if is_pairs(batch) else model_loss(backbone.module, batch)
    del loss
    return sum(size for place, size in saved.items() if place not in weights)


def measure_answers(session: Session, tasks: Sequence[Task]) -> dict[str, float]:
    """Answer a few test texts of each task; return the seconds per text. Functions that score are not called."""
    specs = [task.spec for task in session.known_tasks().values()]
    batch = session.config.evaluation.batch
    seconds = {}
    for task in tasks:
        if isinstance(task, WatchedTask) and task.harness is not None:
            continue  # asked as a whole; it takes the mean of the others
        spec = session.candidates.spec(task.spec, specs)
        if not is_text_score(spec.metric):
            spec = replace(spec, metric="exact_match")
        ordered = sorted(task.test, key=lambda example: example.nbytes)
        for number in (FEW, batch):
            chosen = spread(ordered, min(number, batch))
            began = time.perf_counter()
            score_task(session.backbone, replace(task, test=chosen, spec=spec), batch)
            took = time.perf_counter() - began
            seconds[task.name] = took / len(chosen)
            if took > 1 or len(chosen) == len(task.test) or number >= batch:
                break
    return seconds


def is_text_score(metric: Any) -> bool:
    """Return whether a metric is one of Merganser's own, and no function that may take long or cost money."""
    return isinstance(metric, str) and metric in TEXT_SCORES


def _live_tensors() -> Iterator[Tensor]:
    """Yield the tensors that Python holds."""
    for value in gc.get_objects():
        if issubclass(type(value), Tensor):
            yield value


def _tensors_of(states: Iterable[Any]) -> Iterator[Tensor]:
    for state in states:
        yield from (value for value in state.values() if isinstance(value, Tensor))


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Return address -> bytes of the memory behind tensors; several tensors may share one."""
    places = {}
    for tensor in tensors:
        if tensor.device.type != "meta" and tensor.layout is torch.strided and tensor.numel():
            storage = tensor.untyped_storage()
            places[storage.data_ptr()] = storage.nbytes()
    return places


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(_storages(tensors).values())
