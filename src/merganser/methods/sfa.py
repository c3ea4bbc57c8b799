"""SFA: fine-tuning that is averaged with the weights it started from, several times within every task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from merganser.methods.base import Method, MethodOptions, TaskContext, TaskState
from merganser.methods.shared.start_merge import merge_with_start

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from merganser.training.start_averaging import StartAveraging


class SfaOptions(MethodOptions):
    """SFA: sequential fine-tuning with averaging."""

    name: Literal["sfa"] = "sfa"
    beta: float = Field(0.25, ge=0, le=1, description="weight of the task's start in every average")
    p: float = Field(
        0.25, gt=0, le=1, description="share of a task's steps between two averages; 1: only one, when the task ends"
    )
    merge_first: bool = Field(False, description="also average the first task's weights with the pretrained ones")


class Sfa(Method[SfaOptions]):
    r"""Set :math:`\theta \leftarrow (1 - \beta) \theta + \beta \theta_o` after every :math:`p T` of a task's T steps
    and when it ends; :math:`\theta_o` are the weights that the task started from.

    With ``p`` 1 it is :class:`~merganser.methods.coma.Coma` with :math:`\alpha = 1 - \beta`.

    Source: Kleiman et al. 2025, "Soup to go: mitigating forgetting during continual learning with model averaging"
    (arXiv 2501.05559).
    """

    Options = SfaOptions
    title = "SFA"
    paper = "Kleiman 2025, arXiv 2501.05559"
    idea = "Several times within a task, average the weights with those that the task started from."
    supports_distributed = True

    _averaging: StartAveraging | None = None

    def callbacks(self, context: TaskContext) -> list[TrainerCallback]:
        from merganser.training.start_averaging import StartAveraging, average_steps

        self._averaging = None
        steps = average_steps(context.steps, self.options.p)
        if not self._averages(context) or not steps:
            return []
        self._averaging = StartAveraging(steps, self.options.beta, self.records)
        return [self._averaging]

    def _averages(self, context: TaskContext) -> bool:
        return context.index > 1 or self.options.merge_first

    def task_state(self) -> TaskState:
        return TaskState() if self._averaging is None else self._averaging.task_state()

    def load_task_state(self, state: TaskState) -> None:
        if self._averaging is not None:
            self._averaging.load_task_state(state)

    def after_task(self, context: TaskContext) -> None:
        if self._averages(context):
            merge_with_start(self.records, context, 1 - self.options.beta)
