"""Options of the methods that weight parameters by their diagonal Fisher information."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from merganser.methods.base import MethodOptions, TaskContext
from merganser.training.determinism import derive_seed

if TYPE_CHECKING:
    from merganser.weights import Weights


class FisherOptions(MethodOptions):
    """Estimation of the Fisher information after a task."""

    fisher: Literal["empirical", "true"] = Field(
        "empirical", description="gradients for the answers of the data, or for answers drawn from the model"
    )
    fisher_examples: int | None = Field(
        512, gt=0, description="training examples that the Fisher information is estimated on; null: all"
    )
    fisher_batch: int = Field(
        1, gt=0, description="examples per backward pass of the estimate; 1 is exact, more is an approximation"
    )

    def estimate(self, context: TaskContext) -> Weights:
        """Estimate the diagonal Fisher information of the current model on the task's training examples."""
        from merganser.training.fisher import diagonal_fisher

        return diagonal_fisher(
            context.backbone.module,
            context.features,
            context.backbone.collate,
            batch=self.fisher_batch,
            examples=self.fisher_examples,
            seed=derive_seed(context.seed, "fisher"),
            kind=self.fisher,
        )
