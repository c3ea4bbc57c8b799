"""Perturb-and-Merge: perturbed training, then a merge at the minimum of the summed losses of all tasks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from merganser.methods.base import Method, TaskContext
from merganser.methods.shared.fisher_options import FisherOptions
from merganser.methods.shared.merge_records import record_merge, timed_merge
from merganser.methods.shared.method_state import beside, read_weights, write_weights
from merganser.training.determinism import derive_seed

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from merganser.weights import Weights

PAST, CENTRE = "fisher.safetensors", "centre.safetensors"


class PmOptions(FisherOptions):
    """Perturb-and-Merge: perturbed training, merged by a closed form."""

    name: Literal["pm"] = "pm"
    perturbation: float = Field(
        0.5, ge=0, allow_inf_nan=False, description="size of a perturbation, in task vectors; 0 switches it off"
    )
    probability: float = Field(
        1 / 3, ge=0, le=0.5, description="probability of a step perturbed forwards, and of one perturbed backwards"
    )


def draw_sign(seed: int, step: int, probability: float) -> int:
    """Draw the sign of an optimizer step's (from 0) perturbation: 1 or -1 with this probability each, else 0."""
    number = np.random.default_rng([seed, step]).random()
    return 1 if number < probability else -1 if number < 2 * probability else 0


class Pm(Method[PmOptions]):
    r"""Deploy :math:`m_t = m_{t-1} + a^* (\theta_t - m_{t-1})`, :math:`a^*` being the share of the way at which the
    sum of all tasks' losses, each a parabola from its diagonal Fisher information, is least
    (:func:`merganser.merging.line_search.optimal_interpolation`).

    A merge costs the new task about :math:`(1 - a)^2 \tau' H \tau / 2`, where :math:`\tau = \theta - m_{t-1}`. So while
    it is trained its steps take their gradients at :math:`\theta + s e \tau` with s = 1 or -1 with probability p each
    and 0 otherwise: in expectation the loss plus :math:`p e^2 \tau' H \tau`, for no further pass.

    Source: Qiu et al. 2025, "Train with Perturbation, Infer after Merging" (arXiv 2505.22389).
    """

    Options = PmOptions
    title = "Perturb-and-Merge"
    paper = "Qiu 2025, arXiv 2505.22389"
    idea = "Perturb training along the task vector; merge the fraction of it that minimises the losses of all tasks."
    stores = "the weights, the pretrained weights, the sum of all Fishers and the tasks' weights weighted by them (4 P)"

    _past: Weights | None = None
    _centre: Weights | None = None  # sum_i F_i (theta_i - theta_0)

    def callbacks(self, context: TaskContext) -> list[TrainerCallback]:
        from transformers import TrainerCallback

        from merganser.weights import Weights

        size, probability = self.options.perturbation, self.options.probability
        if size == 0 or probability == 0:
            return []
        weights = Weights.of(context.backbone.module)
        start, seed = weights.snapshot(), derive_seed(context.seed, "pm")
        exact = weights.snapshot()
        method = self

        class Perturbing(TrainerCallback):
            """Perturb the weights for a step's gradients; restore them bit for bit before the optimizer's update."""

            sign = 0

            def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                self.sign = draw_sign(seed, state.global_step, probability)
                if self.sign:
                    with timed_merge(method.records):
                        exact.copy_(weights)
                        share = self.sign * size
                        weights.combine_(1 + share, [(-share, start)])

            def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if self.sign:
                    with timed_merge(method.records):
                        weights.copy_(exact)

        return [Perturbing()]

    def after_task(self, context: TaskContext) -> None:
        from merganser.merging.line_search import optimal_interpolation
        from merganser.weights import Weights

        current, origin = Weights.of(context.backbone.module), context.pretrained()
        trained = current.snapshot()
        with timed_merge(self.records):
            information = self.options.estimate(context)
        new_centre = Weights({name: information[name] * (value - origin[name]) for name, value in trained.items()})
        if self._past is None or self._centre is None:
            self._past, self._centre = information, new_centre
            return
        past, centre = beside(self._past, information), beside(self._centre, new_centre)
        before = context.before()
        with timed_merge(self.records):
            share = optimal_interpolation(
                (
                    trained[name] - start,
                    past[name] * (start - origin[name]) - centre[name],
                    past[name],
                    information[name],
                )
                for name, start in before.items()
            )
            current.combine_(share, [(1 - share, before)])
            self._past = past.combine_(1, [(1, information)])
            self._centre = centre.combine_(1, [(1, new_centre)])
        record_merge(self.records, context, trained=trained, before=before, weight_new=share, weight_old=1 - share)

    def keeps_pretrained(self, lora: bool) -> bool:
        return True

    def save(self, folder: Path) -> None:
        if self._past is not None and self._centre is not None:
            write_weights(folder / PAST, self._past)
            write_weights(folder / CENTRE, self._centre)

    def load(self, folder: Path) -> None:
        self._past, self._centre = read_weights(folder / PAST), read_weights(folder / CENTRE)

    def bytes_kept(self) -> dict[str, int]:
        if self._past is None or self._centre is None:
            return {}
        return {"Fisher information": self._past.nbytes, "weighted weights": self._centre.nbytes}
