"""Merganser: one language model that keeps learning, task after task, without forgetting.

Names are imported when they are first used, so that ``import merganser`` costs nothing.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from merganser.control import ControllerConfig, Merge, MergeController
    from merganser.integrations.trl import loss_of
    from merganser.learner import Learner
    from merganser.metrics import ScoreMatrix
    from merganser.runs import read_run
    from merganser.streams.answers import AnswerSpec
    from merganser.streams.task import Example, Mix, Stream, Task
    from merganser.streams.watch import WatchedTask
    from merganser.study.study import study
    from merganser.training.aim.callback import AimMerging
    from merganser.training.aim.config import AimConfig
    from merganser.weights import Weights

if os.name != "posix":
    raise ImportError("Merganser runs on POSIX systems (Linux, macOS) only. On Windows, use it within WSL.")

_HOMES = {
    "AimConfig": "merganser.training.aim.config",
    "AimMerging": "merganser.training.aim.callback",
    "ControllerConfig": "merganser.control",
    "AnswerSpec": "merganser.streams.answers",
    "Example": "merganser.streams.task",
    "Learner": "merganser.learner",
    "Merge": "merganser.control",
    "MergeController": "merganser.control",
    "Mix": "merganser.streams.task",
    "ScoreMatrix": "merganser.metrics",
    "Stream": "merganser.streams.task",
    "Task": "merganser.streams.task",
    "WatchedTask": "merganser.streams.watch",
    "Weights": "merganser.weights",
    "loss_of": "merganser.integrations.trl",
    "read_run": "merganser.runs",
}

__all__ = [
    "AimConfig",
    "AimMerging",
    "AnswerSpec",
    "ControllerConfig",
    "Example",
    "Learner",
    "Merge",
    "MergeController",
    "Mix",
    "ScoreMatrix",
    "Stream",
    "Task",
    "WatchedTask",
    "Weights",
    "loss_of",
    "read_run",
    "study",
]


def __getattr__(name: str) -> Any:
    if name == "study":
        return importlib.import_module("merganser.study")  # a package that is called like a function
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'merganser' has no attribute '{name}'")
