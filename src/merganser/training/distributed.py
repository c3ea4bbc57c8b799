r"""Training on several processes, with the result of one.

The mean loss of a batch of :math:`n` counted items (label tokens, or examples) is split: process :math:`k` of :math:`K`
reads its part, whose mean over :math:`n_k` items is :math:`L_k`, and takes :math:`K \frac{n_k}{n} L_k` as its loss. The
mean over the processes, which is what data parallelism takes of gradients, is then the gradient of the whole batch.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from merganser import processes
from merganser.errors import InputError
from merganser.models.base import IGNORED


@dataclass(frozen=True)
class LocalBatch:
    """This process's part of a batch.

    Attributes:
        batch: its examples, collated.
        weight: what its mean loss is multiplied by, so that the mean over the processes is the loss of the whole batch.
    """

    batch: Mapping[str, Any]
    weight: float

    @classmethod
    def of(
        cls, examples: Sequence[Any], collate: Callable[[list[Any]], Mapping[str, Any]], shifted: bool = False
    ) -> LocalBatch:
        """The part of a batch that is the same list of examples in every process.

        Args:
            collate: makes a batch of a list of examples.
            shifted: see :func:`counted`.
        """
        part, counts = processes.local_part(examples)
        batch = collate(part)
        return cls(batch, weight_of(num_loss_items(batch, shifted) if counts else 0))

    def mean(self, loss: float) -> float:
        """The loss of the whole batch, from the mean loss of this part; the same bits in every process."""
        return mean_over_processes(self.weight * loss)


def num_loss_items(batch: Mapping[str, Any], shifted: bool = False) -> int:
    """Over how many items the loss of a batch is a mean: labels that are not ignored, or examples without labels.

    Args:
        shifted: the model's loss leaves the first label of every row out (:func:`shifts_labels`).
    """
    labels = batch.get("labels")
    if not isinstance(labels, Tensor):
        return rows(batch)
    return int(((labels[:, 1:] if shifted else labels) != IGNORED).sum())


def rows(batch: Mapping[str, Any]) -> int:
    """Examples in a batch."""
    return next(len(value) for value in batch.values() if isinstance(value, Tensor))


def shifts_labels(model: nn.Module) -> bool:
    """Whether the model's loss compares each position with the label after it, so that the first one is not used."""
    unwrap = getattr(model, "get_base_model", None)
    base: Any = unwrap() if callable(unwrap) else model
    decoder_only = not getattr(getattr(base, "config", None), "is_encoder_decoder", False)
    return decoder_only and getattr(base, "loss_type", None) == "ForCausalLM"


def weight_of(items: int) -> float:
    """The weight of a mean over ``items`` items of this process, see :class:`LocalBatch`."""
    if processes.world_size() == 1:
        return 1.0
    everywhere = processes.all_reduce_sum([items])[0]
    return processes.world_size() * items / everywhere if everywhere else 0.0


def mean_over_processes(value: float) -> float:
    """The mean of a number over the processes; the same bits in each."""
    return processes.all_reduce_sum([value])[0] / processes.world_size()


def average_gradients(model: nn.Module) -> None:
    """Replace gradients by their means over the processes; those of sharded parameters are means already."""
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
    """This process's part of every batch of an order that is the same in every process.

    Where a batch has fewer examples than there are processes, some get the index :math:`-1 - i`: example :math:`i`,
    which stands in for one that is not there.

    Args:
        order: yields indices; has ``set_epoch``.
        batch: examples per batch, over all processes.
    """

    def __init__(self, order: Any, batch: int) -> None:
        self.batch_sampler = order  # the name under which the training loop looks for what must know the epoch
        self.batch = batch

    def set_epoch(self, epoch: int) -> None:
        """Called by the training loop before every epoch."""
        self.batch_sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(self.batch_sampler) // self.batch)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.batch_sampler)
        for start in range(0, len(order), self.batch):
            part, counts = processes.local_part(order[start : start + self.batch])
            yield part if counts else [-1 - index for index in part]


def check_batch_for_processes(batch: int) -> None:
    """InputError when there are more processes than examples in a batch: some would never have anything to do."""
    if batch < processes.world_size():
        raise InputError(
            f"training.batch is {batch}, for {processes.world_size()} processes together.",
            f"Use a batch of at least {processes.world_size()}, or fewer processes.",
        )


# -- weights shared out over the processes (FSDP2) -------------------------------------------------------------------


@contextlib.contextmanager
def sharded_as_launched(module: nn.Module) -> Iterator[nn.Module]:
    """What is trained in place of ``module``: itself, or where the launcher asks for it a sharded copy.

    The trained weights are gathered into the module at the end of the block, so that everything outside of training
    meets an ordinary module in every process. On a CUDA device it waits in the processor's memory meanwhile.
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
    """The layers that are shared out one by one.

    Their classes are named by ``FSDP_TRANSFORMER_CLS_TO_WRAP`` (``accelerate launch`` sets it), else they are those
    that the model itself says must not be split.

    Raises:
        InputError: no layer has such a name.
    """
    names = {name.strip() for name in os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "").split(",") if name.strip()}
    names = names or {name for part in module.modules() for name in getattr(part, "_no_split_modules", None) or ()}
    blocks = [part for part in module.modules() if type(part).__name__ in names]
    if not blocks:
        raise InputError(
            f"The model has no layer of class {' or '.join(sorted(names)) or '(none is named)'} to share out.",
            "Name the class of its blocks: fsdp_transformer_layer_cls_to_wrap.",
        )
    return blocks


def sharded_copy(module: nn.Module, device: str) -> nn.Module:
    """A copy of the module with every weight shared out over the processes, block by block (FSDP2), on ``device``.

    Raises:
        InputError: as :func:`layers_to_wrap`.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    copied = copy.deepcopy(module)
    blocks = layers_to_wrap(copied)
    mesh = init_device_mesh(device, (processes.world_size(),))
    reshard = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() != "false"
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard)
    fully_shard(copied, mesh=mesh)
    # So that a ``transformers.Trainer`` takes it as it is and does not wrap it again. Said by the class, which
    # ``fully_shard`` made for sharded modules: models of transformers have a property there, which cannot be set.
    type(copied).is_distributed_loading_by_transformers = True  # type: ignore[attr-defined]
    return copied


def reshard(module: nn.Module) -> None:
    """Let go of weights that a forward pass gathered: a backward pass does, a forward pass alone keeps the outermost.

    Without it the next forward pass would not see what has been done to the shards since.
    """
    if processes.world_size() == 1:
        return
    from torch.distributed.fsdp import FSDPModule

    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


@torch.no_grad()
def gather_full_weights(trained: nn.Module, module: nn.Module) -> None:
    """Gather the trainable weights of a sharded copy into the original, in every process."""
    reshard(trained)
    originals = dict(module.named_parameters())
    for name, parameter in trained.named_parameters():
        if parameter.requires_grad:
            originals[name].copy_(parameter.full_tensor())  # type: ignore[attr-defined]
