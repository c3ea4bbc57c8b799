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

All draws depend on the seed and on the order of the examples alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence

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


def budget(options: MemoryOptions, size: int, label_counts: Collection[int] = ()) -> int:
    """Compute how many texts of a task may be kept.

    floor(share * size) or min(number, size); with ``minimum_per_label`` m at least sum over labels of min(m, count).

    Args:
        options: share or number, and the minimum.
        size: training texts of the task.
        label_counts: training texts per label; for free text empty, which counts as one label.

    Raises:
        InputError: the budget is 0, so that the task would never be rehearsed.
    """
    if options.number is not None:
        allowed = min(options.number, size)
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
    examples: Sequence[Example], labels: Collection[str] | None, options: MemoryOptions, seed: int
) -> list[Example]:
    """Choose the texts of one task to keep, in the order in which they stand in ``examples``.

    Args:
        examples: training texts of the task.
        labels: its label set, in any order, or ``None`` for free text.
        options: how many and which.
        seed: of the draw (0 or more); equal seeds and examples give equal memories.

    Raises:
        InputError: no examples, an example outside the label set, a budget of 0, or a ``reference`` draw that exceeds
            the budget without ``allow_excess``.
    """
    if not examples:
        raise InputError("There are no training texts to keep.", "Give the task at least one.")
    groups = positions_by_output(examples)
    if labels is not None and (outside := sorted(set(groups) - set(labels))):
        raise InputError(f"'{outside[0]}' is the answer of a training text but not a label.", "Add it to the labels.")
    everything = list(range(len(examples)))
    strata = list(groups.values()) if labels is not None else [everything]
    allowed = budget(options, len(examples), [len(group) for group in strata])
    rng = generator(seed, "memory", options.sampler)
    chosen: list[int] = []
    if options.sampler == "uniform":
        chosen = pick(everything, allowed, rng)
    elif options.sampler == "per_label":
        for group, number in zip(strata, spread(allowed, [len(group) for group in strata], rng), strict=True):
            chosen += pick(group, number, rng)
    else:
        per_output = max(1, allowed // len(groups))
        for group in groups.values():
            chosen += pick(group, min(per_output, len(group)), rng)
        if len(chosen) > allowed and not options.allow_excess:
            raise InputError(
                f"The reference sampler would keep {len(chosen)} of {len(examples)} training texts, at least one for "
                f"each of {len(groups)} different outputs; the budget is {allowed}.",
                "Use memory.sampler: per_label, or memory.allow_excess: true to do as the released code does.",
            )
        taken = set(chosen)
        rest = [position for position in everything if position not in taken]
        chosen += pick(rest, max(0, allowed - len(chosen)), rng)
    return [examples[position] for position in sorted(chosen)]


def memory_bytes(examples: Sequence[Example]) -> int:
    """Count the UTF-8 bytes of the inputs and outputs, and the bytes of the encoded images."""
    return sum(example.nbytes for example in examples)


def summarise_memory(
    kept: Sequence[Example], examples: Sequence[Example], labels: Collection[str] | None, options: MemoryOptions
) -> MemorySummary:
    """Summarise what a call of :func:`sample_memory` kept.

    Args:
        kept: its result.
        examples, labels, options: what it was called with.

    Raises:
        InputError: as :func:`budget`.
    """
    counts = Counter(example.output for example in kept)
    before = Counter(example.output for example in examples)
    return MemorySummary(
        examples=len(kept),
        bytes=memory_bytes(kept),
        budget=budget(options, len(examples), list(before.values()) if labels is not None else ()),
        share=len(kept) / len(examples),
        sampler=options.sampler,
        per_label={} if labels is None else {label: counts[label] for label in sorted(labels)},
    )


def _round_up(share: float) -> float:
    """Round up to four decimals, so that the share named in a remedy is large enough."""
    return math.ceil(share * 10_000) / 10_000
