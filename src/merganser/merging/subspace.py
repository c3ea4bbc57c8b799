r"""A model in a small subspace: a point plus a few directions, weighted anew in every group of parameters.

.. math:: m(\alpha)_l = m_l + \sum_k \alpha_{k,l} \, b_{k,l}

The rows :math:`b_{k,l}` are the given directions made orthogonal within each group :math:`l` and as long as the first
of them. They are never formed: every row is a mixture of the directions, so a group needs only the inner products of
its directions (a few numbers), and memory holds each direction once.

The requirement (merging as an optimisation in an augmented trajectory subspace) is that of Wang and Deng 2026,
"Revitalizing the Beginning" (arXiv 2605.08311), stated in its abstract; the formulas here are Merganser's own.
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


def group_of(name: str, grouping: Grouping) -> str:
    """The group of a parameter, by its name.

    ``block``: one group per numbered block of the model (``encoder.layer.3``), one for ``embeddings``, one for the
    ``rest``. ``layer``: one per layer, its bias and both LoRA factors included. ``all``: one.
    """
    if grouping == "all":
        return "all"
    if grouping == "layer":
        return FACTOR.sub("", name) if FACTOR.search(name) else name.rpartition(".")[0]
    parts = name.split(".")
    number = next((place for place, part in enumerate(parts) if part.isdigit()), None)
    if number is not None:
        return ".".join(parts[: number + 1])
    return "embeddings" if EMBEDDING.search(name) else "rest"


def groups_of(names: Sequence[str], grouping: Grouping) -> dict[str, list[str]]:
    """Group -> names of its parameters; both in the order in which they first come."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(group_of(name, grouping), []).append(name)
    return groups


def orthogonal_rows(gram: Tensor, tolerance: float) -> Tensor:
    """Gram-Schmidt on directions of which only the inner products are known.

    Args:
        gram: inner products (directions x directions, float64).
        tolerance: a direction is dropped when what the earlier rows leave of it is at most this share of its length.

    Returns:
        Rows x directions: each row as a mixture of the directions; all rows have the length of the first direction,
        which is itself the first row. No rows when the first direction is zero.
    """
    size = gram[0, 0].clamp(min=0).sqrt()
    rows: list[Tensor] = []
    if size == 0:
        return gram.new_zeros(0, len(gram))
    for place in range(len(gram)):
        row = torch.zeros_like(gram[place])
        row[place] = 1.0
        for _ in range(2):  # once more, for what rounding left
            for other in rows:
                row = row - (other @ gram @ row) / (other @ gram @ other) * other
        length, residual = gram[place, place].clamp(min=0).sqrt(), (row @ gram @ row).clamp(min=0).sqrt()
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
        mixing: group -> its rows as mixtures of the directions (rows x directions, float64).
        displacement: group -> which of its rows is the displacement; a group that did not move has no rows.
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
        """The subspace that directions span, made orthogonal in the order in which they are given.

        Args:
            tolerance: see :func:`orthogonal_rows`.

        Raises:
            ValueError: no direction, or names or shapes that differ from those of ``origin``.
        """
        if not directions:
            raise ValueError("a subspace needs at least one direction")
        for direction in directions:
            origin.matched(direction)
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
        """The coefficients of the plain interpolation ``origin + weight * displacement``."""
        alpha = torch.zeros(self.size, dtype=torch.float64)
        for group, part in self.split(alpha).items():
            if group in self.displacement:
                part[self.displacement[group]] = weight
        return alpha

    def split(self, alpha: Tensor) -> dict[str, Tensor]:
        """Group -> its coefficients (a view)."""
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
        r"""The gradient with respect to :math:`\alpha` from the one with respect to the weights at :math:`m(\alpha)`.

        Inner products with the rows: no graph through the merge, and nothing is allocated.
        """
        gradients = []
        for group, rows in self.mixing.items():
            products = [
                sum(_dot(gradient[name], direction[name]) for name in self.groups[group])
                for direction in self.directions
            ]
            gradients.append(rows @ torch.tensor(products, dtype=torch.float64))
        return torch.cat(gradients)


def _dot(one: Tensor, other: Tensor) -> float:
    return float(one.flatten() @ other.flatten())


def _gram(directions: Sequence[Sequence[Tensor]]) -> Tensor:
    """Inner products of directions, each a list of tensors; in double precision, a tensor at a time."""
    count = len(directions)
    gram = torch.zeros(count, count, dtype=torch.float64)
    for tensors in zip(*directions, strict=True):
        stacked = torch.stack([tensor.flatten().double() for tensor in tensors])
        gram += (stacked @ stacked.T).cpu()
    return gram
