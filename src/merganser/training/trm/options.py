"""The options of a merge by optimisation in a trajectory subspace; no torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from merganser.options import StrictOptions


class TrmAblation(StrictOptions):
    """Parts of TRM switched off or replaced, to measure what they contribute."""

    align: Literal["own", "loss", "kl", "none"] = Field(
        "own",
        description="alignment with the task: own: its loss among its own labels alone, which leaves the balance with "
        "earlier labels to consistency (models that write text: its loss); loss: its loss; kl: the divergence from the "
        "trained model; none",
    )
    kept_labels: Literal["seen", "earlier"] = Field(
        "seen",
        description="matcher: consistency over all labels seen, the task's own included, or over those of earlier "
        "tasks alone, which does not register a drift of everything towards the new labels",
    )
    measure: Literal["log_hinge", "literal"] = Field(
        "log_hinge",
        description="responsiveness: log_hinge: penalises the energy of the Jacobian only as far as it is lacking; "
        "literal: maximises the squared gradient norm of the task's loss",
    )
    pull_back: bool = Field(True, description="the direction back to the pretrained weights is in the basis")
    augmentation: Literal["consistency", "adam", "gaussian", "none"] = Field(
        "consistency",
        description="one more direction in the basis: down the gradient of the consistency loss half-way to the "
        "trained weights, Adam's last step, or random",
    )
    merge_first: bool = Field(
        True,
        description="merge after the first task, too, with the pretrained weights; false: the first task's weights are "
        "deployed as trained",
    )


class SubspaceOptions(StrictOptions):
    """How trained weights are merged into those the task started from."""

    weight: float = Field(0.3, ge=0, le=1, description="w: the merge starts as the interpolation at this weight")
    consistency: float = Field(
        2.0, ge=0, allow_inf_nan=False, description="lambda_c: weight of the consistency of earlier predictions"
    )
    temperature: float = Field(2.0, gt=0, allow_inf_nan=False, description="tau: softens the predictions compared")
    responsiveness: float = Field(
        0.1, ge=0, allow_inf_nan=False, description="lambda_g: weight of gradient responsiveness; 0 saves half the time"
    )
    ridge: float = Field(
        0.5, ge=0, allow_inf_nan=False, description="lambda_r: weight of the squared distance from the interpolation"
    )
    kappa: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="responsiveness required, as a multiple of that before the task"
    )
    hvp: Literal["double_backward", "finite_difference"] = Field(
        "double_backward",
        description="how Hessian-vector products are computed: exactly, or by central differences, which need less "
        "memory and a model without ReLU (T5 has it)",
    )
    snapshots: int = Field(2, ge=0, description="J: points of the trajectory, evenly spaced, in the basis")
    groups: Literal["block", "layer", "all"] = Field(
        "block", description="which weights share coefficients: those of a transformer block, of a layer, or all"
    )
    space: Literal["updates", "factors"] = Field(
        "updates", description="with LoRA: merge the updates BA, or the factors A and B each"
    )
    steps: int = Field(60, ge=0, description="steps of Adam on the coefficients; 0: plain interpolation")
    learning_rate: float = Field(0.03, gt=0, allow_inf_nan=False, description="of Adam on the coefficients")
    batch: int = Field(128, gt=0, description="examples of the task per step and per probe (or all, if fewer)")
    minimum: float = Field(-0.5, allow_inf_nan=False, description="lower bound of a coefficient")
    maximum: float = Field(1.5, allow_inf_nan=False, description="upper bound of a coefficient")
    ablation: TrmAblation = Field(default_factory=TrmAblation, description="parts switched off or replaced")

    @model_validator(mode="after")
    def _start_is_allowed(self) -> SubspaceOptions:
        if not self.minimum <= 0.0 <= self.weight <= self.maximum:
            raise ValueError(
                f"minimum and maximum are {self.minimum} and {self.maximum}; 0 and the weight {self.weight} must lie "
                "between them"
            )
        return self
