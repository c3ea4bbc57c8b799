r"""LoRA updates along one trajectory as points of one linear space.

An adapter adds :math:`B A` to a layer. The points of a trajectory have different A; with orthonormal rows Q that span
all of them, :math:`B A = N Q` exactly with :math:`N = B A Q^T`. Sums and inner products of the matrices N equal those
of the updates, and a layer with A = Q and B = N applies any of them: the full matrix is never formed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def spanning_rows(factors: Sequence[Tensor], tolerance: float = 1e-5) -> Tensor:
    """Compute orthonormal rows that span the rows of several A.

    Args:
        factors: the A of several adapters of one layer (each rank x inputs).
        tolerance: directions whose singular value is at most this part of the largest are dropped as rounding noise.

    Returns:
        Rows x inputs, in the factors' type; at most as many rows as all factors have together.
    """
    stacked = torch.cat(list(factors)).double()
    _, values, rows = torch.linalg.svd(stacked, full_matrices=False)
    return rows[values > tolerance * values[0]].to(factors[0])


def to_coordinates(b: Tensor, a: Tensor, rows: Tensor) -> Tensor:
    """Compute N (outputs x rows) with ``N rows = b a``, for ``rows`` that span those of ``a``."""
    return (b.double() @ (a.double() @ rows.double().T)).to(b)


def factorise(point: Tensor, rows: Tensor, reference: Tensor) -> tuple[Tensor, Tensor, float, float]:
    """Factorise the best approximation of an update that has the rank of ``reference``.

    The split of an update into factors does not change the model's outputs, but it changes how training continues. So A
    keeps the norm of ``reference``; of all A with orthogonal rows of equal length it is the nearest to ``reference``.

    Args:
        point: N (outputs x rows).
        rows: orthonormal (rows x inputs).
        reference: an A (rank x inputs) that determines rank, norm and orientation.

    Returns:
        A (rank x inputs), B (outputs x rank), and the squared Frobenius norms of the truncated part and of the update.
    """
    u, values, v = torch.linalg.svd(point.double(), full_matrices=False)
    rank = min(len(reference), len(values))
    leading = v[:rank] @ rows.double()
    target = reference.double()
    # Orthogonal Procrustes: the rotation that brings the leading rows nearest to the reference.
    left, _, right = torch.linalg.svd(target @ leading.T, full_matrices=False)
    rotation = left @ right
    row_norm = target.norm() / len(reference) ** 0.5
    a = row_norm * (rotation @ leading)
    b = (u[:, :rank] * values[:rank]) @ rotation.T / row_norm
    return a.to(reference), b.to(point), float(values[rank:].square().sum()), float(values.square().sum())
