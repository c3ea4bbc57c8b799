"""Tunable MagMax: MagMax in which each task supplies a chosen share of the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from merganser.methods.base import Method, MethodOptions, TaskContext
from merganser.methods.shared.merge_records import record_merge, timed_merge
from merganser.methods.shared.method_state import read_weights, write_weights
from merganser.training.determinism import derive_seed

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import TrainerCallback

    from merganser.weights import Weights

FEATURES = "features.safetensors"


class TunableMagMaxOptions(MethodOptions):
    """Tunable MagMax: MagMax with a preference for each task."""

    name: Literal["tunable_magmax"] = "tunable_magmax"
    scale: float = Field(0.5, ge=0, allow_inf_nan=False, description="factor on the merged update when it is deployed")
    preference: list[float] | Literal["uniform", "label_overlap", "feature_similarity"] = Field(
        "uniform",
        description="share of the weights that each task supplies: a number per task in the order of learning, the "
        "same for all, or by the similarity of its labels or inputs to those of the wanted tasks",
    )
    wanted: list[str] | None = Field(
        None, description="tasks that the merged model is meant for (label_overlap, feature_similarity); null: all"
    )

    @model_validator(mode="after")
    def _preferences(self) -> TunableMagMaxOptions:
        numbers = self.preference
        if isinstance(numbers, list) and not (
            numbers and numbers[0] > 0 and all(math.isfinite(number) and number >= 0 for number in numbers)
        ):
            raise ValueError("preference: give a number per task, not negative, and the first above 0")
        if self.wanted is not None and (not self.wanted or not isinstance(numbers, str) or numbers == "uniform"):
            raise ValueError("wanted: name tasks, with preference label_overlap or feature_similarity")
        return self


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

    def __init__(self, options: TunableMagMaxOptions) -> None:
        super().__init__(options)
        self._features: dict[str, Tensor] = {}
        self._earlier = 0

    def check_tasks(self, names: Sequence[str], whole: bool = False) -> str | None:
        from merganser.methods.shared.task_preferences import check_numbers, check_wanted

        remark = None
        if isinstance(self.options.preference, list):
            remark = check_numbers(self.options.preference, names, whole)
        if whole:
            check_wanted(self.options.wanted or (), names)
        return remark

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

    def _preference(self, context: TaskContext, current: Weights, origin: Weights) -> list[float]:
        """Compute one number per task so far, in the order of learning."""
        from merganser.methods.shared.task_preferences import by_label_overlap, by_similarity, mean_feature

        preference = self.options.preference
        if isinstance(preference, list):
            return preference[: context.index]
        if preference == "uniform":
            return [1.0] * context.index
        specs = context.specs()
        # Wanted tasks may be learned later; until one of them is, all learned tasks are wanted.
        wanted = [task for task in self.options.wanted or specs if task in specs] or list(specs)
        if preference == "label_overlap":
            return by_label_overlap({task: spec.labels or () for task, spec in specs.items()}, wanted)
        # The features of all tasks are computed by one model, the pretrained one.
        trained = current.snapshot()
        current.copy_(origin)
        self._features = {**self._features, context.task: mean_feature(context)}
        current.copy_(trained)
        return by_similarity({task: self._features[task] for task in specs}, wanted)

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
