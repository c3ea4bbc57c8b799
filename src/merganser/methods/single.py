"""Single-task training: one fresh model per task. The reference of forward transfer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from merganser.methods.base import Method, MethodOptions


class SingleOptions(MethodOptions):
    """One fresh adapter (or model) per task, trained on that task alone."""

    name: Literal["single"] = "single"


class Single(Method[SingleOptions]):
    """Train separate weights per task: nothing is shared or forgotten, and storage grows with every task."""

    Options = SingleOptions
    title = "Single-task training"
    paper = "reference for forward transfer"
    idea = "Train a fresh adapter on each task alone and keep them all."
    stores = "the weights of every task (T P) and the pretrained weights (P)"
    grows = True
    start = "pretrained"
    per_task_models = True
    supports_distributed = True

    def answered_by(self, learned: Mapping[str, int]) -> dict[str, int]:
        return dict(learned)
