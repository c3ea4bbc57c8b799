"""Batches from the rehearsal memory, and their two uses: probing and rehearsing.

The examples of a batch are a function of the seed and of a counter alone: a resumed run, or one with
another number of processes, draws the same batches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from merganser.errors import InputError
from merganser.models.pairs import is_pairs
from merganser.training.distributed import LocalBatch, SplitBatch, average_gradients, reshard
from merganser.training.dpo import preference_loss
from merganser.training.options import RehearsalSampling, check_batch

Collator = Callable[[list[Any]], Mapping[str, Any]]
LossFunction = Callable[[nn.Module, Mapping[str, Any]], Tensor]


class Dataset(Protocol):
    """A map-style dataset: a list, a ``datasets.Dataset``, a ``torch.utils.data.Dataset`` with a length."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class MemoryBatches:
    """Random access to an endless sequence of batches from a small dataset.

    Args:
        dataset: tokenised examples.
        batch_size: examples per batch.
        seed: with a counter, decides every draw.
        sampling: how rehearsal batches are drawn. ``epoch``: every example once per pass, each pass
            shuffled anew; ``iid``: every batch drawn independently.

    Raises:
        InputError: the memory is empty, or smaller than one batch.
    """

    def __init__(self, dataset: Dataset, batch_size: int, seed: int, sampling: RehearsalSampling = "epoch") -> None:
        if len(dataset) == 0:
            raise InputError("The rehearsal memory is empty.", "Give it at least one example.")
        check_batch("the rehearsal batch", batch_size, batch_size, len(dataset))
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.sampling = sampling

    def _take(self, indices: Sequence[int]) -> list[Any]:
        return [self.dataset[int(index)] for index in indices]

    def rehearsal(self, draw: int) -> list[Any]:
        """Return the ``draw``-th rehearsal batch, from 0."""
        if self.sampling == "iid":
            generator = np.random.default_rng([self.seed, 5, draw])
            return self._take(generator.choice(len(self.dataset), self.batch_size, replace=False).tolist())
        return self.rows(draw * self.batch_size, self.batch_size)

    def rows(self, first: int, count: int) -> list[Any]:
        """Return ``count`` examples from position ``first`` of one shuffled pass over the dataset after the other."""
        size = len(self.dataset)
        positions = range(first, first + count)
        passes: dict[int, np.ndarray] = {}
        indices = []
        for position in positions:
            number, offset = divmod(position, size)
            if number not in passes:
                passes[number] = np.random.default_rng([self.seed, 1, number]).permutation(size)
            indices.append(passes[number][offset])
        return self._take(indices)

    def probe(self, step: int) -> list[Any]:
        """Return a fresh random batch for the probe after inner step ``step``."""
        generator = np.random.default_rng([self.seed, 2, step])
        return self._take(generator.choice(len(self.dataset), self.batch_size, replace=False).tolist())


def model_loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Return the model's own loss on a batch: ``model(**batch)["loss"]``; on a batch of pairs the loss of DPO."""
    if is_pairs(batch):
        return preference_loss(model, batch)[0]
    output = model(**batch)
    return output["loss"] if isinstance(output, Mapping) else output[0]


@contextlib.contextmanager
def without_cache(model: nn.Module) -> Iterator[None]:
    """Switch the key-value cache off inside the block: no loss needs it, and without gradients it costs a tenth of a
    forward pass. Losses and gradients are the same bits."""
    # The decoder of an encoder-decoder has a configuration of its own.
    configs = {id(config): config for part in model.modules() if (config := vars(part).get("config")) is not None}
    caching = [config for config in configs.values() if getattr(config, "use_cache", False)]
    for config in caching:
        config.use_cache = False
    try:
        yield
    finally:
        for config in caching:
            config.use_cache = True


def to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Return the batch with its tensors on ``device``."""
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


@torch.no_grad()
def measure_loss(
    model: nn.Module, batch: Mapping[str, Any], loss_function: LossFunction = model_loss, *, dropout: bool = False
) -> float:
    """Measure the loss on a batch without gradients; the training mode is restored.

    Args:
        dropout: leave dropout on, as AimMerging's released program does.
    """
    was_training = model.training
    if was_training != dropout:
        model.train(dropout)
    try:
        with without_cache(model):
            return float(loss_function(model, dict(batch)))  # a trainer's loss may take the labels out
    finally:
        reshard(model)
        if model.training != was_training:
            model.train(was_training)


def rehearse_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Mapping[str, Any] | SplitBatch,
    clip: float,
    loss_function: LossFunction = model_loss,
    factor: float = 1.0,
    after_step: Callable[[], None] | None = None,
) -> float:
    """Take one optimizer step on a batch of the memory. The learning-rate schedule is not advanced.

    Args:
        batch: of a split one, the gradients of the parts are accumulated to that of the mean over its loss items.
        clip: norm at which the gradient is clipped; 0: no clipping.
        factor: on the loss, before clipping.
        after_step: called after the optimizer's step, while the clipped gradients are still there.

    Returns:
        The loss before the step (nats) times the factor; with several processes this rank's term of their mean.
    """
    parts = batch if isinstance(batch, SplitBatch) else SplitBatch([LocalBatch(batch, 1.0)])
    model.train()
    total = 0.0
    with without_cache(model):
        for part, weight in zip(parts.parts, parts.weights, strict=True):
            loss = factor * weight * loss_function(model, dict(part.batch))
            loss.backward()  # inside, because gradient checkpointing repeats the forward pass here
            total += float(loss.detach())
    average_gradients(model)
    if clip > 0:
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], clip)
    optimizer.step()
    if after_step is not None:
        after_step()
    model.zero_grad()
    return total
