"""Running average: mean of all tasks' models, each trained from the previous mean."""

from __future__ import annotations

from typing import Literal

from merganser.methods.base import Method, MethodOptions, TaskContext
from merganser.methods.shared.merge_records import record_merge, timed_merge


class RunningAverageOptions(MethodOptions):
    """Running average: every task counts the same, each trained from the average so far."""

    name: Literal["running_average"] = "running_average"


class RunningAverage(Method[RunningAverageOptions]):
    r"""Deploy after task t :math:`m_t = m_{t-1} + (\theta_t - m_{t-1}) / t`, from which task t + 1 starts.

    Source: the running mean of Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better
    Generalization" (arXiv 1803.05407), over tasks in place of epochs.
    """

    Options = RunningAverageOptions
    title = "Running average"
    paper = "after Izmailov 2018, arXiv 1803.05407"
    idea = "Deploy the mean of the weights of all tasks; each task is trained from the mean before it."

    def after_task(self, context: TaskContext) -> None:
        from merganser.merging.ema import mean_step
        from merganser.weights import Weights

        if context.index == 1:
            return
        current, share = Weights.of(context.backbone.module), 1 / context.index
        before = context.before()
        record_merge(self.records, context, trained=current, before=before, weight_new=share, weight_old=1 - share)
        with timed_merge(self.records):
            for name, value in current.items():
                value.copy_(mean_step(before[name], value, count=context.index))
