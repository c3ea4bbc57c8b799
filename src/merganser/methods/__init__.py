"""Continual-learning methods, one file each. Adding one is a file and an entry in :data:`METHODS`."""

from __future__ import annotations

from typing import Any

from merganser.methods.aim import Aim
from merganser.methods.base import Method, MethodOptions, TaskContext
from merganser.methods.joint import Joint
from merganser.methods.replay import Replay
from merganser.methods.sequential import Sequential
from merganser.methods.single import Single
from merganser.methods.trm import Trm

METHODS: dict[str, type[Method[Any]]] = {
    "aim": Aim,
    "trm": Trm,
    "replay": Replay,
    "sequential": Sequential,
    "joint": Joint,
    "single": Single,
}
"""Name in a configuration -> method."""


def make_method(options: MethodOptions) -> Method[Any]:
    """The method that these options select."""
    return METHODS[options.name](options)


__all__ = ["METHODS", "Method", "MethodOptions", "TaskContext", "make_method"]
