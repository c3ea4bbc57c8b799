"""SuRe: rehearsal of surprising texts, and a slow copy of the adapter that is deployed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from merganser.events import Notice
from merganser.methods.base import Method, TaskContext
from merganser.methods.shared.merge_records import record_merge, timed_merge
from merganser.methods.shared.rehearsal import Rehearsal, RehearsalOptions
from merganser.training.options import TrainingOptions
from merganser.training.state import TaskState

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from merganser.training.slow_weights import SlowWeights
    from merganser.training.trainer import Penalty


class SureOptions(RehearsalOptions):
    """SuRe: replay of surprising texts with slow weights."""

    name: Literal["sure"] = "sure"
    decay: float = Field(
        0.99,
        ge=0,
        lt=1,
        description="of the slow weights, which average the trained ones over about 1 / (1 - decay) optimizer steps",
    )
    start_from: Literal["slow", "fast"] = Field(
        "slow", description="a task is trained from the slow weights, which are deployed, or from the last trained ones"
    )

    def memory_defaults(self) -> dict[str, Any]:
        return {"sampler": "surprise"}


class Sure(Method[SureOptions]):
    r"""Train fast weights with rehearsal; deploy slow ones, :math:`s \leftarrow b s + (1 - b) \theta` after each step.

    Source: Hazard et al. 2025, "SuRe: Surprise-driven prioritised replay for continual LLM learning"
    (arXiv 2511.22367).
    """

    Options = SureOptions
    title = "SuRe"
    paper = "Hazard 2025, arXiv 2511.22367"
    idea = "Rehearse the texts that surprised the model most; deploy a slow moving average of the trained weights."
    stores = "the slow weights (P); with start_from: fast, the trained ones too (2 P)"
    uses_memory = True
    selects_best = False

    _slow: SlowWeights | None = None

    def __init__(self, options: SureOptions) -> None:
        super().__init__(options)
        self._rehearsal = Rehearsal(options, "sure")
        if options.start_from == "fast":
            self.start = "trained"

    def begin_task(self) -> None:
        super().begin_task()
        self._rehearsal = Rehearsal(self.options, "sure")

    def rehearsal_batch(self, training: TrainingOptions, memory_examples: int) -> int | None:
        return self.options.most_rows(training, memory_examples)

    def callbacks(self, context: TaskContext) -> list[TrainerCallback]:
        from merganser.training.slow_weights import SlowWeights

        self._slow = SlowWeights(context.before(), self.options.decay, self.records)
        self._note_short_task(context)
        return [*self._rehearsal.callbacks(context, self.records), self._slow]

    def _note_short_task(self, context: TaskContext) -> None:
        averaged = round(1 / (1 - self.options.decay))
        if context.steps < averaged:
            kept = 100 * self.options.decay**context.steps
            text = f"{context.steps} optimizer steps, and the slow weights average over {averaged} (method.decay"
            text += f" {self.options.decay:g}): at its end {kept:.0f} % of them are those from before it"
            context.listener(Notice(f"Task '{context.task}' takes {text}."))

    def penalty(self, context: TaskContext) -> Penalty | None:
        return self._rehearsal.penalty(context, self.records)

    def task_state(self) -> TaskState:
        slow = {} if self._slow is None else self._slow.task_state().tensors
        return TaskState(self._rehearsal.task_state().values, slow)

    def load_task_state(self, state: TaskState) -> None:
        assert self._slow is not None
        self._slow.load_task_state(state)
        self._rehearsal.load_task_state(state)

    def after_task(self, context: TaskContext) -> None:
        from merganser.weights import Weights

        assert self._slow is not None
        current, share = Weights.of(context.backbone.module), self.options.decay**context.steps
        before = context.before()
        record_merge(self.records, context, trained=current, before=before, weight_new=1 - share, weight_old=share)
        with timed_merge(self.records):
            current.copy_(self._slow.slow)
