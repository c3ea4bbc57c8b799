"""Tunable MagMax: MagMax in which each task supplies a chosen share of the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from merganser.methods.base import Method, TaskContext
from merganser.methods.shared.merge_records import record_merge, timed_merge
from merganser.methods.shared.method_state import read_weights, write_weights
from merganser.methods.shared.preference_options import PreferenceOptions
from merganser.training.determinism import derive_seed

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import TrainerCallback

    from merganser.weights import Weights

FEATURES = "features.safetensors"


class TunableMagMaxOptions(PreferenceOptions):
    """Tunable MagMax: MagMax with a preference for each task."""

    name: Literal["tunable_magmax"] = "tunable_magmax"
    scale: float = Field(0.5, ge=0, allow_inf_nan=False, description="factor on the merged update when it is deployed")


class TunableMagMax(Method[TunableMagMaxOptions]):
    r"""Deploy :math:`\theta_0 + \lambda \tau^*`, where task i supplies exactly the share :math:`w_i` of the entries of
    each tensor (:func:`merganser.merging.tunable_magmax.tunable_magmax`).

    As with MagMax each task is trained from the weights of the one before. The task vectors of all tasks are read
    from the tasks' stored weights.

    Source: Hiroshima et al. 2026, "Tunable MAGMAX: Preference-Aware Model Merging for Continual Learning"
    (arXiv 2605.20803).
    """

    Options = TunableMagMaxOptions
    title = "Tunable MagMax"
    paper = "Hiroshima 2026, arXiv 2605.20803"
    idea = "MagMax in which a preference sets the share of the merged update's entries per task."
    stores = "every task's own weights (T P), the merged and the pretrained ones (2 P)"
    grows = True
    start = "trained"
    reads_every_trained = True

    def __init__(self, options: TunableMagMaxOptions) -> None:
        super().__init__(options)
        self._features: dict[str, Tensor] = {}
        self._earlier = 0

    def check_tasks(self, names: Sequence[str], whole: bool = False) -> str | None:
        return self.options.check(names, whole)

    def callbacks(self, context: TaskContext) -> list[TrainerCallback]:
        from merganser.methods.shared.task_preferences import check_labels

        if self.options.preference == "label_overlap":
            check_labels(context.specs())
        return []

    def after_task(self, context: TaskContext) -> None:
        from merganser.merging.tunable_magmax import tunable_magmax
        from merganser.weights import Weights

        current, origin, count = Weights.of(context.backbone.module), context.pretrained(), context.index
        trained = current.snapshot()
        preference = self._preference(context, current, origin)
        models = [context.trained(row) for row in range(1, count)] + [trained]
        scale, seed = self.options.scale, derive_seed(context.seed, "tunable_magmax")
        with timed_merge(self.records):
            for name, value in current.items():
                tensors = [model[name] for model in models]
                value.copy_(
                    tunable_magmax(tensors, origin[name], weights=preference, scale=scale, seed=seed, name=name)
                )
        self._earlier = (count - 1) * trained.nbytes
        share = preference[-1] / math.fsum(preference)
        record_merge(
            self.records,
            context,
            trained=trained,
            before=context.before(),
            weight_new=scale * share,
            weight_old=scale * (1 - share),
            start=origin if count == 1 else models[-2],
        )

    def _preference(self, context: TaskContext, current: Weights, origin: Weights) -> Sequence[float]:
        """Compute one number per task so far, in the order of learning."""
        from merganser.methods.shared.task_features import pretrained_feature
        from merganser.methods.shared.task_preferences import by_label_overlap, by_similarity, wanted_tasks

        preference, specs = self.options.preference, context.specs()
        if isinstance(preference, list):
            return preference[: context.index]
        if preference == "uniform":
            return [1.0] * context.index
        wanted = wanted_tasks(self.options.wanted, specs)
        if preference == "label_overlap":
            return by_label_overlap({task: spec.labels or () for task, spec in specs.items()}, wanted)
        self._features = {**self._features, context.task: pretrained_feature(context, current, origin)}
        return by_similarity({task: self._features[task] for task in specs}, wanted, self.options.sharpness)

    def keeps_pretrained(self, lora: bool) -> bool:
        return True

    def save(self, folder: Path) -> None:
        if self._features:
            write_weights(folder / FEATURES, self._features)

    def load(self, folder: Path) -> None:
        if self.options.preference == "feature_similarity":
            self._features = dict(read_weights(folder / FEATURES))

    def bytes_kept(self) -> dict[str, int]:
        from merganser.weights import Weights

        sizes = {"earlier tasks' weights": self._earlier}
        return {**sizes, "features": Weights(self._features).nbytes} if self._features else sizes
