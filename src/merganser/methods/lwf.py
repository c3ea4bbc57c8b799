"""LwF: distil from the model before the task, on the new task's inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import Field

from merganser.methods.base import Method, TaskContext
from merganser.methods.shared.start_merge import FinishOptions

if TYPE_CHECKING:
    from torch import Tensor, nn

    from merganser.models.matcher import LabelMatcher
    from merganser.training.trainer import Penalty


class LwfOptions(FinishOptions):
    """Learning without forgetting: distillation from the model before the task."""

    name: Literal["lwf"] = "lwf"
    weight: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="weight of the distillation loss added to the loss"
    )
    temperature: float = Field(
        2.0, gt=0, allow_inf_nan=False, description="logits are divided by it, which gives unlikely answers more weight"
    )
    temperature_squared: bool = Field(
        False, description="multiply the distillation loss by the squared temperature, as for knowledge distillation"
    )

    def factor(self) -> float:
        """Return the factor on ``distillation``, which has the squared temperature in it."""
        return self.weight if self.temperature_squared else self.weight / self.temperature**2


class Lwf(Method[LwfOptions]):
    """Add to the loss the divergence of the model's answers from those of the model before the task.

    Models that write: the distribution of the next token at every position of the answer. Matchers: the distribution
    over the labels of each earlier task, summed over those tasks; where an answer is sought among all labels seen
    (``candidates: seen``), that over all earlier labels together. The old model is the same module, called with the
    weights that the task started from. Without ``temperature_squared`` the gradient is that of the paper's loss, the
    cross-entropy between the two softened distributions.

    Source: Li & Hoiem 2016, "Learning without Forgetting" (arXiv 1606.09282).
    """

    Options = LwfOptions
    title = "LwF"
    paper = "Li 2016, arXiv 1606.09282"
    no_preferences = (
        "it distils from the old model on correct answers; pairs are held near it by the loss of DPO already"
    )
    idea = "Distil from the old model on the new task's inputs, so that old answers stay as they were."

    def after_task(self, context: TaskContext) -> None:
        self.options.finish(self.records, context)

    def penalty(self, context: TaskContext) -> Penalty | None:
        from torch import no_grad
        from torch.func import functional_call

        from merganser.models.base import eval_mode
        from merganser.weights import Weights

        if not context.earlier:
            return None
        module = context.backbone.module
        before = dict(Weights.of(module).snapshot())
        from merganser.training.distillation import distillation

        factor, temperature = self.options.factor(), self.options.temperature

        def old_logits(inputs: Mapping[str, Any]) -> Tensor:
            with no_grad(), eval_mode(module):
                return functional_call(module, before, kwargs=dict(inputs))["logits"]

        def tokens(model: nn.Module, step: int, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> Tensor:
            from merganser.models.base import IGNORE_INDEX

            new, old, labels = outputs["logits"], old_logits(inputs), inputs["labels"]
            if context.backbone.kind == "causal":  # a position predicts the token after it
                new, old, labels = new[:, :-1], old[:, :-1], labels[:, 1:]
            answered = labels != IGNORE_INDEX
            return factor * distillation(new[answered], old[answered], temperature)

        if context.backbone.kind != "matcher":
            return tokens
        matcher = cast("LabelMatcher", context.backbone)
        tasks = [matcher.label_rows(spec) for spec in context.earlier.values()]
        if context.candidates.over_all_learned:
            tasks = [list(dict.fromkeys(row for task in tasks for row in task))]

        def labels(model: nn.Module, step: int, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> Tensor:
            batch = {name: value for name, value in inputs.items() if name != "labels"}
            rows = batch["candidates"].new_tensor([row for task in tasks for row in task])
            batch["candidates"] = rows.expand(len(batch["candidates"]), -1)
            sizes = [len(task) for task in tasks]
            pairs = zip(model(**batch)["logits"].split(sizes, 1), old_logits(batch).split(sizes, 1), strict=True)
            terms = [distillation(new, old, temperature) for new, old in pairs]
            return factor * sum(terms[1:], terms[0])

        return labels
