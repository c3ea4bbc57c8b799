"""A model's trainable parameters as a point in space.

:class:`Weights` is an ordered mapping from names to tensors. It never copies unless asked (:meth:`Weights.snapshot`),
works in the tensors' own memory, and on sharded parameters (``DTensor``) works on the local shard: nothing is gathered.
Norms and products are those of the whole vector: partial sums of the shards are all-reduced, so every process must
call them at the same time.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from merganser import processes


def local_shard(tensor: Tensor) -> Tensor:
    """Return the local shard of a distributed tensor; another tensor is returned unchanged."""
    to_local = getattr(tensor, "to_local", None)
    return to_local() if callable(to_local) else tensor


def is_sharded(tensor: Tensor) -> bool:
    """Return whether processes hold different parts of ``tensor``."""
    return any(placement.is_shard() for placement in getattr(tensor, "placements", ()))


def to_dtensor_like(shard: Tensor, tensor: Tensor) -> Tensor:
    """Wrap a local shard as a ``DTensor`` with the mesh and placements of ``tensor``; unchanged if that is not one."""
    if not hasattr(tensor, "to_local"):
        return shard
    from torch.distributed.tensor import DTensor

    assert isinstance(tensor, DTensor)
    return DTensor.from_local(
        shard.to(tensor.device),
        tensor.device_mesh,
        tensor.placements,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )


class Weights(Mapping[str, Tensor]):
    """Named tensors seen as one vector.

    Args:
        tensors: name -> tensor; kept by reference, in this order.
        sharded: names of plain tensors that are this process's shards of larger ones (a ``DTensor`` is recognised).
    """

    def __init__(self, tensors: Mapping[str, Tensor], sharded: Iterable[str] = ()) -> None:
        self._tensors = {name: local_shard(tensor.detach()) for name, tensor in tensors.items()}
        self._sharded = {*sharded, *(name for name, tensor in tensors.items() if is_sharded(tensor))}

    @classmethod
    def of(cls, module: nn.Module) -> Weights:
        """Take the trainable parameters of ``module``, sharing its memory.

        Raises:
            ValueError: nothing is trainable.
        """
        trainable = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        if not trainable:
            raise ValueError(f"{type(module).__name__} has no trainable parameters.")
        return cls(trainable)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def tensors(self) -> list[Tensor]:
        return list(self._tensors.values())

    @property
    def sharded(self) -> bool:
        """Whether any of these are this process's shards of larger ones."""
        return bool(self._sharded)

    @property
    def numel(self) -> int:
        """Number of entries in this process."""
        return sum(tensor.numel() for tensor in self._tensors.values())

    @property
    def total(self) -> int:
        """Number of entries, those of shards in all processes."""
        return round(self._sum(float(tensor.numel()) for tensor in self.tensors))

    @property
    def nbytes(self) -> int:
        """Bytes in this process."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors.values())

    def aligned_tensors(self, other: Weights) -> list[Tensor]:
        """Return ``other``'s tensors in the order of these names.

        Raises:
            ValueError: names or shapes differ; the message names the first that does.
        """
        if self.keys() != other.keys():
            differing = sorted(self.keys() ^ other.keys())
            raise ValueError(f"Weights do not match: '{differing[0]}' is in only one ({len(differing)} such names).")
        for name, tensor in self.items():
            if tensor.shape != other[name].shape:
                raise ValueError(
                    f"Weights do not match: '{name}' is {tuple(tensor.shape)} and {tuple(other[name].shape)}."
                )
        return [other[name] for name in self]

    def snapshot(self) -> Weights:
        """Copy the tensors."""
        return Weights({name: tensor.clone() for name, tensor in self.items()}, self._sharded)

    def like(self, tensors: Mapping[str, Tensor]) -> Weights:
        """Return other tensors of these names as weights, sharded where these are."""
        return Weights(tensors, self._sharded)

    @torch.no_grad()
    def copy_(self, other: Weights) -> Weights:
        """Overwrite these values with ``other``'s, in place; returns ``self``."""
        torch._foreach_copy_(self.tensors, self.aligned_tensors(other))
        return self

    def minus(self, other: Weights) -> Weights:
        """Compute ``self - other`` into new tensors."""
        differences = torch._foreach_sub(self.tensors, self.aligned_tensors(other))
        return Weights(dict(zip(self, differences, strict=True)), self._sharded)

    @torch.no_grad()
    def combine_(self, scale: float, terms: Iterable[tuple[float, Weights]]) -> Weights:
        """Compute ``self <- scale * self + sum_i c_i * W_i`` in place; no memory is allocated."""
        tensors = self.tensors
        torch._foreach_mul_(tensors, scale)
        for coefficient, other in terms:
            torch._foreach_add_(tensors, self.aligned_tensors(other), alpha=coefficient)
        return self

    def _sum(self, values: Iterable[float]) -> float:
        """Sum one number per tensor; those of sharded tensors also over the processes."""
        parts = dict(zip(self, values, strict=True))
        if not self._sharded:
            return math.fsum(parts.values())
        unsharded = math.fsum(value for name, value in parts.items() if name not in self._sharded)
        return unsharded + processes.all_reduce_sum([math.fsum(parts[name] for name in sorted(self._sharded))])[0]

    def l1(self) -> float:
        """Compute the sum of absolute values; sums of tensors are added in double precision."""
        return self._sum(norm.item() for norm in torch._foreach_norm(self.tensors, 1))

    def l2(self) -> float:
        """Compute the Euclidean norm over all entries."""
        return math.sqrt(self._sum(norm.item() ** 2 for norm in torch._foreach_norm(self.tensors, 2)))

    def dot(self, other: Weights) -> float:
        """Compute the inner product over all entries."""
        pairs = zip(self.tensors, self.aligned_tensors(other), strict=True)
        return self._sum((a.flatten() @ b.flatten().to(a.dtype)).item() for a, b in pairs)

    def cosine(self, other: Weights) -> float | None:
        """Compute the cosine of the angle to ``other``; ``None`` when one of the two is zero."""
        norms = self.l2() * other.l2()
        return self.dot(other) / norms if norms > 0 else None

    def kth_largest(self, k: int) -> float:
        """Find the k-th largest entry (from 1) of a non-negative vector, in single precision.

        Nothing is gathered or sorted: the bits of non-negative floats are ordered as the numbers are, so a bisection of
        31 counts, each all-reduced, finds the entry exactly.

        Raises:
            ValueError: ``k`` is below 1 or above the number of entries.
        """
        if not 1 <= k <= self.total:
            raise ValueError(f"k is {k}; it must be from 1 to {self.total}, the number of entries.")
        magnitudes = [tensor.float() for tensor in self.tensors]
        low, high = 0, 0x7F800000  # at least k entries are >= low; fewer are >= high, but for infinities
        while high - low > 1:
            middle = (low + high) // 2
            bound = struct.unpack("<f", struct.pack("<I", middle))[0]
            if self._sum(float((tensor >= bound).sum()) for tensor in magnitudes) >= k:
                low = middle
            else:
                high = middle
        return float(struct.unpack("<f", struct.pack("<I", low))[0])

    def is_finite(self) -> bool:
        """Return whether every entry is a finite number."""
        return math.isfinite(self.l1())
