"""Rules that merge the updates of AimMerging's two phases: steps on the new task, and rehearsal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from merganser.control import Merge
from merganser.merging.importance import importance_masks, merge_by_importance
from merganser.merging.trajectory import merge_two_phases
from merganser.training.aim.config import AimConfig
from merganser.training.aim.importance import Importance
from merganser.weights import Weights


@dataclass(frozen=True)
class Update:
    """Measures of the two updates of a merge.

    Attributes:
        weight_new, weight_old: their weights.
        norm_new, norm_old: their L2 norms; the second may be infinite or NaN.
        cosine: between them; ``None`` where one is zero or not finite.
        finite: whether all merged weights are finite.
    """

    weight_new: float
    weight_old: float
    norm_new: float
    norm_old: float
    cosine: float | None
    finite: bool


class FusionRule(Protocol):
    """Merges the updates of two phases; may observe every optimizer step of them."""

    def observe(self) -> None:
        """Observe one step; called after the optimizer's step, before its gradients are cleared."""

    def begin_rehearsal(self) -> None:
        """Switch from the phase on the new task to the rehearsal phase."""

    def fuse(self, decision: Merge, weights: Weights, start: Weights, after_new: Weights) -> tuple[float, float]:
        """Merge in place, and begin another phase on the new task.

        Args:
            decision: the controller's decision.
            weights: after the rehearsal; overwritten with the merged ones.
            start, after_new: before the steps on the new task, and after them.

        Returns:
            The weights of the new and of the old update; their means if they differ between parameters.
        """
        ...

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the state between two steps: name -> tensor."""
        ...

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore :meth:`state_tensors`; other names are left alone."""


class TrajectoryFusion:
    """Weights the updates as the controller decides."""

    def observe(self) -> None:
        """Do nothing: the controller's decision determines the merge."""

    def begin_rehearsal(self) -> None:
        """Do nothing."""

    def fuse(self, decision: Merge, weights: Weights, start: Weights, after_new: Weights) -> tuple[float, float]:
        """Merge by :func:`~merganser.merging.trajectory.merge_two_phases`."""
        merge_two_phases(weights, start, after_new, weight_new=decision.weight_new, weight_old=decision.weight_old)
        return decision.weight_new, decision.weight_old

    def state_tensors(self) -> dict[str, Tensor]:
        """Return no tensors: there is no state."""
        return {}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Do nothing: there is no state."""


class ImportanceFusion:
    """Merges every parameter towards the phase that it is important to (Recurrent-KIF, as its released program).

    A merge empties the averages of the phase on the new task; those of the rehearsals run on until the task ends.

    Args:
        model: whose trainable parameters are scored.
        important_share, smoothing: as in :class:`~merganser.training.aim.config.AimConfig`.
    """

    def __init__(self, model: nn.Module, important_share: float, smoothing: float) -> None:
        self._new = Importance(model, smoothing, "new task")
        self._old = Importance(model, smoothing, "rehearsal")
        self._current = self._new
        self._fraction = important_share

    def observe(self) -> None:
        """Update the scores of the current phase."""
        self._current.observe()

    def begin_rehearsal(self) -> None:
        """Continue the scores of the rehearsals before, which run through the whole task."""
        self._current = self._old

    def fuse(self, decision: Merge, weights: Weights, start: Weights, after_new: Weights) -> tuple[float, float]:
        """Merge by :func:`~merganser.merging.importance.merge_by_importance`."""
        important_new = importance_masks(self._new.scores(), self._fraction)
        important_old = importance_masks(self._old.scores(), self._fraction)
        weight_new = merge_by_importance(weights, start, after_new, important_new, important_old)
        self._new.reset()
        self._current = self._new
        return weight_new, 1.0 - weight_new

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the averages of both phases; states are saved only between merges."""
        return self._new.state_tensors() | self._old.state_tensors()

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the averages."""
        self._new.load_state_tensors(tensors)
        self._old.load_state_tensors(tensors)


class TowardsStart:
    """Goes part of the way back to the weights that the task started from after every merge of another rule.

    Args:
        rule: merges first.
        start: the weights that the task starts from; copied.
        weight: share of the way.
    """

    PREFIX = "task start/"

    def __init__(self, rule: FusionRule, start: Weights, weight: float) -> None:
        self._rule = rule
        self._start = start.snapshot()
        self._weight = weight

    def observe(self) -> None:
        """Let the rule observe."""
        self._rule.observe()

    def begin_rehearsal(self) -> None:
        """Begin the rule's rehearsal."""
        self._rule.begin_rehearsal()

    def fuse(self, decision: Merge, weights: Weights, start: Weights, after_new: Weights) -> tuple[float, float]:
        """Merge by the rule, then interpolate; the weights returned are the rule's."""
        merged = self._rule.fuse(decision, weights, start, after_new)
        weights.combine_(1 - self._weight, [(self._weight, self._start)])
        return merged

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the weights that the task started from, and the rule's state."""
        return {self.PREFIX + name: value for name, value in self._start.items()} | self._rule.state_tensors()

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore both."""
        self._start.copy_(self._start.like({name: tensors[self.PREFIX + name] for name in self._start}))
        self._rule.load_state_tensors(tensors)


def fusion_rule(config: AimConfig, model: nn.Module, start: Weights) -> FusionRule:
    """Return the rule that ``config.fusion`` names.

    Args:
        config: the settings.
        model: that is trained.
        start: the weights that the task starts from.
    """
    rule: FusionRule = TrajectoryFusion()
    if config.fusion == "importance_masks":
        rule = ImportanceFusion(model, config.important_share, config.importance_smoothing)
    return TowardsStart(rule, start, config.start_weight) if config.start_weight else rule
