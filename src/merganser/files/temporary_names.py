"""The names under which files and folders are written before they are complete."""

from __future__ import annotations

import itertools
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path

PARTIAL = ".partial"
"""Ending of temporary names; what a dead process left under such a name may be deleted."""

OLD = ".old"
"""Before :data:`PARTIAL`: a complete folder that was moved aside while another takes its place."""

_WRITER = re.compile(r"\.(?P<target>.+)\.(?P<host>[^.]+)-(?P<process>\d{1,9})-\d+(?P<old>\.old)?\.partial")

_NUMBERS = itertools.count()


@dataclass(frozen=True)
class Writer:
    """Who chose a unique temporary name, and for what.

    Attributes:
        target: the final name.
        is_here: whether it was a process of this host.
        process: its number.
        old: whether the name is that of a complete folder that was moved aside.
    """

    target: str
    is_here: bool
    process: int
    old: bool


def temporary_path(target: Path) -> Path:
    """Return the temporary name for a target that one process writes at a time, for instance under a lock."""
    return target.with_name(target.name + PARTIAL)


def unique_temporary_path(target: Path) -> Path:
    """Return a temporary name with host, process and a counter, for a target that several may write at once."""
    writer = f"{_host()}-{os.getpid()}-{next(_NUMBERS)}"
    return target.with_name(f".{target.name}.{writer}{PARTIAL}")


def path_of_old(temporary: Path) -> Path:
    """Return the temporary name of the folder that is moved aside for what has the name ``temporary``."""
    return temporary.with_name(temporary.name.removesuffix(PARTIAL) + OLD + PARTIAL)


def writer_of(path: Path) -> Writer | None:
    """Return who chose a name of :func:`unique_temporary_path`; ``None`` for any other name."""
    match = _WRITER.fullmatch(path.name)
    if match is None:
        return None
    return Writer(match["target"], match["host"] == _host(), int(match["process"]), match["old"] is not None)


def _host() -> str:
    return socket.gethostname().replace(".", "_")  # full stops separate the parts of a temporary name
