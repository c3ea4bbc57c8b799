"""How the updates of AimMerging's two phases are merged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn

from merganser.control import Merge
from merganser.merging.importance import important, merge_by_importance
from merganser.merging.trajectory import merge_two_phases
from merganser.training.aim.config import AimConfig
from merganser.training.aim.importance import Importance
from merganser.weights import Weights


class FusionRule(Protocol):
    """Merges the updates of two phases; may observe every optimizer step of them."""

    def observe(self) -> None:
        """Take in one step: called when the gradients are complete, before the optimizer uses them."""

    def begin_rehearsal(self) -> None:
        """The steps on the new task are over, those on the memory begin."""

    def fuse(self, decision: Merge, weights: Weights, start: Weights, after_new: Weights) -> tuple[float, float]:
        """Merge in place; another phase on the new task begins.

        Args:
            weights: after the rehearsal; they become the merged ones.
            start, after_new: before the steps on the new task, and after them.

        Returns:
            The weights of the two updates, where they differ between parameters their means over all of them.
        """
        ...

    def state_tensors(self) -> dict[str, Tensor]:
        """What it holds between two steps, by name."""
        ...

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore :meth:`state_tensors`; other names are left alone."""


class TrajectoryFusion:
    """Weights the updates as the controller decides."""

    def observe(self) -> None:
        """Nothing: the decision has all that is needed."""

    def begin_rehearsal(self) -> None:
        """Nothing to note."""

    def fuse(self, decision: Merge, weights: Weights, start: Weights, after_new: Weights) -> tuple[float, float]:
        """Merge by :func:`~merganser.merging.trajectory.merge_two_phases`."""
        merge_two_phases(weights, start, after_new, weight_new=decision.weight_new, weight_old=decision.weight_old)
        return decision.weight_new, decision.weight_old

    def state_tensors(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Nothing."""


class ImportanceFusion:
    """Lets every parameter follow the phase that it is important to.

    Args:
        model: whose trainable parameters are scored.
        important_share, smoothing: as in :class:`~merganser.training.aim.config.AimConfig`.
    """

    def __init__(self, model: nn.Module, important_share: float, smoothing: float) -> None:
        self._importance = Importance(model, smoothing)
        self._share = important_share
        self._ended: list[Weights] = []  # scores of the phase on the new task, during a rehearsal

    def observe(self) -> None:
        """Update the scores of the current phase."""
        self._importance.observe()

    def begin_rehearsal(self) -> None:
        """Keep the scores of the phase on the new task."""
        self._ended.append(self._importance.end_phase())

    def fuse(self, decision: Merge, weights: Weights, start: Weights, after_new: Weights) -> tuple[float, float]:
        """Merge by :func:`~merganser.merging.importance.merge_by_importance`."""
        to_new, to_old = (important(each, self._share) for each in (self._ended.pop(), self._importance.end_phase()))
        share = merge_by_importance(weights, start, after_new, to_new, to_old)
        return share, 1.0 - share

    def state_tensors(self) -> dict[str, Tensor]:
        """The averages of the current phase: a state is taken between merges."""
        return self._importance.state_tensors()

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the averages."""
        self._importance.load_state_tensors(tensors)


def fusion_rule(config: AimConfig, model: nn.Module) -> FusionRule:
    """Return the rule that ``config.fusion`` names."""
    if config.fusion == "importance_masks":
        return ImportanceFusion(model, config.important_share, config.importance_smoothing)
    return TrajectoryFusion()
