"""CoMA: exponential moving average of the tasks' models."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from merganser.methods.base import Method, MethodOptions, TaskContext
from merganser.methods.shared.start_merge import merge_with_start


class ComaOptions(MethodOptions):
    """CoMA: exponential moving average over tasks, each trained from the average."""

    name: Literal["coma"] = "coma"
    alpha: float = Field(0.4, ge=0, le=1, description="weight of the new task's weights in the average")
    merge_first: bool = Field(False, description="also average the first task's weights with the pretrained ones")


class Coma(Method[ComaOptions]):
    r"""Deploy after task t > 1 :math:`m_t = (1 - \alpha) m_{t-1} + \alpha \theta_t`; :math:`m_1 = \theta_1`.

    With ``merge_first`` the first task's weights are averaged likewise, with the pretrained ones (not in the paper).

    Source: Marouf et al. 2024, "Weighted Ensemble Models Are Strong Continual Learners" (arXiv 2312.08977).
    """

    Options = ComaOptions
    title = "CoMA"
    paper = "Marouf 2024, arXiv 2312.08977"
    idea = "After each task, average its weights with those deployed before it, with one fixed weight."

    def after_task(self, context: TaskContext) -> None:
        if context.index > 1 or self.options.merge_first:
            merge_with_start(self.records, context, self.options.alpha)
