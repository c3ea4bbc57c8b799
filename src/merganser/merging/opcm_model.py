"""OPCM of a whole model: LoRA modules by the products of their factors, other tensors one by one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser.merging.adapters import Factors, inner_product, truncate
from merganser.merging.opcm import OpcmState, fold, fold_factors
from merganser.merging.tensors import like, to_work

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class OpcmSizes:
    """Sums over the tensors of a model: of the new update ``tau``, the merged update ``M`` before it, and both.

    Attributes:
        new, old, product: ``|tau|^2``, ``|M|^2`` and ``<tau, M>``.
        error: largest relative error of a merged update that is deployed at the adapter's rank.
    """

    new: float = 0.0
    old: float = 0.0
    product: float = 0.0
    error: float = 0.0

    def add(self, new: float, old: float, product: float, error: float = 0.0) -> None:
        """Add the numbers of one tensor."""
        self.new, self.old, self.product = self.new + new, self.old + old, self.product + product
        self.error = max(self.error, error)

    def norms(self) -> tuple[float, float, float | None]:
        """Return ``|tau|``, ``|M|`` and the cosine between them; ``None`` where one is zero."""
        new, old = math.sqrt(self.new), math.sqrt(self.old)
        return new, old, self.product / (new * old) if new * old > 0 else None


@dataclass
class OpcmModel:
    """The state that OPCM keeps of a model between tasks.

    Attributes:
        numbers: tensor, or the factor A of a module -> ``lambda_t`` and the mean norm of the updates.
        factors: factor A of a module -> the exact merged update as factors, of any rank.
    """

    numbers: dict[str, tuple[float, float]] = field(default_factory=dict)
    factors: dict[str, Factors] = field(default_factory=dict)

    def merge(
        self,
        index: int,
        current: Mapping[str, Tensor],
        origin: Mapping[str, Tensor],
        before: Mapping[str, Tensor],
        share_of_spectrum: float,
    ) -> OpcmSizes:
        """Merge a task into the model, in place.

        Args:
            index: 1-based position of the task.
            current: weights after the task; they become the deployed ones.
            origin: the pretrained weights, from which the task was trained.
            before: the weights deployed before.
            share_of_spectrum: see :func:`merganser.merging.opcm.opcm`.
        """
        sizes = OpcmSizes()
        for name, value in current.items():
            b_name = name.replace(".lora_A.", ".lora_B.")
            if name != b_name and b_name in current:
                sizes.add(*self._merge_module(index, name, value, current[b_name], share_of_spectrum))
            elif ".lora_B." not in name:
                sizes.add(*self._merge_tensor(index, name, value, origin[name], before[name], share_of_spectrum))
        return sizes

    def _state(self, index: int, name: str, update: Any) -> OpcmState | None:
        """Return the stored state of a tensor with its merged update; ``None`` before the second task."""
        if index == 1:
            return None
        scale, norm = self.numbers[name]
        return OpcmState(update, scale, norm, index - 1)

    def _merge_tensor(
        self, index: int, name: str, value: Tensor, origin: Tensor, before: Tensor, share_of_spectrum: float
    ) -> tuple[float, float, float]:
        """Merge one tensor in place; return its terms of the sums."""
        base = to_work(origin)
        update, merged = to_work(value) - base, to_work(before) - base
        kept = fold(self._state(index, name, merged), update, share_of_spectrum=share_of_spectrum)
        self.numbers[name] = kept.scale, kept.mean_norm
        value.copy_(like(base + kept.update, value))
        return float((update**2).sum()), float((merged**2).sum()), float((update * merged).sum())

    def _merge_module(
        self, index: int, name: str, a: Tensor, b: Tensor, share_of_spectrum: float
    ) -> tuple[float, float, float, float]:
        """Merge one pair of factors in place; return its terms of the sums and the error of the deployed rank."""
        import torch

        update = Factors(a.detach().float().cpu().numpy().astype(np.float64), b.detach().float().cpu().numpy())
        merged, state = self.factors.get(name), self._state(index, name, None)
        previous = None if merged is None or state is None else (merged, state)
        factors, kept = fold_factors(previous, update, share_of_spectrum=share_of_spectrum)
        # Rounded as they are stored, so that a resumed run continues from the same numbers.
        self.factors[name] = Factors(factors.a.astype(np.float32), factors.b.astype(np.float32))
        self.numbers[name] = kept.scale, kept.mean_norm
        deployed, error = truncate(self.factors[name], update.rank)
        with torch.no_grad():
            a.zero_()[: deployed.rank].copy_(torch.from_numpy(deployed.a))
            b.zero_()[:, : deployed.rank].copy_(torch.from_numpy(deployed.b))
        products = (inner_product(merged, merged), inner_product(update, merged)) if merged is not None else (0.0, 0.0)
        return inner_product(update, update), *products, error
