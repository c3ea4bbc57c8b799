"""EWC: penalise changes of weights that earlier tasks depend on, quadratically."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from merganser.methods.base import Method, TaskContext
from merganser.methods.shared.method_state import beside, read_weights, write_weights
from merganser.methods.shared.start_merge import FinishOptions
from merganser.training.determinism import derive_seed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from merganser.training.trainer import Penalty
    from merganser.weights import Weights

KEPT = "fisher.safetensors"


class EwcOptions(FinishOptions):
    """Elastic weight consolidation with one running Fisher information."""

    name: Literal["ewc"] = "ewc"
    weight: float = Field(
        1000.0, ge=0, allow_inf_nan=False, description="weight of the penalty added to the loss (lambda)"
    )
    decay: float = Field(
        1.0, ge=0, le=1, description="factor on the information of earlier tasks at each new one; 1: their sum"
    )
    fisher: Literal["empirical", "true"] = Field(
        "empirical", description="information from the answers of the data, or from answers drawn from the model"
    )
    examples: int | None = Field(
        200, gt=0, description="examples of a task that its information is estimated on; null: all"
    )
    batch: int = Field(1, gt=0, description="examples per squared gradient; more is faster and less exact")


class Ewc(Method[EwcOptions]):
    r"""Minimise :math:`L + \frac\lambda 2 \sum_j F_j (\theta_j - \theta^*_j)^2`.

    :math:`\theta^*` are the weights after the last task and F the sum of all tasks' diagonal Fisher information, so
    that what is stored does not grow.

    Sources: Kirkpatrick et al. 2017 (arXiv 1612.00796); one running penalty: Schwarz et al. 2018, "Progress & Compress"
    (arXiv 1805.06370).
    """

    Options = EwcOptions
    title = "EWC"
    paper = "Kirkpatrick 2017, arXiv 1612.00796"
    idea = "Penalise changes of weights in proportion to their importance to old tasks (Fisher information)."
    stores = "the weights and their Fisher information (2 P)"

    fisher: Weights | None = None
    """Information of the tasks so far; ``None`` before the first."""

    def penalty(self, context: TaskContext) -> Penalty | None:
        from merganser.weights import Weights

        if self.fisher is None:
            return None
        module = context.backbone.module
        anchor = Weights.of(module).snapshot()
        fisher, weight = beside(self.fisher, anchor), self.options.weight

        def elastic(model: nn.Module, step: int, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> Tensor:
            terms = [
                (fisher[name] * (parameter - anchor[name]).square()).sum()
                for name, parameter in module.named_parameters()
                if name in fisher
            ]
            return 0.5 * weight * sum(terms[1:], terms[0])

        return elastic

    def after_task(self, context: TaskContext) -> None:
        from merganser.training.fisher import diagonal_fisher

        self.options.finish(self.records, context)
        started = time.perf_counter()
        information = diagonal_fisher(
            context.backbone.module,
            context.features,
            context.backbone.collate,
            batch=self.options.batch,
            examples=self.options.examples,
            seed=derive_seed(context.seed, "fisher"),
            kind=self.options.fisher,
        )
        if self.fisher is not None:
            information.combine_(1.0, [(self.options.decay, beside(self.fisher, information))])
        self.fisher = information
        self.records.cost.bookkeeping_seconds += time.perf_counter() - started

    def save(self, folder: Path) -> None:
        assert self.fisher is not None
        write_weights(folder / KEPT, self.fisher)

    def load(self, folder: Path) -> None:
        self.fisher = read_weights(folder / KEPT)

    def bytes_kept(self) -> dict[str, int]:
        return {"Fisher information": 0 if self.fisher is None else self.fisher.nbytes}
