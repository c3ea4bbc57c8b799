"""OPCM: project each new update away from the updates merged before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser.merging.adapters import Factors, truncate
from merganser.merging.rule import Parameter, Rule
from merganser.merging.tensors import Array, as_arrays, fractions_per_model, like, to_work

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHARE_OF_SPECTRUM = 0.5
"""Fraction of the merged spectrum that is protected."""


@dataclass(frozen=True, eq=False)
class OpcmState:
    """The state that OPCM keeps of one tensor between tasks.

    Attributes:
        update: ``m_t - theta_0``.
        scale: ``lambda_t``.
        mean_norm: running mean of the Frobenius norms of the updates.
        count: number of tasks merged.
    """

    update: NDArray[Any]
    scale: float
    mean_norm: float
    count: int


def opcm(models: Sequence[Array], base: Array, *, share_of_spectrum: float = SHARE_OF_SPECTRUM) -> Array:
    """Compute ``m_t = theta_0 + (lambda_{t-1} M + P(tau_t)) / lambda_t``, ``M = m_{t-1} - theta_0``, task by task.

    Source: Tang et al. 2025, Merging models on the fly without retraining (OPCM), arXiv 2501.09522. For a matrix,
    ``M = U S V'``, ``Q = U' tau V``; P zeroes diag(Q) and its top-left r x r block, r the leading singular values whose
    cumulative fraction stays within ``share_of_spectrum``. Other tensors are added unprojected. ``lambda_t`` makes
    ``|m_t - theta_0|`` the running mean of ``|tau_i|``, here per tensor (fusion_bench: over the whole model).
    Weights: none.

    Args:
        models: tensors of equal shape, each fine-tuned from the base, in the order of their tasks.
        base: the pre-trained model.
        share_of_spectrum: fraction of the merged spectrum that is protected.

    Returns:
        A tensor of the first model's shape and type.

    Raises:
        InputError: shapes differ, or the fraction is outside [0, 1].
    """
    arrays, base_array = as_arrays(models, base)
    assert base_array is not None
    merged: OpcmState | None = None
    for array in arrays:
        merged = fold(merged, array - base_array, share_of_spectrum=share_of_spectrum)
    assert merged is not None
    return like(base_array + merged.update, models[0])


def fold(merged: OpcmState | None, update: Array, *, share_of_spectrum: float = SHARE_OF_SPECTRUM) -> OpcmState:
    """Merge one more task into the state: :func:`opcm` is this, model by model.

    Args:
        merged: the state before; ``None`` for the first task.
        update: ``theta_t - theta_0``.
        share_of_spectrum: see :func:`opcm`.

    Raises:
        InputError: the fraction is outside [0, 1].
    """
    (protected,) = fractions_per_model([share_of_spectrum], 1, "share_of_spectrum")
    tau = to_work(update)
    norm = float(np.linalg.norm(tau.astype(np.float64)))
    if merged is None:
        return OpcmState(tau.copy(), 1.0, norm, 1)
    count = merged.count + 1
    mean_norm = merged.mean_norm + (norm - merged.mean_norm) / count
    projected = project(merged.update, tau, protected) if tau.ndim == 2 and tau.size else tau
    total = merged.update * tau.dtype.type(merged.scale) + projected
    length = float(np.linalg.norm(total.astype(np.float64)))
    # Updates that cancel cannot be scaled; with a mean norm of zero no update was ever nonzero.
    scale = length / mean_norm if length > 0.0 and mean_norm > 0.0 else merged.scale
    return OpcmState(total / tau.dtype.type(scale), scale, mean_norm, count)


def project(merged: NDArray[Any], update: NDArray[Any], protected: float) -> NDArray[Any]:
    """Remove from an update its components along the leading directions of the merged update.

    Only the removed part of Q is computed, so the thin factors suffice: ``tau - U_k R V_k'``.
    """
    left, spectrum, right = np.linalg.svd(merged, full_matrices=False)
    total = float(spectrum.sum())
    if total == 0.0:
        return update
    # Singular vectors of value zero (a low-rank update has many) are arbitrary: components along them stay.
    nonzero = spectrum > spectrum[0] * max(merged.shape) * np.finfo(merged.dtype).eps
    left, spectrum, right = left[:, nonzero], spectrum[nonzero], right[nonzero]
    rank = int(np.count_nonzero(np.cumsum(spectrum, dtype=np.float64) / total <= protected))
    inner = left.T @ update @ right.T
    removed = np.diag(np.diag(inner))
    removed[:rank, :rank] = inner[:rank, :rank]
    return update - left @ removed @ right


def fold_factors(
    merged: tuple[Factors, OpcmState] | None, update: Factors, *, share_of_spectrum: float = SHARE_OF_SPECTRUM
) -> tuple[Factors, OpcmState]:
    """Fold updates given as factors, as :func:`fold`, exactly: the full matrices never exist.

    In an orthonormal basis of the space that the factors of both span, the updates are small
    square matrices (size: sum of the ranks) with the same singular values, angles and norms, which are folded.

    Args:
        merged: the result for the previous task; ``None`` for the first task.
        update: the new task's update of one module.
        share_of_spectrum: see :func:`opcm`.

    Returns:
        The factors of ``m_t - theta_0``, of rank at most the sum of the ranks, and the state (its
        ``update`` is the small matrix).

    Raises:
        InputError: the fraction is outside [0, 1].
    """
    previous = None if merged is None else merged[0]
    parts = [update] if previous is None else [previous, update]
    left, upper_left = np.linalg.qr(np.concatenate([part.b * part.scaling for part in parts], axis=1, dtype=np.float64))
    right, upper_right = np.linalg.qr(np.concatenate([part.a.T for part in parts], axis=1, dtype=np.float64))
    split = 0 if previous is None else previous.rank
    new = upper_left[:, split:] @ upper_right[:, split:].T
    old = None if merged is None else replace(merged[1], update=upper_left[:, :split] @ upper_right[:, :split].T)
    state = fold(old, new, share_of_spectrum=share_of_spectrum)
    spectrum = np.linalg.svd(state.update, compute_uv=False)
    rank = int(np.count_nonzero(spectrum > spectrum[0] * max(len(left), len(right)) * np.finfo(np.float32).eps))
    small, _ = truncate(Factors(state.update, np.eye(len(state.update))), max(1, rank))
    return Factors(small.a @ right.T, left @ small.b), state


RULE = Rule(
    name="opcm",
    function=opcm,
    summary="each update projected away from those merged before",
    source="OPCM, arXiv 2501.09522",
    base="required",
    options=(
        Parameter(
            "share_of_spectrum", SHARE_OF_SPECTRUM, "fraction of the merged spectrum that is protected", 0.0, 1.0
        ),
    ),
)
