r"""Data-parallel training (DDP, FSDP2) with the result of one process.

The mean loss of a batch of :math:`n` loss items (label tokens, or examples) is split: rank :math:`k` of :math:`K` reads
its part, whose mean over :math:`n_k` items is :math:`L_k`, and uses :math:`K \frac{n_k}{n} L_k` as its loss. Data
parallelism averages gradients over the ranks, which gives the gradient of the whole batch.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from merganser import processes
from merganser.errors import InputError
from merganser.models.base import IGNORE_INDEX
from merganser.models.pairs import is_pair, is_pairs, num_pairs


@dataclass(frozen=True)
class LocalBatch:
    """This rank's part of a batch.

    Attributes:
        batch: the collated examples.
        weight: factor on its mean loss, with which the mean over the ranks is the loss of the whole batch.
        items: loss items of the whole batch, over all ranks.
        share: fraction of the examples of a larger batch that have the loss of this one: pairs, or all others.
    """

    batch: Mapping[str, Any]
    weight: float
    items: int = 1
    share: float = 1.0

    @classmethod
    def of(
        cls, examples: Sequence[Any], collate: Callable[[list[Any]], Mapping[str, Any]], shifted: bool = False
    ) -> LocalBatch:
        """Collate this rank's part of a batch that is the same list of examples on every rank.

        Args:
            examples: of the whole batch.
            collate: makes a batch of a list of examples.
            shifted: see :func:`num_loss_items`.
        """
        part, counts = processes.local_part(examples)
        batch = collate(part)
        items = num_loss_items(batch, shifted) if counts else 0
        total = int(processes.all_reduce_sum([items])[0])
        return cls(batch, loss_weight(items, total), total)


@dataclass(frozen=True)
class SplitBatch:
    """A batch in parts that are computed one after another, so that no pass needs the memory of the whole.

    Attributes:
        parts: of this rank; the same number on every rank.
    """

    parts: Sequence[LocalBatch]

    @classmethod
    def of(
        cls,
        examples: Sequence[Any],
        collate: Callable[[list[Any]], Mapping[str, Any]],
        shifted: bool = False,
        at_most: int | None = None,
    ) -> SplitBatch:
        """Collate this rank's share of a batch that is the same list of examples on every rank.

        Pairs and examples with one answer come in parts of their own, since they have different losses.

        Args:
            examples: of the whole batch.
            collate: makes a batch of a list of examples.
            shifted: see :func:`num_loss_items`.
            at_most: examples of a part, over all ranks; ``None``: the whole batch is one part.
        """
        size = at_most or len(examples)
        parts = []
        for group in by_loss(examples):
            chunks = [group[start : start + size] for start in range(0, len(group), size)]
            share = len(group) / len(examples)
            parts += [replace(LocalBatch.of(chunk, collate, shifted), share=share) for chunk in chunks]
        return cls(parts)

    @property
    def weights(self) -> list[float]:
        """A factor on the mean loss of each part, with which the mean over the ranks of their sum is the mean loss over
        all loss items of the batch; of pairs beside other examples, the mean of the two means by numbers of examples.
        """
        weights = []
        for part in self.parts:
            same_loss = [other for other in self.parts if is_pairs(other.batch) == is_pairs(part.batch)]
            total = sum(other.items for other in same_loss)
            weights.append(part.share * part.weight * (part.items / total if total else 1 / len(same_loss)))
        return weights

    def mean(self, losses: Sequence[float]) -> float:
        """Return the loss of the whole batch, from the mean loss of each part; the same bits on every rank."""
        return mean_over_processes(sum(w * loss for w, loss in zip(self.weights, losses, strict=True)))


def by_loss(examples: Sequence[Any]) -> list[list[Any]]:
    """Group examples by their loss, in order: those with one answer, and pairs; no group is empty."""
    pairs = [isinstance(example, Mapping) and is_pair(example) for example in examples]
    groups = [[e for e, pair in zip(examples, pairs, strict=True) if pair is kind] for kind in (False, True)]
    return [group for group in groups if group]


def num_loss_items(batch: Mapping[str, Any], shifted: bool = False) -> int:
    """Count the loss items of a batch: labels that are not ignored, pairs, or examples without labels.

    Args:
        shifted: the model's loss does not use the first label of every row (:func:`shifts_labels`).
    """
    if is_pairs(batch):
        return num_pairs(batch)
    labels = batch.get("labels")
    if not isinstance(labels, Tensor):
        return num_examples(batch)
    return int(((labels[:, 1:] if shifted else labels) != IGNORE_INDEX).sum())


def num_examples(batch: Mapping[str, Any]) -> int:
    """Return the number of examples in a batch; a pair is one, and packed ones begin at position 0."""
    if isinstance(positions := batch.get("position_ids"), Tensor):
        return int((positions == 0).sum())
    rows = next(len(value) for value in batch.values() if isinstance(value, Tensor))
    return rows // 2 if is_pairs(batch) else rows


def shifts_labels(model: nn.Module) -> bool:
    """Return whether the loss compares each position with the label after it, so that the first label is not used."""
    unwrap = getattr(model, "get_base_model", None)
    base: Any = unwrap() if callable(unwrap) else model
    decoder_only = not getattr(getattr(base, "config", None), "is_encoder_decoder", False)
    return decoder_only and getattr(base, "loss_type", None) == "ForCausalLM"


def loss_weight(items: int, total: int) -> float:
    """Return the weight of a mean over ``items`` items of this rank, of ``total`` over all, see :class:`LocalBatch`."""
    if processes.world_size() == 1:
        return 1.0
    return processes.world_size() * items / total if total else 0.0


def mean_over_processes(value: float) -> float:
    """Return the mean of a number over the ranks; the same bits on each."""
    return processes.all_reduce_sum([value])[0] / processes.world_size()


def average_gradients(model: nn.Module) -> None:
    """All-reduce gradients to their means over the ranks; those of sharded parameters are means already."""
    if processes.world_size() == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None and not hasattr(p.grad, "to_local")]
    if not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= processes.world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


class LocalBatches(torch.utils.data.Sampler[list[int]]):
    """This rank's part of every batch of an order that is the same on every rank.

    If a batch has fewer examples than there are ranks, some ranks get the index :math:`-1 - i`: example :math:`i` as
    padding, which does not count in the loss.

    Args:
        order: yields indices; has ``set_epoch``.
        batch: examples per batch, over all processes.
    """

    def __init__(self, order: Any, batch: int) -> None:
        self.batch_sampler = order  # the training loop calls set_epoch on an attribute of this name
        self.batch = batch

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; the training loop does so before every one."""
        self.batch_sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(self.batch_sampler) // self.batch)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.batch_sampler)
        for start in range(0, len(order), self.batch):
            part, counts = processes.local_part(order[start : start + self.batch])
            yield part if counts else [-1 - index for index in part]


def check_batch_for_processes(batch: int) -> None:
    """Raise InputError when there are more processes than examples in a batch: some would read padding alone."""
    if batch < processes.world_size():
        raise InputError(
            f"training.batch is {batch}, for {processes.world_size()} processes together.",
            f"Use a batch of at least {processes.world_size()}, or fewer processes.",
        )


# -- sharded weights (FSDP2) -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def sharded_as_launched(module: nn.Module) -> Iterator[nn.Module]:
    """Provide the module to train: ``module`` itself, or a sharded copy if the launcher sets FSDP.

    The full weights are gathered into the module at the end of the block, so that all code outside of training sees an
    ordinary module on every rank. On an accelerator the module is moved to the CPU meanwhile.
    """
    if not processes.uses_fsdp():
        yield module
        return
    device = next(module.parameters()).device
    try:
        trained = sharded_copy(module.to("cpu"), device.type)
        yield trained
        gather_full_weights(trained, module)
    finally:
        module.to(device)


def layers_to_wrap(module: nn.Module) -> list[nn.Module]:
    """Return the layers that FSDP wraps one by one.

    Their classes are named by ``FSDP_TRANSFORMER_CLS_TO_WRAP`` (``accelerate launch`` sets it), else by the model's own
    ``_no_split_modules``.

    Raises:
        InputError: no layer has such a name.
    """
    names = {name.strip() for name in os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "").split(",") if name.strip()}
    names = names or {name for part in module.modules() for name in getattr(part, "_no_split_modules", None) or ()}
    blocks = [part for part in module.modules() if type(part).__name__ in names]
    if not blocks:
        raise InputError(
            f"The model has no layer of class {' or '.join(sorted(names)) or '(none is named)'} to wrap for FSDP.",
            "Name the class of its blocks: fsdp_transformer_layer_cls_to_wrap.",
        )
    return blocks


def sharded_copy(module: nn.Module, device: str) -> nn.Module:
    """Return a copy of the module with sharded weights, wrapped layer by layer (FSDP2), on ``device``.

    Raises:
        InputError: as :func:`layers_to_wrap`.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    copied = copy.deepcopy(module)
    layers = layers_to_wrap(copied)
    mesh = init_device_mesh(device, (processes.world_size(),))
    reshard = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() != "false"
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=reshard)
    fully_shard(copied, mesh=mesh)
    # So that a ``transformers.Trainer`` does not wrap it again. Set on the class, which ``fully_shard`` made for this
    # module: models of transformers have a property of this name, which cannot be set on an instance.
    type(copied).is_distributed_loading_by_transformers = True  # type: ignore[attr-defined]
    return copied


def reshard(module: nn.Module) -> None:
    """Free the full weights that a forward pass gathered; without a backward pass those of the root stay gathered.

    Otherwise the next forward pass would use them, whatever has been written into the shards since.
    """
    if processes.world_size() == 1:
        return
    from torch.distributed.fsdp import FSDPModule

    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


@torch.no_grad()
def gather_full_weights(trained: nn.Module, module: nn.Module) -> None:
    """All-gather the trainable weights of a sharded copy into the original, on every rank."""
    reshard(trained)
    originals = dict(module.named_parameters())
    for name, parameter in trained.named_parameters():
        if parameter.requires_grad:
            originals[name].copy_(parameter.full_tensor())  # type: ignore[attr-defined]
