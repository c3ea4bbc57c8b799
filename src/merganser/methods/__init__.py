"""Continual-learning methods, one file each. Adding one is a file and an entry in :data:`BUILT_IN`."""

from __future__ import annotations

from typing import Any

from merganser.methods.aim import Aim
from merganser.methods.base import Method, MethodOptions, TaskContext
from merganser.methods.became import Became
from merganser.methods.cofima import Cofima
from merganser.methods.coma import Coma
from merganser.methods.ewc import Ewc
from merganser.methods.forever import Forever
from merganser.methods.joint import Joint
from merganser.methods.kmerge import KMerge
from merganser.methods.lwf import Lwf
from merganser.methods.magmax import MagMax
from merganser.methods.migu import Migu
from merganser.methods.olora import OLora
from merganser.methods.opcm import Opcm
from merganser.methods.pam import Pam
from merganser.methods.pm import Pm
from merganser.methods.replay import Replay
from merganser.methods.running_average import RunningAverage
from merganser.methods.sequential import Sequential
from merganser.methods.sfa import Sfa
from merganser.methods.shared.method_table import MethodTable
from merganser.methods.single import Single
from merganser.methods.slao import Slao
from merganser.methods.sure import Sure
from merganser.methods.tasl import Tasl
from merganser.methods.trm import Trm
from merganser.methods.tunable_magmax import TunableMagMax

BUILT_IN: dict[str, type[Method[Any]]] = {
    "aim": Aim,
    "replay": Replay,
    "forever": Forever,
    "sure": Sure,
    "trm": Trm,
    "pam": Pam,
    "tasl": Tasl,
    "slao": Slao,
    "kmerge": KMerge,
    "magmax": MagMax,
    "tunable_magmax": TunableMagMax,
    "coma": Coma,
    "cofima": Cofima,
    "sfa": Sfa,
    "running_average": RunningAverage,
    "opcm": Opcm,
    "pm": Pm,
    "became": Became,
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
    """Create the method that these options select."""
    return METHODS[options.name](options)


__all__ = ["BUILT_IN", "METHODS", "Method", "MethodOptions", "TaskContext", "make_method"]
