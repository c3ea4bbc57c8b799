"""The numbers of a merge by optimisation in a trajectory subspace; no torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from merganser.options import StrictOptions


class SubspaceOptions(StrictOptions):
    """How trained weights are merged into those the task started from."""

    weight: float = Field(0.3, ge=0, le=1, description="w: the merge starts as the interpolation at this weight")
    consistency: float = Field(
        2.0, ge=0, allow_inf_nan=False, description="lambda_c: weight of the consistency of earlier predictions"
    )
    temperature: float = Field(2.0, gt=0, allow_inf_nan=False, description="tau: softens the predictions compared")
    responsiveness: float = Field(
        0.1, ge=0, allow_inf_nan=False, description="lambda_g: weight of gradient responsiveness"
    )
    ridge: float = Field(
        0.5, ge=0, allow_inf_nan=False, description="lambda_r: weight of the squared distance from the interpolation"
    )
    kappa: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="responsiveness sought, as a multiple of that before the task"
    )
    measure: Literal["log_hinge", "literal", "off"] = Field(
        "log_hinge",
        description="responsiveness: log_hinge: energy of the Jacobian, only as far as it is lacking; literal: the "
        "squared gradient norm of the task's loss is to grow",
    )
    hvp: Literal["double_backward", "finite_difference"] = Field(
        "double_backward",
        description="how Hessian-vector products are computed: exactly, or by central differences, which need less "
        "memory and a model without ReLU (T5 has it)",
    )
    align: Literal["own", "loss", "kl", "none"] = Field(
        "own",
        description="alignment with the task: its loss among its own labels alone, which leaves the balance with "
        "earlier labels to consistency (models that write text: its loss); its loss; the divergence from the "
        "trained model; or nothing",
    )
    kept_labels: Literal["seen", "earlier"] = Field(
        "seen",
        description="matcher: consistency over all labels seen, the task's own included, or over those of earlier "
        "tasks alone, which does not see that everything drifts towards the new labels",
    )
    snapshots: int = Field(2, ge=0, description="J: points of the trajectory, evenly spaced, in the basis")
    pull_back: bool = Field(True, description="the direction back to the pretrained weights in the basis")
    augmentation: Literal["consistency", "adam", "gaussian", "none"] = Field(
        "consistency",
        description="one more direction: down the gradient of the consistency loss half-way to the trained weights, "
        "Adam's last, or random",
    )
    groups: Literal["block", "layer", "all"] = Field(
        "block", description="which weights share coefficients: those of a transformer block, of a layer, or all"
    )
    space: Literal["updates", "factors"] = Field(
        "updates", description="with LoRA: merge the updates BA, or the factors A and B each"
    )
    steps: int = Field(60, ge=0, description="steps of Adam on the coefficients; 0: plain interpolation")
    learning_rate: float = Field(0.03, gt=0, allow_inf_nan=False, description="of Adam on the coefficients")
    batch: int = Field(128, gt=0, description="examples of the task per step and per probe (or all, if fewer)")
    minimum: float = Field(-0.5, allow_inf_nan=False, description="least value of a coefficient")
    maximum: float = Field(1.5, allow_inf_nan=False, description="greatest value of a coefficient")
    merge_first: bool = Field(
        True,
        description="merge after the first task too, when there is nothing but the pretrained model to keep; false: "
        "the first task's weights are deployed as trained",
    )

    @model_validator(mode="after")
    def _start_is_allowed(self) -> SubspaceOptions:
        low, high = min(0.0, self.weight), max(0.0, self.weight)
        if not self.minimum <= low <= high <= self.maximum:
            raise ValueError(
                f"minimum and maximum are {self.minimum} and {self.maximum}; 0 and the weight {self.weight} must lie "
                "between them"
            )
        return self
