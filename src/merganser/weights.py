"""A model's trainable parameters as a point in space.

:class:`Weights` is an ordered mapping from names to tensors. It never copies unless asked (:meth:`Weights.snapshot`),
works in the tensors' own memory, and on sharded parameters (``DTensor``) works on the local shard: nothing is gathered.
Norms and products are those of the whole vector; the shards' shares are added up over the processes, so that every
process must ask for them at the same time.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from merganser import processes


def local(tensor: Tensor) -> Tensor:
    """The part of ``tensor`` in this process's memory: its local shard if it is distributed, else itself."""
    to_local = getattr(tensor, "to_local", None)
    return to_local() if callable(to_local) else tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether processes hold different parts of ``tensor``."""
    return any(placement.is_shard() for placement in getattr(tensor, "placements", ()))


def shared_like(shard: Tensor, tensor: Tensor) -> Tensor:
    """``shard`` as this process's part of something that is shared out as ``tensor`` is; else itself."""
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
        sharded: names of plain tensors that are this process's shards of larger ones (a ``DTensor`` says so itself).
    """

    def __init__(self, tensors: Mapping[str, Tensor], sharded: Iterable[str] = ()) -> None:
        self._tensors = {name: local(tensor.detach()) for name, tensor in tensors.items()}
        self._sharded = {*sharded, *(name for name, tensor in tensors.items() if is_sharded(tensor))}

    @classmethod
    def of(cls, module: nn.Module) -> Weights:
        """The trainable parameters of ``module``, sharing its memory.

        Raises:
            ValueError: nothing is trainable.
        """
        found = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        if not found:
            raise ValueError(f"{type(module).__name__} has no trainable parameters")
        return cls(found)

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

    def matched(self, other: Weights) -> list[Tensor]:
        """``other``'s tensors in the order of these names.

        Raises:
            ValueError: names or shapes differ; the message names the first that does.
        """
        if self.keys() != other.keys():
            odd = sorted(self.keys() ^ other.keys())
            raise ValueError(f"weights do not match: '{odd[0]}' is in only one of them ({len(odd)} such names)")
        for name, tensor in self.items():
            if tensor.shape != other[name].shape:
                raise ValueError(
                    f"weights do not match: '{name}' is {tuple(tensor.shape)} and {tuple(other[name].shape)}"
                )
        return [other[name] for name in self]

    def snapshot(self) -> Weights:
        """A copy in memory of its own."""
        return Weights({name: tensor.clone() for name, tensor in self.items()}, self._sharded)

    def like(self, tensors: Mapping[str, Tensor]) -> Weights:
        """Other tensors of these names, sharded where these are."""
        return Weights(tensors, self._sharded)

    @torch.no_grad()
    def copy_(self, other: Weights) -> Weights:
        """Overwrite these values with ``other``'s, in place."""
        torch._foreach_copy_(self.tensors, self.matched(other))
        return self

    def minus(self, other: Weights) -> Weights:
        """The difference ``self - other`` in memory of its own."""
        differences = torch._foreach_sub(self.tensors, self.matched(other))
        return Weights(dict(zip(self, differences, strict=True)), self._sharded)

    @torch.no_grad()
    def combine_(self, scale: float, terms: Iterable[tuple[float, Weights]]) -> Weights:
        """In place: ``self <- scale * self + sum_i c_i * W_i``. No memory is allocated."""
        mine = self.tensors
        torch._foreach_mul_(mine, scale)
        for coefficient, other in terms:
            torch._foreach_add_(mine, self.matched(other), alpha=coefficient)
        return self

    def _sum(self, shares: Iterable[float]) -> float:
        """One number per tensor, added up; those of shards also over the processes."""
        parts = dict(zip(self, shares, strict=True))
        if not self._sharded:
            return math.fsum(parts.values())
        whole = math.fsum(value for name, value in parts.items() if name not in self._sharded)
        return whole + processes.all_reduce_sum([math.fsum(parts[name] for name in sorted(self._sharded))])[0]

    def l1(self) -> float:
        """Sum of absolute values; tensors are added up in double precision."""
        return self._sum(norm.item() for norm in torch._foreach_norm(self.tensors, 1))

    def l2(self) -> float:
        """Euclidean norm over all entries."""
        return math.sqrt(self._sum(norm.item() ** 2 for norm in torch._foreach_norm(self.tensors, 2)))

    def dot(self, other: Weights) -> float:
        """Inner product over all entries."""
        pairs = zip(self.tensors, self.matched(other), strict=True)
        return self._sum((a.flatten() @ b.flatten().to(a.dtype)).item() for a, b in pairs)

    def cosine(self, other: Weights) -> float | None:
        """Cosine of the angle between the two; ``None`` when one of them is zero."""
        size = self.l2() * other.l2()
        return self.dot(other) / size if size > 0 else None

    def kth_largest(self, k: int) -> float:
        """The k-th largest entry (from 1) of a vector that has no negative ones, in single precision.

        Nothing is gathered or sorted: the bits of such numbers are ordered as the numbers are, so that 31 counts, each
        added up over the processes, find it exactly.

        Raises:
            ValueError: there are fewer entries.
        """
        if not 1 <= k <= self.total:
            raise ValueError(f"there is no entry {k} of {self.total}")
        single = [tensor.float() for tensor in self.tensors]
        low, high = 0, 0x7F800000  # at least k entries are >= low; fewer are >= high, but for infinities
        while high - low > 1:
            middle = (low + high) // 2
            bound = struct.unpack("<f", struct.pack("<I", middle))[0]
            if self._sum(float((tensor >= bound).sum()) for tensor in single) >= k:
                low = middle
            else:
                high = middle
        return float(struct.unpack("<f", struct.pack("<I", low))[0])

    def is_finite(self) -> bool:
        """Whether every entry is a finite number."""
        return math.isfinite(self.l1())
