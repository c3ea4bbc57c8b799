"""Experience replay: rows of the memory beside the batches of the new task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from merganser.methods.base import Method, TaskContext
from merganser.methods.shared.rehearsal import Rehearsal, RehearsalOptions
from merganser.methods.shared.start_merge import FinishOptions
from merganser.training.options import TrainingOptions
from merganser.training.state import TaskState

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from merganser.training.trainer import Penalty


class ReplayOptions(RehearsalOptions, FinishOptions):
    """Experience replay: rehearse a little of the memory beside the new task."""

    name: Literal["replay"] = "replay"


class Replay(Method[ReplayOptions]):
    r"""Minimise :math:`L_{new} + \lambda L_{memory}`, with a fresh memory batch at every forward pass.

    Source: experience replay as in Chaudhry et al. 2019, "On Tiny Episodic Memories in Continual Learning"
    (arXiv 1902.10486).
    """

    Options = ReplayOptions
    title = "Experience replay"
    paper = "Chaudhry 2019, arXiv 1902.10486"
    idea = "Add the loss on a batch of stored examples to the loss of every batch (rehearsal)."
    uses_memory = True
    supports_distributed = True

    def rehearsal_batch(self, training: TrainingOptions, memory_examples: int) -> int | None:
        return self.options.most_rows(training, memory_examples)

    def __init__(self, options: ReplayOptions) -> None:
        super().__init__(options)
        self._rehearsal = Rehearsal(options, "replay")

    def begin_task(self) -> None:
        super().begin_task()
        self._rehearsal = Rehearsal(self.options, "replay")

    def callbacks(self, context: TaskContext) -> list[TrainerCallback]:
        return self._rehearsal.callbacks(context, self.records)

    def penalty(self, context: TaskContext) -> Penalty | None:
        return self._rehearsal.penalty(context, self.records)

    def task_state(self) -> TaskState:
        return self._rehearsal.task_state()

    def load_task_state(self, state: TaskState) -> None:
        self._rehearsal.load_task_state(state)

    def after_task(self, context: TaskContext) -> None:
        self.options.finish(self.records, context)
