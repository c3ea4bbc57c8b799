"""O-LoRA: every task learns new factors, in a subspace orthogonal to those of the tasks before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from merganser.methods.base import Method, MethodOptions, TaskContext
from merganser.training.determinism import derive_seed

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import TrainerCallback

    from merganser.training.trainer import Penalty


class OLoraOptions(MethodOptions):
    """O-LoRA: orthogonal adapters."""

    name: Literal["olora"] = "olora"
    weight: float = Field(
        0.5, ge=0, allow_inf_nan=False, description="weight of the overlap of subspaces added to the loss (lambda)"
    )


class OLora(Method[OLoraOptions]):
    r"""Freeze the factors of all earlier tasks, train new ones beside them, and deploy the sum of all.

    Minimises :math:`L + \lambda \sum_{layers} \sum_{ij} |(A_{old} A_{new}')_{ij}|`, with the rows of all earlier A in
    :math:`A_{old}`: the rows of A span what an adapter reads, and orthogonal ones do not disturb each other.

    Source: Wang et al. 2023, "Orthogonal Subspace Learning for Language Model Continual Learning" (arXiv 2310.14152).
    """

    Options = OLoraOptions
    title = "O-LoRA"
    paper = "Wang 2023, EMNLP, arXiv 2310.14152"
    idea = "Train new factors per task, orthogonal to those of all earlier tasks, which stay frozen beside them."
    stores = "the factors of every task (T p)"
    grows = True
    lora_only = True

    def callbacks(self, context: TaskContext) -> list[TrainerCallback]:
        if context.index > 1:
            context.backbone.stack_adapter(derive_seed(context.seed, "olora"))
        return []

    def penalty(self, context: TaskContext) -> Penalty | None:
        from merganser.models.stacking import lora_a_pairs

        pairs = lora_a_pairs(context.backbone.module)
        if not pairs:
            return None

        def overlap(model: nn.Module, step: int, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> Tensor:
            terms = [(old @ new.T).abs().sum() for old, new in pairs]
            return self.options.weight * sum(terms[1:], terms[0])

        return overlap
