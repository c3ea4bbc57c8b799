"""The cells of a study: a configuration of a run for every method, point of its grid, order and seed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from merganser.config import RunConfig, check_config, explain_options, read_description, with_paths
from merganser.errors import InputError, nearest
from merganser.methods import METHODS
from merganser.study import grids
from merganser.study.options import SECTIONS, StudyOptions, VariantOptions
from merganser.study.orders import GIVEN, OrderedStream, check_different, in_order

LONGEST_NAME = 120
"""Characters of a cell's name; longer ones end with a digest."""

MANY = 10_000
"""Cells from which on a person is asked first."""


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        name: of its run directory.
        method: name in the results.
        options: values of the grid, by dotted key.
        stream: in which order.
        seed: of every random choice.
        config: of its run.
        run: name of the cell whose run is this cell's: joint training reads all tasks at once, so that one run serves
            all orders. Mostly its own.
    """

    name: str
    method: str
    options: Mapping[str, Any]
    stream: OrderedStream
    seed: int
    config: RunConfig
    run: str

    @property
    def joint(self) -> bool:
        """Whether all tasks are learned at once."""
        return METHODS[self.config.method.name].joint


@dataclass(frozen=True)
class Study:
    """A study as its file describes it.

    Attributes:
        name: its title.
        where: the file, for messages.
        folder: that relative paths start from.
        cells: of its methods in order; those of one method, stream and order are next to each other.
        value: the study as it was read.
    """

    name: str
    where: str
    folder: Path
    options: StudyOptions
    cells: Sequence[Cell] = field(repr=False)
    value: Mapping[str, Any] = field(repr=False)

    @property
    def runs(self) -> list[Cell]:
        """The cells with a run of their own."""
        return [cell for cell in self.cells if cell.run == cell.name]

    def of_run(self, run: str) -> list[Cell]:
        """Return the cells that have this run, its own first."""
        return [cell for cell in self.cells if cell.run == run]

    def find(self, name: str) -> Cell:
        """Return a cell by its name.

        Raises:
            InputError: there is none.
        """
        for cell in self.cells:
            if cell.name == name:
                return cell
        names = [cell.name for cell in self.cells]
        raise InputError(f"There is no cell '{name}'.", nearest(name, names) or "List them with --print.")

    def only(self, part: int, parts: int) -> list[Cell]:
        """Return the runs of one of several slices of about equal sizes, the same on every machine."""
        return self.runs[part - 1 :: parts]


def load_study(path: Path, allow_many: bool = False) -> Study:
    """Read a study's YAML file.

    Raises:
        InputError: the file is missing or not YAML, or as :func:`make_study`.
    """
    return make_study(read_description(path, "study"), str(path), path.resolve().parent, allow_many)


def make_study(value: Any, where: str, folder: Path, allow_many: bool = False) -> Study:
    """Make the cells of a study.

    Args:
        value: as read from YAML or given from Python.
        where: a file name, for messages.
        folder: that relative paths start from.
        allow_many: :data:`MANY` cells and more are wanted.

    Raises:
        TooManyCells: there are, and they were not asked for.
        InputError: an unknown key (with the nearest known one), a wrong type, an impossible value, an option that no
            method has, an empty grid.
    """
    if not isinstance(value, Mapping):
        raise InputError(
            f"{where}: expected sections such as 'model:', 'stream:' and 'methods:'.", "See docs/study.md."
        )
    options = explain_options(StudyOptions, value, where)
    shared = grids.axes(options.grid, f"{where}: grid")
    variants = [_Variant.of(label, given, options, shared, where) for label, given in options.methods.items()]
    grids.check_shared(shared, [variant.name for variant in variants], f"{where}: grid")
    orders: Mapping[str, Any] = options.orders or {GIVEN: None}
    count = sum(grids.size(variant.axes) for variant in variants)
    count *= len(options.named_streams) * len(orders) * len(options.seeds)
    if count >= MANY and not allow_many:
        raise TooManyCells(count, where)
    streams = [
        replace(in_order(stream, base, name, order, where), development=options.development)
        for stream, base in options.named_streams.items()
        for name, order in orders.items()
    ]
    check_different(streams, [stream.arrangement for stream in streams], where)
    name = options.name or Path(where).stem
    cells = _sharing_runs(_cells(options, variants, streams, where, folder))
    names: dict[str, Cell] = {}
    for cell in cells:
        if cell.name in names:
            raise InputError(f"{where}: two cells have the name '{cell.name}'.", "Rename a method, stream or order.")
        names[cell.name] = cell
    return Study(name, where, folder, options, cells, value)


class TooManyCells(InputError):
    """A study of so many cells that it may be a mistake.

    Attributes:
        count: of cells.
    """

    def __init__(self, count: int, where: str) -> None:
        self.count = count
        super().__init__(
            f"{where}: the study has {count:,} cells.", "Shorten the lists of its grid, or confirm with --yes."
        )


@dataclass(frozen=True)
class _Variant:
    """A method of the study with the sections of its runs, and its grid."""

    label: str
    name: str
    values: dict[str, Any]
    axes: dict[grids.Path, list[Any]]

    @classmethod
    def of(
        cls,
        label: str,
        given: VariantOptions,
        options: StudyOptions,
        shared: Mapping[grids.Path, list[Any]],
        where: str,
    ) -> _Variant:
        method = label if given.method is None else given.method
        method = {"name": method} if isinstance(method, str) else dict(method)
        values: dict[str, Any] = {"method": method}
        for section in SECTIONS:
            values[section] = _over(getattr(options, section), getattr(given, section))
        name = str(method.get("name"))
        own_axes = grids.axes(given.grid, f"{where}: methods.{label}.grid")
        grids.check_own(own_axes, name, f"{where}: methods.{label}.grid")
        return cls(label, name, values, {**grids.of_method(shared, name), **own_axes})


def _over(section: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(section)
    for key, value in changes.items():
        below = result.get(key)
        result[key] = _over(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result


def _cells(
    options: StudyOptions, variants: Sequence[_Variant], streams: Sequence[OrderedStream], where: str, folder: Path
) -> Iterator[Cell]:
    for stream in streams:
        for variant in variants:
            keys = grids.short_keys(variant.axes)
            for point in grids.points(variant.axes):
                at = f"{where}: methods.{variant.label}"
                values = grids.with_point(variant.values, point)
                config = with_paths(check_config({k: v for k, v in values.items() if v}, at), folder)
                config = config.model_copy(update={"stream": stream.options})
                shown = [f"{keys[path]}={_text(value)}" for path, value in point.items()]
                for seed in options.seeds:
                    parts = [
                        *([stream.stream] if options.streams else []),
                        variant.label,
                        *shown,
                        *([stream.order] if options.orders else []),
                        f"s{seed}",
                    ]
                    chosen = {".".join(path): value for path, value in point.items()}
                    config = config.model_copy(update={"seed": seed})
                    name = _name(parts)
                    yield Cell(name, variant.label, chosen, stream, seed, config, run=name)


def _sharing_runs(cells: Iterator[Cell]) -> list[Cell]:
    """Return cells of which those of joint training on the same tasks have one run."""
    first: dict[str, str] = {}
    shared = []
    for cell in cells:
        if cell.joint:
            key = (cell.method, dict(cell.options), cell.seed, cell.stream.stream, cell.stream.base.model_dump_json())
            cell = replace(cell, run=first.setdefault(json.dumps(key, sort_keys=True), cell.name))
        shared.append(cell)
    return shared


def _text(value: Any) -> str:
    """Return a value for a name: as YAML has it, or a digest of what is no word or number."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float):
        return f"{value:g}" if float(f"{value:g}") == value else str(value)
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= 24 else f"{text[:15]}~{_digest(text)}"


def _name(parts: Sequence[str]) -> str:
    """Join parts to a name of a folder; what cannot stand there is replaced, and a digest keeps such names apart."""
    whole = ",".join(parts)
    plain = re.sub(r"[^A-Za-z0-9._=+,-]+", "-", whole).lstrip("-._=+,") or "cell"
    if plain != whole or len(plain) > LONGEST_NAME:
        plain = f"{plain[: LONGEST_NAME - 9]}-{_digest(whole)}"
    return plain


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
