"""Orders of a stream's tasks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from merganser.errors import InputError, nearest
from merganser.options import first_problem, problem_text
from merganser.streams.builtin import BUILTIN
from merganser.streams.loading import load_stream
from merganser.streams.options import StreamOptions
from merganser.streams.sampling import generator
from merganser.streams.task import Task
from merganser.streams.watch import WatchedTask, load_watched
from merganser.study.options import Development, Order
from merganser.study.order_names import arrangement

GIVEN = "given"
"""Name of the order that a stream has by itself."""


@dataclass(frozen=True)
class OrderedStream:
    """A stream in one order.

    Attributes:
        stream: its name in the study.
        order: name of the order.
        options: of the stream in this order.
        base: of the stream as the study's file has it, where it has the same tasks: they are read once.
        development: development data in the place of the test data; ``None``: the test data.
    """

    stream: str
    order: str
    options: StreamOptions
    base: StreamOptions
    development: Development | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the options of the stream, whatever the order."""
        return hashlib.sha256(self.base.model_dump_json().encode()).hexdigest()

    @property
    def arrangement(self) -> str:
        """What distinguishes the order from others of the stream, as text; of a split one, the order of its classes."""
        return arrangement([], self.options.model_dump(mode="json"))

    def names(self) -> list[str] | None:
        """Return the names of the tasks in order; ``None`` where only the data tell."""
        return self.options.task_names()


def in_order(stream: str, base: StreamOptions, name: str, order: Order | None, where: str) -> OrderedStream:
    """Return a stream in an order.

    Raises:
        InputError: the order does not fit the stream: it names other tasks, or one of them twice or not at all.
    """
    if order is None:
        return OrderedStream(stream, name, base, base)
    at = f"{where}: orders.{name}"
    names = base.task_names()
    if isinstance(order, str):
        if base.name not in BUILTIN or order not in BUILTIN:
            hint = nearest(order, BUILTIN) or "Give the names of the tasks as a list."
            raise InputError(f"{at}: '{order}' is no built-in order for the stream '{stream}'.", hint)
        options = _changed(base, at, name=order)
        same = sorted(BUILTIN[order].tasks) == sorted(names or [])
        return OrderedStream(stream, name, options, base if same else options)
    if base.split is not None:
        split = {"order_seed": order, "order": None} if isinstance(order, int) else {"order": order, "order_seed": None}
        options = _changed(base, at, split=base.split.model_dump(exclude_unset=True) | split)
        return OrderedStream(stream, name, options, options)
    if names is None:
        raise InputError(f"{at}: the stream '{stream}' has one order only.", "Leave 'orders' out.")
    if isinstance(order, int):
        order = [names[i] for i in generator(order, "task order").permutation(len(names))]
    _check(order, names, stream, at)
    if base.tasks is not None:
        by_name = {task.name: task for task in base.tasks}
        options = base.model_copy(update={"tasks": [by_name[task] for task in order]})
    else:
        title = None if base.name in BUILTIN else base.name
        options = base.model_copy(update={"order": list(order), "name": title})
    return OrderedStream(stream, name, options, base)


def check_different(streams: Sequence[OrderedStream], arrangements: Sequence[str], where: str) -> None:
    """Refuse two orders of a stream that are the same one.

    Args:
        arrangements: what each order consists of.

    Raises:
        InputError: there are such.
    """
    first: dict[tuple[str, str], str] = {}
    for stream, made in zip(streams, arrangements, strict=True):
        other = first.setdefault((stream.stream, made), stream.order)
        if other != stream.order:
            raise InputError(
                f"{where}: orders: '{other}' and '{stream.order}' are the same order of the stream '{stream.stream}'.",
                "Keep one of them: counted twice, its runs would look like those of two independent orders.",
            )


def _check(order: Sequence[str], names: Sequence[str], stream: str, at: str) -> None:
    for task in order:
        if task not in names:
            hint = nearest(task, names) or f"Its tasks: {', '.join(names)}."
            raise InputError(f"{at}: '{task}' is no task of the stream '{stream}'.", hint)
    if len(set(order)) != len(order):
        raise InputError(f"{at}: a task stands twice.", "Name every task once.")
    if missing := [task for task in names if task not in order]:
        raise InputError(f"{at}: '{missing[0]}' is missing.", "Name every task of the stream once.")


def _changed(base: StreamOptions, at: str, **changes: object) -> StreamOptions:
    try:
        return StreamOptions.model_validate(base.model_dump(exclude_unset=True) | changes)
    except ValidationError as error:
        raise InputError(f"{at}: {problem_text(first_problem(error))}.", "Correct it there.") from error


def on_development(task: Task, development: Development | None) -> Task:
    """Return a task whose test examples are development data; without, as it is.

    Raises:
        InputError: it has no development examples, or too few to hold some out.
    """
    if development is None:
        return task
    if development == "dev":
        if not task.dev:
            raise InputError(
                f"Task '{task.name}' has no development texts to score on.",
                "Give it some ('dev'), or hold out a share of its training texts, such as development: 0.1.",
            )
        return replace(task, test=task.dev)
    count = max(1, round(development * len(task.train)))
    if count >= len(task.train):
        raise InputError(f"Task '{task.name}' has too few training texts to hold some out.", "Give it more of them.")
    held = set(generator(0, "development", task.name).permutation(len(task.train))[:count].tolist())
    return replace(
        task,
        train=[example for place, example in enumerate(task.train) if place not in held],
        test=[example for place, example in enumerate(task.train) if place in held],
    )


class Data:
    """The tasks of the streams of a study, each read once.

    Args:
        folder: that relative paths start from.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[str, dict[str, Task]] = {}
        self._watched: dict[str, list[WatchedTask]] = {}

    def tasks(self, stream: OrderedStream) -> list[Task]:
        """Return the tasks in order.

        Raises:
            InputError: the data are missing or malformed.
        """
        key = f"{stream.base.model_dump_json()} {stream.development}"
        if key not in self._read:
            tasks = load_stream(stream.base, self.folder).tasks
            self._read[key] = {task.name: on_development(task, stream.development) for task in tasks}
        read = self._read[key]
        names = stream.names()
        return list(read.values()) if names is None else [read[name] for name in names]

    def watched(self, stream: OrderedStream) -> list[WatchedTask]:
        """Return the tasks that are watched.

        Raises:
            InputError: as :meth:`tasks`.
        """
        key = stream.base.model_dump_json()
        if key not in self._watched:
            self._watched[key] = list(load_watched(stream.base, self.folder))
        return self._watched[key]

    def digests(self, stream: OrderedStream) -> dict[str, str]:
        """Return task -> SHA-256 of all that it has.

        Raises:
            InputError: as :meth:`tasks`.
        """
        return {task.name: task.fingerprint() for task in self.tasks(stream)}
