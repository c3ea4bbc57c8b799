r"""A model in a small subspace: a point plus a few directions, with coefficients per group of parameters.

.. math:: m(\alpha)_l = m_l + \sum_k \alpha_{k,l} \, b_{k,l}

The rows :math:`b_{k,l}` are the directions made orthogonal within each group :math:`l`, with the length of the first
of them. They are never formed: every row is a linear combination of the directions, so a group needs only the inner
products of its directions, and memory holds each direction once.

Source of the idea (merging as an optimisation in an augmented trajectory subspace): Wang and Deng 2026, "Revitalizing
the Beginning" (arXiv 2605.08311, abstract); the formulas here are Merganser's own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from merganser.weights import Weights

Grouping = Literal["block", "layer", "all"]

EMBEDDING = re.compile(r"embed|(^|\.)(shared|wte|wpe)(\.|$)")
FACTOR = re.compile(r"\.lora_[AB]\..*$")


def parameter_group(name: str, grouping: Grouping) -> str:
    """Return the group of a parameter, by its name.

    ``block``: one group per numbered block of the model (``encoder.layer.3``), one for ``embeddings``, one for the
    ``rest``. ``layer``: one per layer, its bias and both LoRA factors included. ``all``: one.
    """
    if grouping == "all":
        return "all"
    if grouping == "layer":
        return FACTOR.sub("", name) if FACTOR.search(name) else name.rpartition(".")[0]
    parts = name.split(".")
    number = next((index for index, part in enumerate(parts) if part.isdigit()), None)
    if number is not None:
        return ".".join(parts[: number + 1])
    return "embeddings" if EMBEDDING.search(name) else "rest"


def group_parameters(names: Sequence[str], grouping: Grouping) -> dict[str, list[str]]:
    """Map each group to the names of its parameters; both in order of first occurrence."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(parameter_group(name, grouping), []).append(name)
    return groups


def orthogonal_rows(gram: Tensor, tolerance: float) -> Tensor:
    """Orthogonalise directions by Gram-Schmidt from their inner products alone.

    Args:
        gram: inner products (directions x directions, float64).
        tolerance: a direction is dropped when its residual after the earlier rows is at most this part of its length.

    Returns:
        Rows x directions: each row's coefficients in the directions; all rows have the length of the first direction,
        which is the first row. No rows when the first direction is zero.
    """
    size = gram[0, 0].clamp(min=0).sqrt()
    rows: list[Tensor] = []
    if size == 0:
        return gram.new_zeros(0, len(gram))
    for index in range(len(gram)):
        row = torch.zeros_like(gram[index])
        row[index] = 1.0
        for _ in range(2):  # the second pass removes rounding errors of the first
            for earlier in rows:
                row = row - (earlier @ gram @ row) / (earlier @ gram @ earlier) * earlier
        length, residual = gram[index, index].clamp(min=0).sqrt(), (row @ gram @ row).clamp(min=0).sqrt()
        if residual > tolerance * length:
            rows.append(row * (size / residual))
    return torch.stack(rows)


@dataclass(frozen=True, eq=False)
class Subspace:
    r"""The points :math:`m(\alpha)`.

    :math:`\alpha` is one vector in float64: the coefficients of the first group's rows, then those of the next.

    Attributes:
        origin: :math:`m`.
        directions: differences to ``origin`` in full length, the displacement of the task first.
        groups: group -> names of its parameters; together all names.
        mixing: group -> coefficients of its rows in the directions (rows x directions, float64).
        displacement: group -> index of the row that is the displacement; a group that did not change has no rows.
    """

    origin: Weights
    directions: Sequence[Weights]
    groups: Mapping[str, Sequence[str]]
    mixing: Mapping[str, Tensor]
    displacement: Mapping[str, int]

    @classmethod
    def span(
        cls,
        origin: Weights,
        directions: Sequence[Weights],
        groups: Mapping[str, Sequence[str]],
        tolerance: float = 1e-3,
    ) -> Subspace:
        """Span a subspace by directions, orthogonalised in their order.

        Args:
            origin, directions, groups: as in the attributes.
            tolerance: see :func:`orthogonal_rows`.

        Raises:
            ValueError: no direction, or names or shapes that differ from those of ``origin``.
        """
        if not directions:
            raise ValueError("A subspace needs at least one direction.")
        for direction in directions:
            origin.aligned_tensors(direction)
        mixing = {
            group: orthogonal_rows(_gram([[direction[name] for name in names] for direction in directions]), tolerance)
            for group, names in groups.items()
        }
        return cls(origin, directions, groups, mixing, {group: 0 for group, rows in mixing.items() if len(rows)})

    @property
    def size(self) -> int:
        """Number of coefficients."""
        return sum(len(rows) for rows in self.mixing.values())

    def start(self, weight: float) -> Tensor:
        """Return the coefficients of the plain interpolation ``origin + weight * displacement``."""
        alpha = torch.zeros(self.size, dtype=torch.float64)
        for group, part in self.split(alpha).items():
            if group in self.displacement:
                part[self.displacement[group]] = weight
        return alpha

    def split(self, alpha: Tensor) -> dict[str, Tensor]:
        """Map each group to its coefficients (views)."""
        parts = alpha.split([len(rows) for rows in self.mixing.values()])
        return dict(zip(self.mixing, parts, strict=True))

    @torch.no_grad()
    def materialize_(self, alpha: Tensor, target: Weights) -> None:
        r"""Write :math:`m(\alpha)` into ``target``, in place."""
        target.copy_(self.origin)
        for group, part in self.split(alpha).items():
            names = self.groups[group]
            for coefficient, direction in zip((part @ self.mixing[group]).tolist(), self.directions, strict=True):
                if coefficient:
                    torch._foreach_add_(
                        [target[name] for name in names], [direction[name] for name in names], alpha=coefficient
                    )

    def project_gradient(self, gradient: Weights) -> Tensor:
        r"""Compute the gradient by :math:`\alpha` from the gradient by the weights at :math:`m(\alpha)`.

        It consists of inner products with the rows: no graph through the merge, no copies of the weights.
        """
        gradients = []
        for group, rows in self.mixing.items():
            products = [
                sum(_dot(gradient[name], direction[name]) for name in self.groups[group])
                for direction in self.directions
            ]
            gradients.append(rows @ torch.tensor(products, dtype=torch.float64))
        return torch.cat(gradients)


def _dot(first: Tensor, second: Tensor) -> float:
    return float(first.flatten() @ second.flatten())


def _gram(directions: Sequence[Sequence[Tensor]]) -> Tensor:
    """Compute inner products of directions (lists of tensors) in double precision, tensor by tensor."""
    count = len(directions)
    gram = torch.zeros(count, count, dtype=torch.float64)
    for tensors in zip(*directions, strict=True):
        stacked = torch.stack([tensor.flatten().double() for tensor in tensors])
        gram += (stacked @ stacked.T).cpu()
    return gram
