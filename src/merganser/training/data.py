"""The training examples of one task as a dataset, and their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.trainer_pt_utils import get_length_grouped_indices

from merganser.models.base import IGNORE_INDEX
from merganser.streams.mixing import mixed_before, rows_with_mix
from merganser.training.determinism import derive_seed
from merganser.training.rehearsal import Collator

OWN, MIX = "task", "mix"
"""Names of what a training example comes from: the task itself, or the data mixed into it."""

TRAINED = "trained"
"""Key of a training batch: source -> number of examples and of their tokens."""


@dataclass(frozen=True)
class Mixture:
    """Tokenised examples of other data, and their share of the training rows; see :class:`MixedOrder`."""

    features: Sequence[dict[str, Any]]
    share: float


class FeatureList(torch.utils.data.Dataset):
    """Tokenised examples as a dataset.

    Its length is the number of the task's own examples. Those of a mixture follow them: only :class:`MixedOrder` yields
    their indices.
    """

    def __init__(self, features: Sequence[dict[str, Any]], mixture: Mixture | None = None) -> None:
        self.features = features
        self.mixture = mixture

    def __len__(self) -> int:
        return len(self.features)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.features)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return an example; a negative index gives a padding example, see :class:`~.distributed.LocalBatches`."""
        if index < 0:
            return {**self[-1 - index], "is_padding": True}
        if index < len(self.features) or self.mixture is None:
            return self.features[index]
        return {**self.mixture.features[index - len(self.features)], "source": MIX}


class EpochOrder(torch.utils.data.Sampler[int]):
    """The order of the examples in each epoch, a function of the seed and the epoch alone.

    Within windows of 50 batches, examples of similar length come together (all lengths equal: plain shuffling).

    Args:
        lengths: length of every example.
        batch: examples per optimizer step, over all processes.
        seed: with the epoch, decides the order.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        self.lengths = list(lengths)
        self.batch = batch
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; the training loop does so before every one."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "epoch", self.epoch))
        if len(set(self.lengths)) == 1:
            return iter(torch.randperm(len(self.lengths), generator=generator).tolist())
        return iter(get_length_grouped_indices(self.lengths, self.batch, generator=generator))


class MixedOrder(torch.utils.data.Sampler[int]):
    """The order of a task's examples with those of a mixture among them, a function of the seed and the epoch alone.

    Both are endless: a task's examples come in the order of one epoch after the other, and a mixture's are shuffled
    anew whenever all were read. Which rows come from the mixture is rounded over all rows since the first
    (:func:`~merganser.streams.mixing.mixed_before`), so that batches, accumulated batches and the task as a whole hold
    its share to within one row.

    Args:
        task_order: the order of the task's examples.
        mixture: with its share.
    """

    def __init__(self, task_order: EpochOrder, mixture: Mixture) -> None:
        self.task_order = task_order
        self.share = mixture.share
        self.grouped = len(set(task_order.lengths)) > 1
        self.lengths = [feature["length"] for feature in mixture.features]
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; the training loop does so before every one."""
        self.epoch = epoch

    def __len__(self) -> int:
        return rows_with_mix(len(self.task_order), self.share)

    def __iter__(self) -> Iterator[int]:
        start = self.epoch * len(self)
        counts = [mixed_before(position, self.share) for position in range(start, start + len(self) + 1)]
        mixed = [len(self.task_order) + i for i in self._others(counts[0], counts[-1])]
        task_indices = _endless(self._pass_of_own, len(self.task_order), start - counts[0], len(self) - len(mixed))
        slots = [i for i in range(len(self)) if counts[i + 1] > counts[i]]
        if self.grouped:
            mixed = self._beside_similar(mixed, [slot - number for number, slot in enumerate(slots)], task_indices)
        rows = iter(task_indices)
        placed = dict(zip(slots, mixed, strict=True))
        return (placed[i] if i in placed else next(rows) for i in range(len(self)))

    def _pass_of_own(self, number: int) -> list[int]:
        self.task_order.set_epoch(number)
        return list(self.task_order)

    def _others(self, first: int, last: int) -> list[int]:
        def shuffled(number: int) -> list[int]:
            generator = torch.Generator().manual_seed(derive_seed(self.task_order.seed, "mix", number))
            return torch.randperm(len(self.lengths), generator=generator).tolist()

        return _endless(shuffled, len(self.lengths), first, last - first)

    def _beside_similar(self, mixed: list[int], places: list[int], task_indices: list[int]) -> list[int]:
        """Reorder mixed examples so that longer ones stand in batches of longer texts, as far as windows reach.

        Args:
            places: for each of them, how many of the task's examples come before it in this epoch.
        """
        window = self.task_order.batch * 50
        reordered = list(mixed)
        for start in range(0, len(task_indices) + 1, window):
            inside = [i for i, place in enumerate(places) if start <= place < start + window]
            beside = sorted(
                inside, key=lambda i: (-self.task_order.lengths[task_indices[min(places[i], len(task_indices) - 1)]], i)
            )
            longest = sorted((mixed[i] for i in inside), key=lambda i: -self.lengths[i - len(self.task_order)])
            for slot, index in zip(beside, longest, strict=True):
                reordered[slot] = index
        return reordered


def _endless(of_pass: Callable[[int], list[int]], size: int, first: int, count: int) -> list[int]:
    """Return ``count`` indices from position ``first`` of one pass after the other, each of ``size`` indices."""
    indices: list[int] = []
    while len(indices) < count:
        number, offset = divmod(first + len(indices), size)
        indices += of_pass(number)[offset : offset + count - len(indices)]
    return indices


def count_trained(collate: Collator) -> Collator:
    """Wrap a collator so that its batches say how many examples and tokens of which source are in them."""

    def collate_counting(features: list[Any]) -> dict[str, Any]:
        counts: dict[str, list[int]] = {}
        for feature in features:
            if not feature.get("is_padding"):
                count = counts.setdefault(feature.get("source", OWN), [0, 0])
                count[0] += 1
                count[1] += feature.get("length", 0)
        return {**collate(features), TRAINED: counts}

    return collate_counting


def ignore_padding(collate: Collator) -> Collator:
    """Wrap a collator so that the loss ignores the labels of padding examples."""

    def collate_ignoring(features: list[Any]) -> dict[str, Any]:
        batch = dict(collate(features))
        if any(feature.get("is_padding") for feature in features):  # then there is no other
            batch["labels"] = torch.full_like(batch["labels"], IGNORE_INDEX)
        return batch

    return collate_ignoring
