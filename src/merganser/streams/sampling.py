"""Seeded sampling: the same texts for the same seed, independent of all other samples."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from merganser.errors import InputError
from merganser.streams.task import Example


def generator(seed: int, *names: str) -> np.random.Generator:
    """Create a separate random generator for a purpose, such as ``generator(seed, task, "train")``.

    Raises:
        InputError: a negative seed.
    """
    if seed < 0:
        raise InputError(f"Seed {seed} is negative.", "Use a whole number of 0 or more.")
    digest = hashlib.sha256("\0".join(names).encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "little")])


def spread(total: int, counts: Sequence[int], rng: np.random.Generator) -> list[int]:
    """Divide ``total`` among groups as evenly as their sizes allow.

    No number exceeds its group's count; two groups that are not exhausted differ by at most one. The groups that get
    the remainder are drawn. The numbers sum to ``min(total, sum(counts))``.
    """
    numbers = [0] * len(counts)
    left = min(total, sum(counts))
    while left > 0:
        unfilled = [i for i, count in enumerate(counts) if numbers[i] < count]
        equal = left // len(unfilled)
        if equal == 0:
            for i in rng.permutation(unfilled)[:left]:
                numbers[int(i)] += 1
            break
        for i in unfilled:
            more = min(equal, counts[i] - numbers[i])
            numbers[i] += more
            left -= more
    return numbers


def pick(items: Sequence[int], number: int, rng: np.random.Generator) -> list[int]:
    """Draw ``number`` different items uniformly; return them in the order of ``items``."""
    chosen = rng.choice(len(items), size=number, replace=False)
    return [items[int(i)] for i in sorted(chosen)]


def positions_by_output(examples: Sequence[Example]) -> dict[str, list[int]]:
    """Group the positions of examples by output; outputs in sorted order."""
    groups: dict[str, list[int]] = {}
    for position, example in enumerate(examples):
        groups.setdefault(example.output, []).append(position)
    return dict(sorted(groups.items()))


def draw_limited(
    examples: Sequence[Example], limit: int | None, rng: np.random.Generator, every_label: bool
) -> list[Example]:
    """Draw at most ``limit`` examples uniformly without replacement, in file order (``None``: all of them).

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
