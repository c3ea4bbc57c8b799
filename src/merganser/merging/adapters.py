"""Merge low-rank adapters by their weight updates ``B A``, or by their factors A and B separately.

An adapter adds ``scaling * B A`` to a weight. The sum of several such updates is again a product: the concatenated
factors. That is exact for every rule that is a weighted sum (linear, task arithmetic, moving average). The rank grows
to the sum of the ranks and is truncated by a singular value decomposition of a small matrix: with ``B = Q_b R_b`` and
``A' = Q_a R_a``, the singular values of ``B A`` are those of ``R_b R_a'`` (ranks x ranks). The full matrix is never
formed.

Entry-wise rules (TIES, MagMax ...) need the full updates, one module at a time. Their result has full rank, and its
best approximation of the given rank is kept.

Averaging A and B separately (PEFT's ``linear``) adds cross terms ``B_1 A_2``. It is valid for adapters that share one
trajectory, as AimMerging's do, and is done only on request (``space="factors"``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser.errors import InputError
from merganser.merging.combine import Combination, combine
from merganser.merging.rule import Rule
from merganser.merging.tensors import ArrayInputs

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Factors:
    """The update of one weight by an adapter: ``scaling * b @ a``.

    Attributes:
        a: ``rank x inputs`` (for a convolution: inputs times the kernel's size).
        b: ``outputs x rank``.
        scaling: ``alpha / rank``, or ``alpha / sqrt(rank)`` for rank-stabilised adapters.
    """

    a: NDArray[Any]
    b: NDArray[Any]
    scaling: float = 1.0

    @property
    def rank(self) -> int:
        """Number of columns of ``b`` and of rows of ``a``."""
        return int(self.a.shape[0])

    def update(self) -> NDArray[np.float64]:
        """Compute the update as a matrix, ``outputs x inputs``, in double precision."""
        return self.scaling * (self.b.astype(np.float64) @ self.a.astype(np.float64))


def check_factors(name: str, parts: Sequence[Factors]) -> None:
    """Refuse factors whose shapes do not match.

    Raises:
        InputError: ranks of a and b that differ, or updates of different shapes; names the module.
    """
    for part in parts:
        if part.a.ndim != 2 or part.b.ndim != 2 or part.b.shape[1] != part.a.shape[0]:
            raise InputError(
                f"The factors of {name} are {list(part.a.shape)} and {list(part.b.shape)}.", "Check the adapter's file."
            )
    shapes = {(part.b.shape[0], part.a.shape[1]) for part in parts}
    if len(shapes) > 1:
        listed = " and ".join(f"{rows} x {columns}" for rows, columns in sorted(shapes))
        raise InputError(f"Module {name} is {listed} in different adapters.", "They belong to different models.")


def concatenate(parts: Sequence[Factors], coefficients: Sequence[float]) -> Factors:
    """Compute ``sum_i c_i scaling_i B_i A_i`` exactly by concatenation; the rank is the sum of the ranks.

    Args:
        parts: the factors of one module in several adapters.
        coefficients: one per part.

    Returns:
        Factors with scaling 1, in double precision.

    Raises:
        InputError: shapes that differ.
    """
    check_factors("the module", parts)
    a = np.concatenate([part.a.astype(np.float64) for part in parts])
    b = np.concatenate(
        [part.b.astype(np.float64) * (c * part.scaling) for part, c in zip(parts, coefficients, strict=True)], axis=1
    )
    return Factors(a, b)


def truncate(factors: Factors, rank: int) -> tuple[Factors, float]:
    """Truncate an update to a rank: its best approximation, and the relative error in the Frobenius norm.

    Work grows with ``(outputs + inputs) * rank**2``: the factors are QR-decomposed, never multiplied out. Each factor
    of the result has the roots of the singular values.

    Args:
        factors: ``scaling * b @ a``.
        rank: largest rank of the result; at least 1.

    Returns:
        Factors with scaling 1, and ``|dW - dW_r| / |dW|`` (0 for a zero update).

    Raises:
        InputError: the rank is below 1, or a value is not finite.
    """
    _check_rank(rank)
    _check_finite(factors.a, factors.b)
    left, upper_left = np.linalg.qr(factors.b.astype(np.float64) * factors.scaling)
    right, upper_right = np.linalg.qr(factors.a.astype(np.float64).T)
    u, values, v = np.linalg.svd(upper_left @ upper_right.T, full_matrices=False)
    kept = min(rank, len(values))
    root = np.sqrt(values[:kept])
    result = Factors((v[:kept] * root[:, None]) @ right.T, left @ (u[:, :kept] * root))
    return result, _relative_error(values[kept:], values)


def decompose(update: NDArray[Any], rank: int) -> tuple[Factors, float]:
    """Factorise the best approximation of a full matrix of at most this rank.

    Only the leading ``rank`` eigenvectors of the smaller Gram matrix are computed; small matrices are decomposed
    whole.

    Args:
        update: ``outputs x inputs``.
        rank: largest rank of the result; at least 1.

    Returns:
        Factors with scaling 1, and the relative error in the Frobenius norm (0 for a zero update).

    Raises:
        InputError: the rank is below 1, or a value is not finite.
    """
    _check_rank(rank)
    _check_finite(update)
    matrix = update.astype(np.float64)
    if min(matrix.shape) <= 4 * rank or min(matrix.shape) <= 128:
        u, values, v = np.linalg.svd(matrix, full_matrices=False)
        kept = min(rank, len(values))
        root = np.sqrt(values[:kept])
        return Factors(v[:kept] * root[:, None], u[:, :kept] * root), _relative_error(values[kept:], values)
    from scipy.linalg import eigh

    wide = matrix.shape[0] <= matrix.shape[1]
    gram = matrix @ matrix.T if wide else matrix.T @ matrix
    size = len(gram)
    squares, vectors = eigh(gram, subset_by_index=[size - rank, size - 1])
    vectors = vectors[:, ::-1]
    values = np.sqrt(np.maximum(squares[::-1], 0.0))
    root = np.sqrt(values)
    inverse = np.divide(1.0, root, out=np.zeros_like(root), where=root > 0)
    if wide:
        result = Factors((vectors * inverse).T @ matrix, vectors * root)
    else:
        result = Factors((vectors * root).T, matrix @ (vectors * inverse))
    norm = float(np.linalg.norm(matrix))
    residual = float(np.linalg.norm(matrix - result.update()))
    return result, residual / norm if norm > 0.0 else 0.0


def inner_product(first: Factors, second: Factors) -> float:
    """Compute the inner product of two updates of one module from their factors."""
    scaling = first.scaling * second.scaling
    left, right = first.b.T.astype(np.float64) @ second.b, first.a.astype(np.float64) @ second.a.T
    return scaling * float((left * right).sum())


def _check_rank(rank: int) -> None:
    if rank < 1:
        raise InputError(f"The rank is {rank}.", "Use at least 1.")


def _check_finite(*arrays: NDArray[Any]) -> None:
    if not all(np.isfinite(array).all() for array in arrays):
        raise InputError(
            "An update that holds NaN or infinity cannot be truncated to a rank.",
            "Repair the adapter; only weighted sums without a rank accept such numbers.",
        )


def _relative_error(dropped: NDArray[Any], values: NDArray[Any]) -> float:
    norm = float(np.linalg.norm(values))
    return float(np.linalg.norm(dropped)) / norm if norm > 0.0 else 0.0


def rule_coefficients(rule: Rule, arguments: Mapping[str, Any], count: int) -> list[float] | None:
    """Return a linear rule's coefficients of ``count`` updates; ``None`` for other rules."""
    if not rule.linear or rule.prepare is None:
        return None
    placeholders = [np.zeros(1, np.float32)] * count
    plan = rule.prepare(ArrayInputs(placeholders, placeholders[0]), **arguments)
    assert isinstance(plan, Combination)
    return [float(coefficient) for coefficient in plan.coefficients]


def merge_updates(
    name: str,
    parts: Sequence[Factors | None],
    rule: Rule,
    arguments: Mapping[str, Any],
    rank: int | None = None,
) -> tuple[Factors, float]:
    """Merge the updates of one module by several adapters.

    Args:
        name: of the module, for messages and random masks.
        parts: one per adapter; ``None``: it has no factors for the module (its update is zero).
        rule: a rule that needs no second tensor per model; the base's update is zero.
        arguments: of the rule's function.
        rank: largest rank of the result; ``None`` keeps the exact one.

    Returns:
        The merged factors (scaling 1), and the relative truncation error (0 where nothing was truncated).

    Raises:
        InputError: shapes that differ; no rank for a rule whose result has full rank.
    """
    result_rank(name, parts, rule, arguments, rank)
    present = [part for part in parts if part is not None]
    weights = rule_coefficients(rule, arguments, len(parts))
    if weights is not None:
        return _weighted_sum(parts, weights, rank)
    zero = np.zeros((present[0].b.shape[0], present[0].a.shape[1]), np.float32)
    updates = [zero if part is None else part.update().astype(np.float32) for part in parts]
    weights = _computed_coefficients(updates, zero, rule, arguments)
    if weights is not None:
        return _weighted_sum(parts, weights, rank)
    assert rank is not None
    positional: list[Any] = [updates] if rule.base == "none" else [updates, zero]
    return decompose(rule.function(*positional, **arguments), rank)


def result_rank(
    name: str, parts: Sequence[Factors | None], rule: Rule, arguments: Mapping[str, Any], rank: int | None = None
) -> int:
    """Return the rank of :func:`merge_updates`'s result without computing it.

    Raises:
        InputError: what :func:`merge_updates` refuses.
    """
    present = [part for part in parts if part is not None]
    check_factors(name, present)
    if rule.extra:
        raise InputError(f"The rule {rule.name} needs a {rule.extra} file.", "It cannot merge adapters.")
    limits = [present[0].b.shape[0], present[0].a.shape[1]]
    if _is_sum(rule, arguments, len(parts)):
        stacked = sum(part.rank for part in present)
        return stacked if rank is None or stacked <= rank else min(rank, *limits)
    if rank is None:
        raise InputError(
            f"The rule {rule.name} gives {name} an update of full rank.",
            "Give the rank to keep: --rank, or rank: in the file.",
        )
    return min(rank, *limits)


def _is_sum(rule: Rule, arguments: Mapping[str, Any], count: int) -> bool:
    """Return whether the rule is a weighted sum, be its coefficients fixed or computed from the updates."""
    placeholder = np.zeros((1, 1), np.float32)
    coefficients = _computed_coefficients([placeholder] * count, placeholder, rule, arguments)
    return rule.linear or coefficients is not None


def _weighted_sum(parts: Sequence[Factors | None], weights: Sequence[float], rank: int | None) -> tuple[Factors, float]:
    """Add the weighted updates, and truncate the sum if a rank is given."""
    used = [(part, weight) for part, weight in zip(parts, weights, strict=True) if part is not None]
    stacked = concatenate([part for part, _ in used], [weight for _, weight in used])
    if rank is None or stacked.rank <= rank:
        return stacked, 0.0
    return truncate(stacked, rank)


def _computed_coefficients(
    updates: list[NDArray[Any]], zero: NDArray[Any], rule: Rule, arguments: Mapping[str, Any]
) -> list[float] | None:
    """Compute the coefficients of a rule that depend on inner products (slerp, Karcher mean, model stock)."""
    if rule.prepare is None or rule.apply is not combine:
        return None
    plan = rule.prepare(ArrayInputs(updates, None if rule.base == "none" else zero), **arguments)
    return None if plan is None else [float(coefficient) for coefficient in plan.coefficients]


def rescale_to_fit(name: str, factors: Factors, largest: float) -> Factors:
    """Rescale factors so that their numbers fit a storage type; their product stays the same.

    Where a number would overflow, a column of ``b`` is divided and its row of ``a`` multiplied by a power of two, which
    is exact. Other columns, and those that are not finite, are unchanged.

    Args:
        name: of the module, for messages.
        factors: ``scaling * b @ a``.
        largest: number of the type.

    Raises:
        InputError: no scale makes them fit; names the module.
    """
    tops = [np.abs(factors.b).max(axis=0), np.abs(factors.a).max(axis=1)]
    b, a = (top.astype(np.float64) for top in tops)
    over = (np.maximum(a, b) > largest) & np.isfinite(a) & np.isfinite(b)
    if not over.any():
        return factors
    # A row of zeros takes any scale.
    b, a = np.maximum(b[over], 2.0**-500), np.maximum(a[over], 2.0**-500)
    if (np.sqrt(a) * np.sqrt(b) > largest / 2).any():
        raise InputError(
            f"The factors of {name} are larger than {largest:g}, the largest number of the result's type.",
            "Choose a wider type: --dtype float32, dtype: float32 in the file.",
        )
    scale = np.ones(factors.rank)
    scale[over] = np.exp2(np.rint((np.log2(b) - np.log2(a)) / 2))
    return replace(factors, a=factors.a * scale[:, None], b=factors.b / scale)


def check_equal_ranks(name: str, parts: Sequence[Factors | None], rule: Rule) -> int:
    """Refuse what :func:`merge_factors` cannot merge, and return the rank that all adapters have.

    Raises:
        InputError: an adapter has no factors for the module, ranks or scalings differ, or the rule needs a second
            tensor per model.
    """
    present = [part for part in parts if part is not None]
    if len(present) != len(parts):
        raise InputError(f"Not every adapter has {name}.", "Merge in the space of updates: space: update.")
    check_factors(name, present)
    if len({(part.rank, part.scaling) for part in present}) > 1:
        listed = ", ".join(f"rank {part.rank} scaling {part.scaling:g}" for part in present)
        raise InputError(f"The factors of {name} differ: {listed}.", "Merge in the space of updates: space: update.")
    if rule.extra:
        raise InputError(f"The rule {rule.name} needs a {rule.extra} file.", "It cannot merge adapters.")
    return present[0].rank


def merge_factors(
    name: str, parts: Sequence[Factors | None], rule: Rule, arguments: Mapping[str, Any]
) -> tuple[Factors, float]:
    """Merge A and B separately, for adapters that share one trajectory.

    Returns:
        The merged factors with the adapters' scaling, and 0.0, the truncation error.

    Raises:
        InputError: see :func:`check_equal_ranks`.
    """
    check_equal_ranks(name, parts, rule)
    present = [part for part in parts if part is not None]

    def merge(tensors: list[NDArray[Any]]) -> NDArray[Any]:
        positional: list[Any] = [tensors] if rule.base == "none" else [tensors, np.zeros_like(tensors[0])]
        result: NDArray[Any] = rule.function(*positional, **arguments)
        return result

    result = replace(present[0], a=merge([part.a for part in present]), b=merge([part.b for part in present]))
    return result, 0.0
