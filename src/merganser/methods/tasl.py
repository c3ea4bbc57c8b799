"""TaSL: whole matrices are kept, replaced or averaged by their importance to the old tasks and to the new one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from merganser.methods.base import Method, MethodOptions, TaskContext, TaskState
from merganser.methods.shared.merge_records import record_merge, timed_merge
from merganser.methods.shared.method_state import read_weights, write_weights

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import TrainerCallback

    from merganser.weights import Weights

KEPT = "importance.safetensors"


class TaslOptions(MethodOptions):
    """TaSL: skill localisation and consolidation."""

    name: Literal["tasl"] = "tasl"
    smoothing: float = Field(0.85, ge=0, lt=1, description="decay of the moving average of |weight x gradient|")
    uncertainty: float = Field(0.85, ge=0, lt=1, description="decay of the moving average of its deviation")
    important: float = Field(0.2, gt=0, le=1, description="share of the matrices that count as important to a task")
    memory: float = Field(0.7, ge=0, le=1, description="weight of the earlier tasks in the accumulated importance")
    weight_shared: float = Field(0.3, ge=0, le=1, description="weight of the new task where both are important")
    weight_neither: float = Field(0.5, ge=0, le=1, description="weight of the new task where neither is")


class Tasl(Method[TaslOptions]):
    r"""Measure each matrix's importance while training; after the task merge by it
    (:func:`merganser.merging.matrix_importance.weights_of_new`).

    For a weight w with gradient g at a step, :math:`\bar I` is the moving average of :math:`I = |w g|` and
    :math:`\bar U` that of :math:`|I - \bar I|`. A matrix's importance to a task is the mean of :math:`\bar I \bar U`
    over its entries at the task's last step. Over the tasks it accumulates as :math:`\beta N(past) + (1 - \beta)
    N(new)`, where N rescales the matrices' numbers to [0, 1].

    Source: Feng et al. 2024, "TaSL: Continual Dialog State Tracking via Task Skill Localization and Consolidation"
    (arXiv 2408.09857).
    """

    Options = TaslOptions
    title = "TaSL"
    paper = "Feng 2024, ACL, arXiv 2408.09857"
    idea = "Keep matrices important to old tasks, replace those important to the new one, average the others."
    stores = "the weights (P) and one number per matrix"

    def __init__(self, options: TaslOptions) -> None:
        super().__init__(options)
        self.importance: dict[str, float] = {}
        """Accumulated importance of each matrix to the tasks so far, in [0, 1]."""
        self._before: Weights | None = None
        self._mean: dict[str, Tensor] = {}
        self._deviation: dict[str, Tensor] = {}

    def begin_task(self) -> None:
        super().begin_task()
        self._before, self._mean, self._deviation = None, {}, {}

    def callbacks(self, context: TaskContext) -> list[TrainerCallback]:
        from transformers import TrainerCallback

        from merganser.weights import Weights

        method, module = self, context.backbone.module
        self._before = Weights.of(module).snapshot()

        class Watching(TrainerCallback):
            def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                method.observe(
                    {
                        name: (parameter.detach() * parameter.grad).abs()
                        for name, parameter in module.named_parameters()
                        if parameter.grad is not None
                    }
                )

        return [Watching()]

    def observe(self, sensitivity: Mapping[str, Tensor]) -> None:
        """Update the moving averages with one step's ``|w g|``, name -> tensor."""
        first, second = self.options.smoothing, self.options.uncertainty
        for name, now in sensitivity.items():
            if name not in self._mean:
                self._mean[name], self._deviation[name] = now * 0, now * 0
            mean, deviation = self._mean[name], self._deviation[name]
            mean.mul_(first).add_(now, alpha=1 - first)
            deviation.mul_(second).add_((now - mean).abs(), alpha=1 - second)

    def scores(self) -> dict[str, float]:
        """Compute the importance of each observed matrix to the task so far, not rescaled."""
        return {name: float((mean * self._deviation[name]).mean()) for name, mean in self._mean.items()}

    def after_task(self, context: TaskContext) -> None:
        from merganser.merging.matrix_importance import rescale, weights_of_new
        from merganser.weights import Weights

        assert self._before is not None
        current, options = Weights.of(context.backbone.module), self.options
        scores = self.scores()
        now = rescale({name: scores.get(name, 0.0) for name in current})
        if not self.importance:
            self.importance = now
            return
        new = weights_of_new(
            now, self.importance, options.important, shared=options.weight_shared, neither=options.weight_neither
        )
        mean = sum(new[name] * value.numel() for name, value in current.items()) / current.numel
        record_merge(self.records, context, trained=current, before=self._before, weight_new=mean, weight_old=1 - mean)
        with timed_merge(self.records):
            for name, value in current.items():
                value.mul_(new[name]).add_(self._before[name], alpha=1 - new[name])
        past = rescale(self.importance)
        self.importance = {n: options.memory * past[n] + (1 - options.memory) * now[n] for n in now}

    def task_state(self) -> TaskState:
        tensors = {f"mean:{name}": tensor for name, tensor in self._mean.items()}
        tensors |= {f"deviation:{name}": tensor for name, tensor in self._deviation.items()}
        return TaskState(tensors=tensors)

    def load_task_state(self, state: TaskState) -> None:
        self._mean, self._deviation = (
            {name.removeprefix(kind): value for name, value in state.tensors.items() if name.startswith(kind)}
            for kind in ("mean:", "deviation:")
        )

    def save(self, folder: Path) -> None:
        import torch

        numbers = {name: torch.tensor(value, dtype=torch.float64) for name, value in self.importance.items()}
        write_weights(folder / KEPT, numbers)

    def load(self, folder: Path) -> None:
        self.importance = {name: float(value) for name, value in read_weights(folder / KEPT).items()}

    def bytes_kept(self) -> dict[str, int]:
        return {"importance": 8 * len(self.importance)}
