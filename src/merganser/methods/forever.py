"""FOREVER: bursts of rehearsal at growing distances in model time, anchored to the weights before the task."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from merganser.methods.base import Method, TaskContext
from merganser.methods.shared.rehearsal import DAY_STEPS, MOST_STEPS
from merganser.methods.shared.start_merge import FinishOptions
from merganser.training.determinism import derive_seed
from merganser.training.model_time import DAYS, SMOOTHING, Clock
from merganser.training.options import TrainingOptions, check_batch
from merganser.training.state import TaskState

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from merganser.training.anchored_replay import AnchoredReplay


class ForeverOptions(FinishOptions):
    """FOREVER: rehearsal spaced by model time, with an anchor."""

    name: Literal["forever"] = "forever"
    days: list[float] = Field(
        list(DAYS),
        min_length=1,
        description="model time of the moments at which the memory is rehearsed, in days; after the last at every "
        "doubling of it",
    )
    day_steps: int = Field(
        DAY_STEPS,
        gt=0,
        description="a day is the distance that the weights travel in the first so many steps of a task",
    )
    clock: Clock = Field("model", description="model: days of model time; steps: days of `day_steps` steps")
    steps: int | None = Field(
        None,
        gt=0,
        description="optimizer steps on the memory at each moment; null: as many as the memory has batches, at most "
        f"{MOST_STEPS}",
    )
    batch: int | None = Field(
        None,
        gt=0,
        description="memory examples per such step; null: as many as training examples per optimizer step, or the "
        "whole memory if smaller",
    )
    anchor: float = Field(
        1e-3,
        ge=0,
        allow_inf_nan=False,
        description="weight of the squared distance to the weights before the task, in the loss on the memory; 0: none",
    )
    gamma: float = Field(
        1.0,
        ge=0,
        allow_inf_nan=False,
        description="how much the anchor's weight follows the pace of training: it is multiplied by "
        "1 + gamma (pace - 1), between 0.5 and 3; 0: constant",
    )
    smoothing: float = Field(
        SMOOTHING, ge=0, lt=1, description="decay of the moving average of the updates' norms, the pace"
    )

    @field_validator("days")
    @classmethod
    def _days_grow(cls, value: list[float]) -> list[float]:
        if value[0] <= 0 or any(later <= earlier for earlier, later in itertools.pairwise(value)):
            raise ValueError("give times above 0, each larger than the one before")
        return value


class Forever(Method[ForeverOptions]):
    r"""Rehearse at 1, 2, 4, 7, 15, 30 days of model time and every doubling, minimising
    :math:`L_{memory} + \beta_t |\theta - \theta^*|^2`.

    Model time is the summed L2 norm of all updates of a task; a day is that of its first 24 steps. :math:`\theta^*` are
    the weights before the task and :math:`\beta_t = \beta\, \mathrm{clip}(1 + \gamma (r_t - 1), .5, 3)`, with
    :math:`r_t` the moving average of the norms relative to the first day's mean.

    Source: Feng et al. 2026, "FOREVER" (arXiv 2601.03938).
    """

    Options = ForeverOptions
    title = "FOREVER"
    paper = "Feng 2026, ACL, arXiv 2601.03938"
    idea = "Rehearse in bursts, ever further apart as the weights travel, held near the weights before the task."
    uses_memory = True

    _replay: AnchoredReplay | None = None

    def rehearsal_batch(self, training: TrainingOptions, memory_examples: int) -> int | None:
        if memory_examples == 0:
            return None
        return check_batch("method.batch", self.options.batch, training.batch * training.accumulation, memory_examples)

    def callbacks(self, context: TaskContext) -> list[TrainerCallback]:
        from merganser.training.anchored_replay import AnchoredReplay
        from merganser.training.rehearsal import MemoryBatches
        from merganser.weights import Weights

        self._replay = None
        size = self.rehearsal_batch(context.training, len(context.memory))
        if size is None:
            return []
        options = self.options
        self._note_short_task(context)
        self._replay = AnchoredReplay(
            MemoryBatches(context.memory, size, derive_seed(context.seed, "forever")),
            context.collator(),
            Weights.of(context.backbone.module).snapshot(),
            options,
            options.steps or min(MOST_STEPS, -(-len(context.memory) // size)),
            self.records,
            at_most=context.training.batch if context.training.accumulation > 1 else None,
        )
        return [self._replay]

    def _note_short_task(self, context: TaskContext) -> None:
        from merganser.events import Notice

        day = self.options.day_steps
        if context.steps < day:
            text = f"{context.steps} optimizer steps are fewer than the first day (method.day_steps: {day})"
            context.listener(Notice(f"Task '{context.task}': {text}, so that nothing is rehearsed."))

    def task_state(self) -> TaskState:
        return TaskState() if self._replay is None else self._replay.task_state()

    def load_task_state(self, state: TaskState) -> None:
        if self._replay is not None:
            self._replay.load_task_state(state)

    def after_task(self, context: TaskContext) -> None:
        self.options.finish(self.records, context)
