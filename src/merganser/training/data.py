"""The training examples of one task as a dataset, and their order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers.trainer_pt_utils import get_length_grouped_indices

from merganser.models.base import IGNORE_INDEX
from merganser.training.determinism import derive_seed
from merganser.training.rehearsal import Collator


class FeatureList(torch.utils.data.Dataset):
    """Tokenised examples as a dataset; ``Trainer`` groups by their ``length``."""

    def __init__(self, features: Sequence[dict[str, Any]]) -> None:
        self.features = features

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return an example; a negative index gives a padding example, see :class:`~.distributed.LocalBatches`."""
        return self.features[index] if index >= 0 else {**self.features[-1 - index], "is_padding": True}


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


def ignore_padding(collate: Collator) -> Collator:
    """Wrap a collator so that the loss ignores the labels of padding examples."""

    def collate_ignoring(features: list[Any]) -> dict[str, Any]:
        batch = dict(collate(features))
        if any(feature.get("is_padding") for feature in features):  # then there is no other
            batch["labels"] = torch.full_like(batch["labels"], IGNORE_INDEX)
        return batch

    return collate_ignoring
