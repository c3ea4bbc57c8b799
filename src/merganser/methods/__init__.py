"""Continual-learning methods, one file each. Adding one is a file and an entry in :data:`BUILT_IN`."""

from __future__ import annotations

from typing import Any

from merganser.methods.aim import Aim
from merganser.methods.base import Method, MethodOptions, TaskContext
from merganser.methods.ewc import Ewc
from merganser.methods.joint import Joint
from merganser.methods.kmerge import KMerge
from merganser.methods.lwf import Lwf
from merganser.methods.migu import Migu
from merganser.methods.olora import OLora
from merganser.methods.pam import Pam
from merganser.methods.replay import Replay
from merganser.methods.sequential import Sequential
from merganser.methods.single import Single
from merganser.methods.slao import Slao
from merganser.methods.table import MethodTable
from merganser.methods.tasl import Tasl
from merganser.methods.trm import Trm

BUILT_IN: dict[str, type[Method[Any]]] = {
    "aim": Aim,
    "trm": Trm,
    "replay": Replay,
    "pam": Pam,
    "tasl": Tasl,
    "slao": Slao,
    "kmerge": KMerge,
    "olora": OLora,
    "migu": Migu,
    "lwf": Lwf,
    "ewc": Ewc,
    "sequential": Sequential,
    "joint": Joint,
    "single": Single,
}
"""Name in a configuration -> method, of those that come with Merganser."""

METHODS = MethodTable(BUILT_IN)
"""Name in a configuration -> method; those of installed packages, too."""


def make_method(options: MethodOptions) -> Method[Any]:
    """The method that these options select."""
    return METHODS[options.name](options)


__all__ = ["BUILT_IN", "METHODS", "Method", "MethodOptions", "TaskContext", "make_method"]
