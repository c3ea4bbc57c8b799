"""Seeded draws: the same texts for the same seed, whatever else is drawn before or beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from merganser.errors import InputError
from merganser.streams.task import Example


def generator(seed: int, *names: str) -> np.random.Generator:
    """A random generator of its own for a purpose, such as ``generator(seed, task, "train")``.

    Raises:
        InputError: a negative seed.
    """
    if seed < 0:
        raise InputError(f"Seed {seed} is negative.", "Use a whole number of 0 or more.")
    digest = hashlib.sha256("\0".join(names).encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "little")])


def spread(total: int, counts: Sequence[int], rng: np.random.Generator) -> list[int]:
    """Share ``total`` among groups as evenly as their sizes allow.

    No group gets more than it has; two groups that are not exhausted differ by at most one. Which groups get the
    remainder is drawn. Gives out ``min(total, sum(counts))`` in all.
    """
    given = [0] * len(counts)
    left = min(total, sum(counts))
    while left > 0:
        unfilled = [i for i, count in enumerate(counts) if given[i] < count]
        each = left // len(unfilled)
        if each == 0:
            for i in rng.permutation(unfilled)[:left]:
                given[int(i)] += 1
            break
        for i in unfilled:
            more = min(each, counts[i] - given[i])
            given[i] += more
            left -= more
    return given


def pick(items: Sequence[int], number: int, rng: np.random.Generator) -> list[int]:
    """``number`` different items, drawn uniformly, in the order in which they stand in ``items``."""
    chosen = rng.choice(len(items), size=number, replace=False)
    return [items[int(i)] for i in sorted(chosen)]


def positions_by_output(examples: Sequence[Example]) -> dict[str, list[int]]:
    """Output -> positions of the examples that have it; outputs in sorted order."""
    groups: dict[str, list[int]] = {}
    for position, example in enumerate(examples):
        groups.setdefault(example.output, []).append(position)
    return dict(sorted(groups.items()))


def draw_limited(
    examples: Sequence[Example], limit: int | None, rng: np.random.Generator, every_label: bool
) -> list[Example]:
    """At most ``limit`` examples, drawn uniformly without replacement, in file order (``None``: all of them).

    With ``every_label`` one example of each output is drawn first, so that a small training set still shows every
    label (as many labels as the limit allows).
    """
    if limit is None or limit >= len(examples):
        return list(examples)
    chosen: list[int] = []
    if every_label:
        firsts = [pick(group, 1, rng)[0] for group in positions_by_output(examples).values()]
        chosen = pick(firsts, min(limit, len(firsts)), rng)
    taken = set(chosen)
    rest = [position for position in range(len(examples)) if position not in taken]
    chosen += pick(rest, limit - len(chosen), rng)
    return [examples[position] for position in sorted(chosen)]
