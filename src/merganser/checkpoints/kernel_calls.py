"""Call the compiled kernels: convert the plan of a rule to the arrays and numbers that a kernel takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser.checkpoints import kernels
from merganser.checkpoints.kernels import STORAGE
from merganser.merging.combine import Combination
from merganser.merging.elect import Election
from merganser.merging.magmax import MagMaxPlan
from merganser.merging.trim import ALL, NONE

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["STORAGE", "kernel_of", "scan"]

_KEEPS_ALL = 1 << 53
_DROPS_NONE = np.nan


def kernel_of(plan: Any, source: str, target: str) -> Callable[[NDArray[Any], int, NDArray[Any]], bool] | None:
    """Select the kernel equivalent to a plan's ``apply``; ``None`` where there is none.

    Args:
        plan: from a rule's ``prepare``.
        source, target: storage types, keys of :data:`STORAGE`.

    Returns:
        ``call(rows, start, out)``, which returns whether an input or a result may be NaN or infinite.
    """
    types = kernels.Types(kernels.CODES[source], kernels.CODES[target])
    if isinstance(plan, Combination):
        coefficients = plan.coefficients.astype(np.float32)
        return lambda rows, start, out: kernels.combine(rows, coefficients, plan.deltas, types, out)
    if isinstance(plan, MagMaxPlan):
        scale = np.float32(plan.scale)
        return lambda rows, start, out: kernels.magmax(rows, scale, types, out)
    if isinstance(plan, Election):
        models, signs = _models(plan), _signs(plan)
        return lambda rows, start, out: kernels.elect(rows, start, models, signs, types, out)
    return None


def _models(plan: Election) -> NDArray[Any]:
    models = np.empty(len(plan.sparsity), dtype=kernels.MODEL)
    for model, weight, sparsity in zip(models, plan.weights, plan.sparsity, strict=True):
        threshold, outliers = sparsity.threshold or ALL, sparsity.outliers
        model["weight"], model["factor"] = weight, sparsity.factor
        model["threshold"], model["threshold_index"] = threshold.magnitude, threshold.index
        model["outlier"] = _DROPS_NONE if outliers is NONE else outliers.magnitude
        model["outlier_index"] = outliers.index
        model["key"] = sparsity.key
        model["limit"] = _KEEPS_ALL if sparsity.limit is None else sparsity.limit
    return models


def _signs(plan: Election) -> kernels.Signs:
    divisor = np.float32(float(np.sum(plan.weights, dtype=np.float64)))
    normalize = plan.normalize and (plan.elect or abs(float(divisor)) >= 1e-8)
    return kernels.Signs(plan.elect, normalize, divisor, np.float32(plan.scale))


def scan(
    row: NDArray[Any],
    base: NDArray[Any],
    start: int,
    bracket: tuple[float, float, float],
    source: str,
    values: NDArray[np.float32],
    indices: NDArray[np.int64],
) -> tuple[int, int, int]:
    """Run :func:`merganser.checkpoints.kernels.scan`."""
    ends = np.array(bracket, np.float32)
    above, at_middle, collected = kernels.scan(row, base, start, ends, kernels.CODES[source], values, indices)
    return above, at_middle, collected
