"""Low-rank adapters: merges their updates of the weights, not their factors apart.

An adapter adds ``scaling * B A`` to a weight. The sum of several such updates is again a product: factors side by side.
That is exact for every rule that is a weighted sum (linear, task arithmetic, moving average); the rank grows to the sum
of the ranks and can be cut back by a singular value decomposition of a small matrix: with ``B = Q_b R_b`` and ``A' =
Q_a R_a``, the singular values of ``B A`` are those of ``R_b R_a'`` (ranks x ranks). The full matrix never exists.

Rules that look at single entries (TIES, MagMax ...) need the updates themselves, one module at a time, and give one of
full rank, of which the leading part is kept.

Averaging A and B separately (PEFT's ``linear``) gives cross terms ``B_1 A_2`` and is another thing; it is valid where
all adapters share one trajectory, and then done on request (``space="factors"``, AimMerging's own way).
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
        """Columns of ``b`` and rows of ``a``."""
        return int(self.a.shape[0])

    def update(self) -> NDArray[np.float64]:
        """The update as a matrix, ``outputs x inputs``, in double precision."""
        return self.scaling * (self.b.astype(np.float64) @ self.a.astype(np.float64))


def check_factors(name: str, parts: Sequence[Factors]) -> None:
    """Refuse factors whose shapes do not fit together.

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
    """``sum_i c_i scaling_i B_i A_i`` exactly: factors side by side, scaling one, rank the sum of the ranks.

    Args:
        parts: of one module.
        coefficients: one per part.

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
    """The best approximation of an update of at most this rank, and its relative error in the Frobenius norm.

    Through QR of the stacked factors: work and memory grow with ``(outputs + inputs) * rank**2``. The singular values
    are shared evenly between the factors.

    Args:
        factors: ``scaling * b @ a``.
        rank: of the result; at least 1.

    Returns:
        Factors with scaling one, and ``|dW - dW_r| / |dW|`` (0 for a zero update).

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
    return result, _relative(values[kept:], values)


def decompose(update: NDArray[Any], rank: int) -> tuple[Factors, float]:
    """Factors of the best approximation of a full matrix of at most this rank, and its relative error.

    From the eigenvectors of the smaller Gram matrix, of which only the leading ``rank`` are computed; where that is no
    saving, from the whole decomposition.

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
        return Factors(v[:kept] * root[:, None], u[:, :kept] * root), _relative(values[kept:], values)
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
    rest = float(np.linalg.norm(matrix - result.update()))
    return result, rest / norm if norm > 0.0 else 0.0


def inner(first: Factors, second: Factors) -> float:
    """Inner product of two updates of one module, from their factors."""
    scaling = first.scaling * second.scaling
    left, right = first.b.T.astype(np.float64) @ second.b, first.a.astype(np.float64) @ second.a.T
    return scaling * float((left * right).sum())


def _check_rank(rank: int) -> None:
    if rank < 1:
        raise InputError(f"The rank is {rank}.", "It is at least 1.")


def _check_finite(*arrays: NDArray[Any]) -> None:
    if not all(np.isfinite(array).all() for array in arrays):
        raise InputError(
            "An update that holds NaN or infinity cannot be truncated to a rank.",
            "Repair the adapter; only weighted sums without a rank accept such numbers.",
        )


def _relative(rest: NDArray[Any], values: NDArray[Any]) -> float:
    norm = float(np.linalg.norm(values))
    return float(np.linalg.norm(rest)) / norm if norm > 0.0 else 0.0


def coefficients_of(rule: Rule, arguments: Mapping[str, Any], count: int) -> list[float] | None:
    """The coefficient of each of ``count`` updates under a rule that is a weighted sum; ``None`` for other rules."""
    if not rule.linear or rule.prepare is None:
        return None
    nothing = [np.zeros(1, np.float32)] * count
    plan = rule.prepare(ArrayInputs(nothing, nothing[0]), **arguments)
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
        parts: per adapter; ``None``: it does not touch the module (its update is zero).
        rule: any rule of the table that needs no second tensor; the base's update is zero.
        arguments: of the rule's function.
        rank: of the result at most; ``None`` keeps the exact one.

    Returns:
        The merged factors (scaling one), and the truncation error (0 where nothing was cut).

    Raises:
        InputError: shapes that differ; no rank for a rule whose result has full rank.
    """
    result_rank(name, parts, rule, arguments, rank)
    present = [part for part in parts if part is not None]
    weights = coefficients_of(rule, arguments, len(parts))
    if weights is not None:
        return _weighted(parts, weights, rank)
    zero = np.zeros((present[0].b.shape[0], present[0].a.shape[1]), np.float32)
    updates = [zero if part is None else part.update().astype(np.float32) for part in parts]
    weights = _depends_on_angles(updates, zero, rule, arguments)
    if weights is not None:
        return _weighted(parts, weights, rank)
    assert rank is not None
    positional: list[Any] = [updates] if rule.base == "none" else [updates, zero]
    return decompose(rule.function(*positional, **arguments), rank)


def result_rank(
    name: str, parts: Sequence[Factors | None], rule: Rule, arguments: Mapping[str, Any], rank: int | None = None
) -> int:
    """The rank that :func:`merge_updates` gives, without computing it.

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
    """Whether the rule is a weighted sum, whatever its coefficients depend on."""
    nothing = np.zeros((1, 1), np.float32)
    coefficients = _depends_on_angles([nothing] * count, nothing, rule, arguments)
    return rule.linear or coefficients is not None


def _weighted(parts: Sequence[Factors | None], weights: Sequence[float], rank: int | None) -> tuple[Factors, float]:
    """The weighted sum of the updates, cut to a rank where one is given."""
    used = [(part, weight) for part, weight in zip(parts, weights, strict=True) if part is not None]
    stacked = concatenate([part for part, _ in used], [weight for _, weight in used])
    if rank is None or stacked.rank <= rank:
        return stacked, 0.0
    return truncate(stacked, rank)


def _depends_on_angles(
    updates: list[NDArray[Any]], zero: NDArray[Any], rule: Rule, arguments: Mapping[str, Any]
) -> list[float] | None:
    """Coefficients of a rule that is a weighted sum once it knows the inner products (slerp, Karcher, model stock)."""
    if rule.prepare is None or rule.apply is not combine:
        return None
    plan = rule.prepare(ArrayInputs(updates, None if rule.base == "none" else zero), **arguments)
    return None if plan is None else [float(coefficient) for coefficient in plan.coefficients]


def fit(name: str, factors: Factors, largest: float) -> Factors:
    """Factors whose numbers a storage type can hold: where one would overflow, ``a`` and ``b`` share the scale.

    A column of ``b`` is divided, and its row of ``a`` multiplied, by a power of two, which changes no digit of their
    product. Columns that fit stay as they are, and so does what is not finite.

    Args:
        name: of the module, for messages.
        factors: ``scaling * b @ a``.
        largest: number of the type.

    Raises:
        InputError: they do not fit even so; names the module.
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
            f"The factors of {name} are larger than {largest:g}, which the type of the result holds.",
            "Choose a wider one: --dtype float32, dtype: float32 in the file.",
        )
    scale = np.ones(factors.rank)
    scale[over] = np.exp2(np.rint((np.log2(b) - np.log2(a)) / 2))
    return replace(factors, a=factors.a * scale[:, None], b=factors.b / scale)


def check_alike(name: str, parts: Sequence[Factors | None], rule: Rule) -> int:
    """Refuse what :func:`merge_factors` cannot merge; the rank that all have.

    Raises:
        InputError: an adapter does not touch the module, ranks or scalings differ, or the rule needs a second tensor.
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
    """Merge A and B apart: for adapters that share one trajectory.

    Raises:
        InputError: see :func:`check_alike`.
    """
    check_alike(name, parts, rule)
    present = [part for part in parts if part is not None]

    def merged(tensors: list[NDArray[Any]]) -> NDArray[Any]:
        positional: list[Any] = [tensors] if rule.base == "none" else [tensors, np.zeros_like(tensors[0])]
        result: NDArray[Any] = rule.function(*positional, **arguments)
        return result

    whole = replace(present[0], a=merged([part.a for part in present]), b=merged([part.b for part in present]))
    return whole, 0.0
