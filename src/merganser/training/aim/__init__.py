"""AimMerging: the callback and its parts, from the decision to merge to its checkpoint."""

from merganser.training.aim.callback import AimMerging

__all__ = ["AimMerging"]
