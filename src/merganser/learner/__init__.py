"""A run directory that learns one task after another."""

from merganser.learner.learner import Learner

__all__ = ["Learner"]
