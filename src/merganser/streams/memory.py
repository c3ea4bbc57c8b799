"""Select the training texts of a learned task that the rehearsal memory keeps.

Samplers (AimMerging, Feng et al. 2025, section on rehearsal; behaviour of the released code):

``per_label``
    A budget of floor(share * size) texts, spread over the labels as evenly as their sizes allow: at least one
    per label while the budget lasts. Free text counts as one label.
``uniform``
    The same budget, any texts.
``reference``
    n = int(share * size); every distinct *output string* is a class; max(1, n // classes) texts of each class, topped
    up at random to n. On free text nearly every output is a class of its own, so far more than n are kept.

Two more need the loss of every text under the model (Hazard 2025, arXiv 2511.22367):

``surprise``
    The texts with the highest loss.
``mixed``
    Alternately a random one, as evenly over the labels as their sizes allow, and the one with the highest loss left.

With a total over all tasks the texts of a task are stored in the order in which they would be given up, last one first:
of any number of slots a task holds a beginning of it.

All draws depend on the seed and on the order of the examples alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from merganser.errors import InputError
from merganser.streams.options import MemoryOptions
from merganser.streams.sampling import generator, pick, positions_by_output, spread
from merganser.streams.task import Example


class MemorySummary(BaseModel):
    """What was kept of one task for rehearsal."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    examples: int = Field(0, description="examples kept")
    bytes: int = Field(0, description="UTF-8 bytes of their inputs and outputs, and bytes of encoded images")
    budget: int = Field(0, description="examples that were allowed")
    share: float = Field(0.0, description="examples kept / training examples")
    sampler: str = Field("none", description="how they were chosen")
    per_label: dict[str, int] = Field(default_factory=dict, description="examples kept per label; empty for free text")


def allot(total: int, sizes: Sequence[int]) -> list[int]:
    """Divide the slots of a memory among tasks as evenly as their sizes allow; what is left over goes to the earliest.

    With every further task, no earlier one gets more than before.
    """
    slots = [0] * len(sizes)
    left = min(total, sum(sizes))
    while left > 0:
        open_ = [i for i, size in enumerate(sizes) if slots[i] < size]
        equal = left // len(open_)
        for i in open_[:left]:
            more = min(max(equal, 1), sizes[i] - slots[i])
            slots[i] += more
            left -= more
    return slots


def in_force(stored: Sequence[tuple[str, Example]], total: int | None) -> list[tuple[str, Example]]:
    """Return the part of a stored memory that a total leaves: the beginning of every task's texts.

    Args:
        stored: pairs of a task and a text, task after task.
        total: texts of all tasks; ``None``: no bound.
    """
    if total is None:
        return list(stored)
    by_task: dict[str, list[tuple[str, Example]]] = {}
    for pair in stored:
        by_task.setdefault(pair[0], []).append(pair)
    slots = allot(total, [len(pairs) for pairs in by_task.values()])
    return [pair for pairs, number in zip(by_task.values(), slots, strict=True) for pair in pairs[:number]]


def budget(options: MemoryOptions, size: int, label_counts: Collection[int] = ()) -> int:
    """Compute how many texts of a task may be kept.

    floor(share * size) or min(number, size); with ``minimum_per_label`` m at least sum over labels of min(m, count).

    Args:
        options: share, number or total, and the minimum. Of a total, the whole is allowed: no other task is known here.
        size: training texts of the task.
        label_counts: training texts per label; for free text empty, which counts as one label.

    Raises:
        InputError: the budget is 0, so that the task would never be rehearsed.
    """
    if options.number is not None or options.total is not None:
        allowed = min(options.number or options.total or 0, size)
    else:
        # 0.29 * 100 is 28.999999999999996: without the margin one text would be missing.
        allowed = math.floor((options.share or 0.0) * size + 1e-9)
    minimum = sum(min(options.minimum_per_label, count) for count in label_counts or [size])
    allowed = max(allowed, minimum)
    if allowed == 0 and not options.allow_excess:
        raise InputError(
            f"A memory share of {options.share:g} keeps none of {size} training texts.",
            f"Raise memory.share to at least {_round_up(1 / size) if size else 1:g}, or set memory.number"
            + (", or memory.minimum_per_label: 1." if options.sampler == "per_label" else "."),
        )
    return allowed


def sample_memory(
    examples: Sequence[Example],
    labels: Collection[str] | None,
    options: MemoryOptions,
    seed: int,
    surprise: Sequence[float] = (),
    slots: int | None = None,
) -> list[Example]:
    """Choose the texts of one task to keep, in the order in which they stand in ``examples``.

    With a total, they come in the order in which they are given up, last one first.

    Args:
        examples: training texts of the task.
        labels: its label set, in any order, or ``None`` for free text.
        options: how many and which.
        seed: of the draw (0 or more); equal seeds and examples give equal memories.
        surprise: the loss of each text, for ``surprise`` and ``mixed``.
        slots: of a total, those of this task; ``None``: all.

    Raises:
        InputError: no examples, an example outside the label set, a budget of 0, or a ``reference`` draw that exceeds
            the budget without ``allow_excess``.
        ValueError: not one loss per text, where they are needed.
    """
    if not examples:
        raise InputError("There are no training texts to keep.", "Give the task at least one.")
    groups = positions_by_output(examples)
    if labels is not None and (outside := sorted(set(groups) - set(labels))):
        raise InputError(f"'{outside[0]}' is the answer of a training text but not a label.", "Add it to the labels.")
    strata = list(groups.values()) if labels is not None else [list(range(len(examples)))]
    allowed = budget(options, len(examples), [len(group) for group in strata])
    rng = generator(seed, "memory", options.sampler)
    if options.total is not None:
        order = _in_order(strata, options, rng, surprise)
        return [examples[position] for position in order[: allowed if slots is None else slots]]
    if options.sampler == "reference":
        chosen = _as_released(groups, len(examples), allowed, options, rng)
    elif options.sampler == "uniform":
        chosen = pick(range(len(examples)), allowed, rng)
    elif options.sampler == "per_label":
        numbers = spread(allowed, [len(group) for group in strata], rng)
        chosen = [p for group, number in zip(strata, numbers, strict=True) for p in pick(group, number, rng)]
    else:
        chosen = _in_order(strata, options, rng, surprise)[:allowed]
    return [examples[position] for position in sorted(chosen)]


def _as_released(
    groups: Mapping[str, list[int]], size: int, allowed: int, options: MemoryOptions, rng: np.random.Generator
) -> list[int]:
    """Return the positions that AimMerging's released program keeps."""
    per_output = max(1, allowed // len(groups))
    chosen = [p for group in groups.values() for p in pick(group, min(per_output, len(group)), rng)]
    if len(chosen) > allowed and not options.allow_excess:
        raise InputError(
            f"The reference sampler would keep {len(chosen)} of {size} training texts, at least one for "
            f"each of {len(groups)} different outputs; the budget is {allowed}.",
            "Use memory.sampler: per_label, or memory.allow_excess: true to do as the released code does.",
        )
    taken = set(chosen)
    rest = [position for position in range(size) if position not in taken]
    return chosen + pick(rest, max(0, allowed - len(chosen)), rng)


def _in_order(
    strata: Sequence[Sequence[int]], options: MemoryOptions, rng: np.random.Generator, surprise: Sequence[float]
) -> list[int]:
    """Return all positions of a task, those to keep longest first."""
    size = sum(map(len, strata))
    if options.sampler == "uniform":
        return [int(position) for position in rng.permutation(size)]
    if options.reads_surprise and len(surprise) != size:
        raise ValueError(f"There are {len(surprise)} losses for {size} texts.")
    if options.sampler == "per_label":
        return list(_round_robin(strata, rng))
    by_loss = sorted(range(size), key=lambda position: (-surprise[position], position))
    if options.sampler == "surprise":
        return by_loss
    # Each next one of either order; one that has come already is left out, and the next of that order comes instead.
    orders = [_round_robin(strata, rng), iter(by_loss)]
    chosen: dict[int, None] = {}
    while len(chosen) < size:
        chosen[next(p for p in orders[len(chosen) % 2] if p not in chosen)] = None
    return list(chosen)


def _round_robin(strata: Sequence[Sequence[int]], rng: np.random.Generator) -> Iterator[int]:
    """Yield the positions of all groups at random, one of each group that has any left in every round."""
    shuffled = [[group[int(i)] for i in rng.permutation(len(group))] for group in strata]
    for round_ in range(max(map(len, shuffled))):
        unfinished = [group for group in shuffled if len(group) > round_]
        for i in rng.permutation(len(unfinished)):
            yield unfinished[int(i)][round_]


def memory_bytes(examples: Sequence[Example]) -> int:
    """Count the UTF-8 bytes of the inputs and outputs, and the bytes of the encoded images."""
    return sum(example.nbytes for example in examples)


def summarise_memory(
    kept: Sequence[Example],
    examples: Sequence[Example],
    labels: Collection[str] | None,
    options: MemoryOptions,
    slots: int | None = None,
) -> MemorySummary:
    """Summarise what a call of :func:`sample_memory` kept.

    Args:
        kept: its result.
        examples, labels, options, slots: what it was called with.

    Raises:
        InputError: as :func:`budget`.
    """
    counts = Counter(example.output for example in kept)
    before = Counter(example.output for example in examples)
    allowed = budget(options, len(examples), list(before.values()) if labels is not None else ())
    return MemorySummary(
        examples=len(kept),
        bytes=memory_bytes(kept),
        budget=allowed if slots is None else slots,
        share=len(kept) / len(examples),
        sampler="self" if options.source == "self" else options.sampler,
        per_label={} if labels is None else {label: counts[label] for label in sorted(labels)},
    )


def _round_up(share: float) -> float:
    """Round up to four decimals, so that the share named in a remedy is large enough."""
    return math.ceil(share * 10_000) / 10_000
