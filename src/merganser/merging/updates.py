r"""LoRA updates along one trajectory as points of one linear space.

An adapter adds :math:`B A` to a layer. The points of a trajectory have different A; with orthonormal rows Q that span
all of them, :math:`B A = N Q` exactly with :math:`N = B A Q^T`. The matrices N of all points form a linear space in
which sums and inner products are those of the updates themselves, and a layer with A = Q and B = N computes any of them
without the full matrix ever existing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def spanning_rows(factors: Sequence[Tensor], tolerance: float = 1e-5) -> Tensor:
    """Orthonormal rows that span the rows of several A.

    Args:
        factors: the A of several adapters of one layer (each rank x inputs).
        tolerance: directions whose singular value is at most this share of the largest are rounding, and left out.

    Returns:
        Rows x inputs, in the factors' type; at most as many rows as all factors have together.
    """
    stacked = torch.cat(list(factors)).double()
    _, values, rows = torch.linalg.svd(stacked, full_matrices=False)
    return rows[values > tolerance * values[0]].to(factors[0])


def coordinates(b: Tensor, a: Tensor, rows: Tensor) -> Tensor:
    """N (outputs x rows) with ``N rows = b a``, for ``rows`` that span those of ``a``."""
    return (b.double() @ (a.double() @ rows.double().T)).to(b)


def factorise(point: Tensor, rows: Tensor, reference: Tensor) -> tuple[Tensor, Tensor, float, float]:
    """The factors of the best approximation of an update by one of a given rank.

    How an update is shared between its factors does not change what the model computes, but how it learns on: so A
    keeps the size of ``reference``, and of all A with orthogonal rows of one length it is the nearest to it.

    Args:
        point: N (outputs x rows).
        rows: orthonormal (rows x inputs).
        reference: an A (rank x inputs); gives rank, size and direction.

    Returns:
        A (rank x inputs), B (outputs x rank), and the squared Frobenius norms of what was cut off and of the update.
    """
    u, values, v = torch.linalg.svd(point.double(), full_matrices=False)
    rank = min(len(reference), len(values))
    leading = v[:rank] @ rows.double()
    wanted = reference.double()
    # Orthogonal Procrustes: the rotation that takes the leading rows nearest to the reference.
    left, _, right = torch.linalg.svd(wanted @ leading.T, full_matrices=False)
    rotation = left @ right
    size = wanted.norm() / len(reference) ** 0.5
    a = size * (rotation @ leading)
    b = (u[:, :rank] * values[:rank]) @ rotation.T / size
    return a.to(reference), b.to(point), float(values[rank:].square().sum()), float(values.square().sum())
