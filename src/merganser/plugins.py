"""Objects that installed packages offer as entry points: methods and metrics."""

from __future__ import annotations

import sys
from functools import cache
from importlib.metadata import EntryPoint, entry_points


def offered(group: str) -> tuple[EntryPoint, ...]:
    """Return the entry points of a group, of the packages on Python's search path; nothing of them is imported."""
    return _offered(group, tuple(sys.path))


@cache
def _offered(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Find entry points; this reads the metadata of every package, so that it is done once per search path."""
    return tuple(entry_points(group=group))


def package_of(point: EntryPoint) -> str:
    """Return who offers an entry point, for a message."""
    return f"the package '{point.dist.name}'" if point.dist is not None else f"'{point.value}'"
