"""BECAME: gradient-projected training, then free training, then line search between the two results."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from merganser.methods.base import Method, TaskContext, TaskState
from merganser.methods.shared.fisher_options import FisherOptions
from merganser.methods.shared.merge_records import record_merge, timed_merge
from merganser.methods.shared.method_state import beside, read_weights, write_weights
from merganser.training.determinism import derive_seed

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import TrainerCallback

    from merganser.training.projection import GradientProjection
    from merganser.weights import Weights

PAST, BASES = "fisher.safetensors", "bases.safetensors"


class BecameOptions(FisherOptions):
    """BECAME: gradient projection, then free training, merged by a closed form."""

    name: Literal["became"] = "became"
    projected: float = Field(
        0.5, ge=0, le=1, description="share of a task's steps with projected gradients; they come first"
    )
    energy: float = Field(
        0.95, ge=0, le=1, description="share of the inputs' squared norm that a layer's protected directions hold"
    )
    basis_examples: int = Field(64, gt=0, description="training examples that the directions are found from")
    compat: Literal["reference"] | None = Field(
        None, description="reference: the merge leaves the drift of the projected stage out, as a digest of the paper"
    )


class Became(Method[BecameOptions]):
    r"""Train, from the second task on, with projected gradients to :math:`\theta_a`, then freely to
    :math:`\hat\theta`, and deploy :math:`(1 - l) \theta_a + l \hat\theta` with ``l`` from the Fisher information of
    all tasks (:func:`merganser.merging.line_search.two_stage_interpolation`).

    Source: Li et al. 2025, "BECAME: BayEsian Continual Learning with Adaptive Model MErging" (arXiv 2504.02666).
    """

    Options = BecameOptions
    title = "BECAME"
    paper = "Li 2025, ICML, arXiv 2504.02666"
    idea = "Train orthogonally to earlier inputs, then freely; merge the two where the summed losses are least."
    stores = (
        "the weights and the sum of all Fishers (2 P), and directions of each layer's inputs "
        "(at most width x width each)"
    )
    grows = True

    _past: Weights | None = None
    _projection: GradientProjection | None = None

    def __init__(self, options: BecameOptions) -> None:
        super().__init__(options)
        self._bases: dict[str, Tensor] = {}

    def begin_task(self) -> None:
        super().begin_task()
        self._projection = None

    def callbacks(self, context: TaskContext) -> list[TrainerCallback]:
        from merganser.training.projection import GradientProjection

        if self._past is None:
            return []
        steps = math.ceil(self.options.projected * context.steps)
        self._projection = GradientProjection(context.backbone.module, self._bases, steps)
        return [self._projection]

    def task_state(self) -> TaskState:
        return TaskState() if self._projection is None else self._projection.task_state()

    def load_task_state(self, state: TaskState) -> None:
        if self._projection is not None:
            self._projection.load_task_state(state)

    def after_task(self, context: TaskContext) -> None:
        from merganser.weights import Weights

        current = Weights.of(context.backbone.module)
        with timed_merge(self.records):
            information = self.options.estimate(context)
        if self._past is None:
            self._past = information
        else:
            past = beside(self._past, information)
            self._merge(context, current, past, information)
            self._past = past.combine_(1, [(1, information)])
        with timed_merge(self.records):
            self._extend(context)

    def _merge(self, context: TaskContext, current: Weights, past: Weights, information: Weights) -> None:
        from merganser.merging.line_search import two_stage_interpolation

        assert self._projection is not None
        assert self._projection.reached is not None
        before, projected, trained = context.before(), self._projection.reached, current.snapshot()
        drift = self.options.compat != "reference"
        with timed_merge(self.records):
            share = two_stage_interpolation(before, projected, trained, past, information, drift=drift)
            current.combine_(share, [(1 - share, projected)])
        record_merge(
            self.records,
            context,
            trained=trained,
            before=projected,
            weight_new=share,
            weight_old=1 - share,
            start=before,
        )

    def _extend(self, context: TaskContext) -> None:
        """Extend the bases by the layer inputs of this task in the merged model."""
        from merganser.training.projection import extend_bases

        self._bases = extend_bases(
            context.backbone.module,
            self._bases,
            context.features,
            context.backbone.collate,
            energy=self.options.energy,
            examples=self.options.basis_examples,
            seed=derive_seed(context.seed, "bases"),
        )

    def save(self, folder: Path) -> None:
        if self._past is not None:
            write_weights(folder / PAST, self._past)
            write_weights(folder / BASES, self._bases)

    def load(self, folder: Path) -> None:
        self._past = read_weights(folder / PAST)
        self._bases = dict(read_weights(folder / BASES))

    def bytes_kept(self) -> dict[str, int]:
        from merganser.weights import Weights

        if self._past is None:
            return {}
        return {"Fisher information": self._past.nbytes, "directions": Weights(self._bases).nbytes}
