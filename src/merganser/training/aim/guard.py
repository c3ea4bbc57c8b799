"""Refusal of harmful merges, and restoring the optimizer after one."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

FLOOR = 0.1
"""Losses are raised to at least this (nats): a multiple of a loss near 0 does not measure harm."""

Losses = tuple[float | None, float | None]
"""On the new task and on the memory, ``None`` where not measured."""


class OptimizerCopy:
    """A copy of an optimizer's moments to restore; with sharded weights those of the local shards.

    Args:
        optimizer: any, also wrapped by accelerate.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
        self._held: dict[Any, dict[str, Any]] = {
            parameter: {
                key: value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)
                for key, value in moments.items()
            }
            for parameter, moments in self._optimizer.state.items()
        }

    def restore(self) -> None:
        """Restore the copy; moments of parameters that had none are dropped."""
        state = self._optimizer.state
        state.clear()
        state.update(self._held)

    def empty(self) -> None:
        """Let the optimizer begin anew, as before its first step."""
        self._optimizer.state.clear()


def refusal(before: Losses, after: Losses, finite: bool, factor: float | None) -> str | None:
    """Return why a merge is refused; ``None``: it is applied.

    Args:
        before, after: the losses (nats) before the rehearsal and after the merge, on the same batches.
        finite: whether all merged weights are finite.
        factor: the merge is refused where it multiplies a loss by more than this; losses below :data:`FLOOR` count as
            that. ``None``: only where a loss is not finite.
    """
    if not finite:
        return "the weights are not finite"
    for name, first, last in zip(("the new task", "the memory"), before, after, strict=True):
        if last is None:
            continue
        if not math.isfinite(last):
            return f"the loss on {name} became {last}"
        if factor is not None and first is not None and last > factor * max(first, FLOOR):
            return f"the loss on {name} rose from {first:.4g} to {last:.4g}, more than {factor:g} times"
    return None
