"""One name for every order of a stream's tasks, whatever the people who ran it have called it.

An order is what it consists of: two names of one list would be counted as two independent orders.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from merganser.streams.builtin import BUILTIN

_Key = tuple[str, str]
"""A stream, and the arrangement of its tasks."""


@dataclass(frozen=True)
class RecordedOrder:
    """The order of one cell.

    Attributes:
        stream: its name.
        name: of the order.
        arrangement: as :func:`arrangement`; ``None``: the cell does not tell, since its run serves all orders.
        place: where the name was given: elsewhere it may be that of another order.
    """

    stream: str
    name: str
    arrangement: str | None
    place: Hashable = None


def arrangement(tasks: Sequence[str], stream: Mapping[str, Any]) -> str:
    """Return what distinguishes an order from others of its stream, as text: its tasks, or the classes that are split.

    Args:
        tasks: that were learned in it; it may have been stopped before the last one.
        stream: that section of the run's file, as plain values.
    """
    names = _task_names(stream)
    if names is None or names[: len(tasks)] != list(tasks):
        names = list(tasks)
    return json.dumps([names, *split_order(stream)])


def split_order(stream: Mapping[str, Any]) -> list[Any]:
    """Return what decides the classes of a task where those of one data set are split: in another order, other ones."""
    split = stream.get("split") or {}
    return [split.get(key) for key in ("order", "order_seed")]


def _task_names(stream: Mapping[str, Any]) -> list[str] | None:
    """Return the tasks of a stream in order; ``None``: it does not name them."""
    if stream.get("tasks"):
        return [task["name"] for task in stream["tasks"]]
    if stream.get("order"):
        return list(stream["order"])
    return list(BUILTIN[stream["name"]].tasks) if stream.get("name") in BUILTIN else None


def names_of_orders(orders: Sequence[RecordedOrder]) -> list[str]:
    """Return a name for the order of each cell: one for equal orders, and different ones for different orders.

    Of several names, the one that most cells have is chosen; where two orders have one name, the second is numbered.
    """
    keys = _keys(orders)
    given: dict[_Key, Counter[str]] = {}
    for order, key in zip(orders, keys, strict=True):
        given.setdefault(key, Counter())[order.name] += 1
    favourites = {key: _favourites(names) for key, names in given.items()}
    chosen: dict[_Key, str] = {}
    taken: set[tuple[str, str]] = set()
    for key in sorted(given, key=lambda key: (-given[key].total(), natural(favourites[key][0]), key)):
        free = [name for name in favourites[key] if (key[0], name) not in taken]
        number = 2
        while not free:
            name = f"{favourites[key][0]} ({number})"
            free = [name] if (key[0], name) not in taken else []
            number += 1
        chosen[key] = free[0]
        taken.add((key[0], free[0]))
    return [chosen[key] for key in keys]


def _keys(orders: Sequence[RecordedOrder]) -> list[_Key]:
    """Return the order of each cell; where the cell does not tell, the one of that name beside it, or anywhere."""
    beside: dict[tuple[Hashable, ...], Counter[str]] = {}
    for order in orders:
        if order.arrangement is not None:
            for where in ((order.stream, order.name, order.place), (order.stream, order.name)):
                beside.setdefault(where, Counter())[order.arrangement] += 1
    keys = []
    for order in orders:
        arrangement = order.arrangement
        if arrangement is None:
            counts = beside.get((order.stream, order.name, order.place)) or beside.get((order.stream, order.name))
            arrangement = _favourites(counts)[0] if counts else f"called {order.name}"
        keys.append((order.stream, arrangement))
    return keys


def _favourites(counts: Counter[str]) -> list[str]:
    return sorted(counts, key=lambda text: (-counts[text], natural(text)))


def natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts names as people count: order-2 before order-10."""
    return [(int(part or 0), "") if number % 2 else (0, part) for number, part in enumerate(re.split(r"(\d+)", name))]
