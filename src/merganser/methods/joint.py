"""Joint training: all tasks at once. The upper bound, not a continual learner."""

from __future__ import annotations

from typing import Literal

from merganser.methods.base import Method, MethodOptions


class JointOptions(MethodOptions):
    """Multi-task training on all tasks at once, from the pretrained model."""

    name: Literal["joint"] = "joint"


class Joint(Method[JointOptions]):
    """Keep every training example; learn a later task together with all earlier ones, from the pretrained weights."""

    Options = JointOptions
    title = "Joint training"
    paper = "upper bound"
    idea = "Train once on the data of all tasks together, from the pretrained model."
    start = "pretrained"
    uses_memory = True
    full_memory = True
    joint = True
    supports_distributed = True
