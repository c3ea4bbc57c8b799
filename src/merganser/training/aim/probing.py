"""The examples of the memory on which the forgetting signal is measured."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from merganser.streams.sampling import pick, spread
from merganser.training.aim.config import ProbeSet
from merganser.training.distributed import mean_over_processes
from merganser.training.rehearsal import Dataset, MemoryBatches


def spread_over_groups(groups: Sequence[Hashable], number: int, rng: np.random.Generator) -> list[int]:
    """Draw the positions of ``number`` examples, as evenly over their groups as the groups' sizes allow.

    Groups that are pairs (task, label) are taken level by level: as evenly as possible over tasks, then within every
    task over its labels.

    Args:
        groups: the group of every example; at least ``number`` of them.
        rng: draws which examples, and which groups get the remainder.
    """
    outer: dict[Hashable, dict[Hashable, list[int]]] = {}
    for position, group in enumerate(groups):
        first = group[0] if isinstance(group, tuple) else group
        outer.setdefault(first, {}).setdefault(group, []).append(position)
    sizes = [sum(map(len, inner.values())) for inner in outer.values()]
    chosen: list[int] = []
    for inner, share in zip(outer.values(), spread(number, sizes, rng), strict=True):
        members = list(inner.values())
        for positions, count in zip(members, spread(share, [len(p) for p in members], rng), strict=True):
            chosen += pick(positions, count, rng)
    return sorted(chosen)


class ReplayedLosses:
    """The mean loss of the memory's texts that stood beside the training batches since it was last asked for.

    It costs nothing, since training computes these losses anyway.
    """

    def __init__(self) -> None:
        self._sum = 0.0
        self._number = 0

    def add(self, loss: float) -> None:
        """Add the loss of one batch's texts (nats; this rank's term of their mean)."""
        self._sum += loss
        self._number += 1

    def take(self) -> float | None:
        """Return the mean over the batches since the last call, and begin anew; ``None`` if no text stood there.

        The same bits on every rank, which must all call it.
        """
        if not self._number:
            return None
        mean = mean_over_processes(self._sum / self._number)
        self._sum, self._number = 0.0, 0
        return mean

    def state(self) -> list[float]:
        """Return the state for :meth:`load_state`."""
        return [self._sum, self._number]

    def load_state(self, state: Sequence[float]) -> None:
        """Restore it."""
        self._sum, self._number = float(state[0]), int(state[1])


BatchT = TypeVar("BatchT")


class Probes(Generic[BatchT]):
    """Provides the batch of every probe, a function of the seed and the step alone.

    Args:
        memory: tokenised examples.
        size: examples per probe.
        seed: decides every draw.
        collate: turns examples into what :meth:`batch` returns, such as a batch on the model's device.
        kind: ``fresh``: a random batch for every step. ``fixed``, and ``replayed`` where nothing was replayed: one
            batch for all of them, drawn once; losses then differ only by the model's weights, not by the examples.
        groups: one per example; a fixed batch is spread over them (see :func:`spread_over_groups`).

    Raises:
        InputError: the memory is empty or smaller than a batch.
    """

    def __init__(
        self,
        memory: Dataset,
        size: int,
        seed: int,
        collate: Callable[[list[Any]], BatchT],
        kind: ProbeSet = "fresh",
        groups: Sequence[Hashable] = (),
    ) -> None:
        self._batches = MemoryBatches(memory, size, seed)
        self.batch_size = size
        self._collate = collate
        self._cached: tuple[int, BatchT] | None = None
        self._fixed: BatchT | None = None
        if kind != "fresh":
            rng = np.random.default_rng([seed, 4])
            chosen = spread_over_groups(groups or [0] * len(memory), size, rng)
            self._fixed = collate([memory[index] for index in chosen])

    def batch(self, step: int) -> BatchT:
        """Return the batch of the probe after inner step ``step``; cached, since a merge measures it again."""
        if self._fixed is not None:
            return self._fixed
        if self._cached is None or self._cached[0] != step:
            self._cached = step, self._collate(self._batches.probe(step))
        return self._cached[1]
