"""Grids of options: lists of values in the places of values, and their combinations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from merganser.config import RunConfig, known_keys
from merganser.errors import InputError, nearest, short
from merganser.methods import METHODS
from merganser.study.options import SECTIONS

Path = tuple[str, ...]
"""Keys from the top of a run's file to an option."""

Point = dict[Path, Any]
"""A value for every option of a grid."""


def axes(grid: Mapping[str, Any], where: str) -> dict[Path, list[Any]]:
    """Return option -> values of a grid.

    Raises:
        InputError: something else than a list stands in the place of a value, a list is empty, a value stands twice, or
            a section is none of a run's file.
    """
    values_of: dict[Path, list[Any]] = {}
    _collect(grid, (), values_of, where)
    for path in values_of:
        if path[0] not in (*SECTIONS, "method"):
            known = ("method", *SECTIONS)
            hint = nearest(path[0], known) or f"Sections: {', '.join(known)}."
            raise InputError(f"{where}.{'.'.join(path)}: '{path[0]}' is no section of a run's file.", hint)
    return values_of


def _collect(value: Mapping[str, Any], above: Path, values_of: dict[Path, list[Any]], where: str) -> None:
    for key, inner in value.items():
        path = (*above, str(key))
        at = f"{where}.{'.'.join(path)}"
        if isinstance(inner, Mapping):
            _collect(inner, path, values_of, where)
            continue
        if len(path) == 1:
            raise InputError(
                f"{at}: a section is needed (got {short(inner)}).", f"For instance {key}: {{batch: [8, 16]}}."
            )
        if not isinstance(inner, list):
            raise InputError(
                f"{at}: a list of values is needed (got {short(inner)}).", f"Write [{inner}] for one value."
            )
        if not inner:
            raise InputError(f"{at}: the list is empty, so the grid has 0 cells.", "Give at least one value.")
        if any(value in inner[:number] for number, value in enumerate(inner)):
            raise InputError(f"{at}: a value stands twice.", "Give each value once.")
        values_of[path] = inner


def size(grid: Mapping[Path, Sequence[Any]]) -> int:
    """Return the number of combinations."""
    return math.prod(map(len, grid.values()))


def points(grid: Mapping[Path, Sequence[Any]]) -> Iterator[Point]:
    """Yield all combinations, the last option changing first."""
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def short_keys(paths: Collection[Path]) -> dict[Path, str]:
    """Return the last key of each option, or all its keys where that is another's too."""
    last = [path[-1] for path in paths]
    return {path: path[-1] if last.count(path[-1]) == 1 else ".".join(path) for path in paths}


def with_point(values: Mapping[str, Any], point: Point) -> dict[str, Any]:
    """Return the values of a run's file with those of a point of the grid in their places."""
    result = dict(values)
    for path, value in point.items():
        inner = result
        for key in path[:-1]:
            below = inner.get(key)
            inner[key] = dict(below) if isinstance(below, Mapping) else {}
            inner = inner[key]
        inner[path[-1]] = value
    return result


def of_method(grid: Mapping[Path, list[Any]], method: str) -> dict[Path, list[Any]]:
    """Return those axes of the grid for all methods that change what a method does.

    Its own options, the memory if it has one of a size that is chosen, and all other sections.
    """
    return {path: values for path, values in grid.items() if _applies(path, method)}


def _applies(path: Path, method: str) -> bool:
    if method not in METHODS:
        return path[0] != "method"
    if path[0] == "memory":
        return METHODS[method].uses_memory and not METHODS[method].full_memory
    return path[0] != "method" or path[1] in METHODS[method].Options.model_fields


def check_own(grid: Mapping[Path, list[Any]], method: str, where: str) -> None:
    """Refuse the memory in the grid of a method that has none: its cells would all be the same.

    Raises:
        InputError: naming the option.
    """
    for path in grid:
        if path[0] == "memory" and not _applies(path, method):
            raise InputError(
                f"{where}.{'.'.join(path)}: '{method}' {_memory_of(method)}, so that all its cells would be the same.",
                "Leave it out of this grid.",
            )


def _memory_of(method: str) -> str:
    return "keeps all training texts" if METHODS[method].full_memory else "has no memory"


def check_shared(grid: Mapping[Path, list[Any]], methods: Sequence[str], where: str) -> None:
    """Refuse an option in the grid for all methods that changes nothing in any of them.

    Raises:
        InputError: an option of ``method``, with the nearest option that one of them has; or one of ``memory``, and
            none of them has a memory of a size that is chosen.
    """
    names = [name for name in methods if name in METHODS]
    for path in grid:
        if path[0] not in ("method", "memory") or not names or any(_applies(path, name) for name in names):
            continue
        at = f"{where}.{'.'.join(path)}"
        if path[0] == "memory":
            given = ", ".join(f"'{name}' {_memory_of(name)}" for name in dict.fromkeys(names))
            raise InputError(f"{at}: no method of the study has a memory to vary: {given}.", "Leave it out.")
        known = sorted({key for name in names for key in known_keys(RunConfig, ("method",), ("method", name))})
        hint = nearest(path[1], known) or f"Their options: {', '.join(known)}."
        raise InputError(f"{at}: no method of the study has the option '{path[1]}'.", hint)
