"""Line search between two models, with the loss of every task approximated by a quadratic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser.merging.tensors import Array, as_arrays

if TYPE_CHECKING:
    from numpy.typing import NDArray

QuadraticTerms = tuple[Array, Array, Array, Array]
"""Of one tensor: displacement ``delta``, ``slope`` of the earlier losses, Fishers ``past`` and ``current``."""


def optimal_interpolation(tensors: Iterable[QuadraticTerms]) -> float:
    r"""Find the ``l`` that minimises the summed losses of all tasks at ``start + l delta``, clipped to [0, 1].

    With the Laplace approximation the loss of task i around its own weights is ``(theta - theta_i)' F_i (theta -
    theta_i) / 2``, F diagonal. The new task's weights are at ``l = 1``; for the earlier ones only ``past = sum F_i``
    and ``slope = sum F_i (start - theta_i)``, the slope of their losses at the start, matter. Setting the derivative to
    zero gives::

        l = (delta' current delta - slope' delta) / (delta' (past + current) delta)

    Source: BECAME (Li et al. 2025, arXiv 2504.02666), see :func:`two_stage_interpolation`; Perturb-and-Merge (Qiu et
    al. 2025, arXiv 2505.22389), with each task's own weights.

    Args:
        tensors: ``(delta, slope, past, current)`` of each tensor, of equal shape; sums are taken in double precision.

    Returns:
        The position ``l`` on the line; 1 where no loss depends on the position (0/0).

    Raises:
        InputError: shapes differ.
    """
    numerator = denominator = 0.0
    for tensor in tensors:
        arrays, _ = as_arrays(tensor)
        delta, slope, past, current = (_flat(array) for array in arrays)
        curvature = float(delta @ (current * delta))
        numerator += curvature - float(slope @ delta)
        denominator += curvature + float(delta @ (past * delta))
    if denominator <= 0.0:
        return 1.0
    return min(1.0, max(0.0, numerator / denominator))


def two_stage_interpolation(
    before: Mapping[str, Array],
    projected: Mapping[str, Array],
    trained: Mapping[str, Array],
    past: Mapping[str, Array],
    current: Mapping[str, Array],
    *,
    drift: bool = True,
) -> float:
    r"""Find BECAME's position between the results of its two stages, clipped to [0, 1] (:func:`optimal_interpolation`).

    With :math:`\delta = \hat\theta - \theta_a`, :math:`\Lambda` the sum of the earlier tasks' diagonal Fishers and F
    the new one's, it is

    .. math:: l = \frac{\delta' F \delta - (\theta_a - m_{t-1})' \Lambda \delta}{\delta' (\Lambda + F) \delta}

    where the previous merged model is taken for the optimum of all earlier tasks. The second term of the numerator, the
    drift of the projected stage, is our derivation; a digest of the paper leaves it out, as if :math:`\theta_a` were
    that optimum.

    Source: BECAME (Li et al. 2025, arXiv 2504.02666).

    Args:
        before: :math:`m_{t-1}` by tensor, where the first stage started.
        projected: :math:`\theta_a`, where the first stage ended.
        trained: :math:`\hat\theta`, where the second stage ended.
        past, current: :math:`\Lambda` and F.
        drift: whether the drift of the first stage counts.

    Returns:
        The position, 0 at ``projected`` and 1 at ``trained``.
    """
    return optimal_interpolation(
        (trained[name] - at, past[name] * (at - before[name] if drift else at * 0), past[name], current[name])
        for name, at in projected.items()
    )


def _flat(array: NDArray[Any]) -> NDArray[np.float64]:
    return array.reshape(-1).astype(np.float64)
