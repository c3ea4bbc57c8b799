"""How a task of preferences is learned: the options of direct preference optimisation (DPO)."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from merganser.options import StrictOptions

DpoLoss = Literal["sigmoid", "sigmoid_norm"]
METRIC = "preference_accuracy"
"""Name of the score of a task of preferences: the share of pairs whose chosen answer is the likelier one."""


class DpoOptions(StrictOptions):
    """How a task of preferences is learned: direct preference optimisation (DPO)."""

    model_config = ConfigDict(frozen=True)

    beta: float = Field(
        default=0.1,
        gt=0,
        allow_inf_nan=False,
        description="how strongly the model is held near the reference, the weights at the start of the task",
    )
    loss: DpoLoss = Field(
        default="sigmoid",
        description="sigmoid: compares log-probabilities summed over the tokens of an answer; sigmoid_norm: their "
        "means, so that long answers weigh no more. The names are TRL's; the task's score compares the same",
    )

    @property
    def by_length(self) -> bool:
        """Whether log-probabilities are divided by the number of tokens of the answer."""
        return self.loss == "sigmoid_norm"
