"""The space in which weights are merged: the weights themselves, or the updates BA of LoRA factors."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from merganser.merging.updates import factorise, spanning_rows, to_coordinates
from merganser.weights import Weights

A, B = ".lora_A.", ".lora_B."


class MergeSpace(ABC):
    """A linear space with a point for every state of the trained weights.

    Attributes:
        truncation: relative Frobenius error of the weights after :meth:`opened`, against the point that they
            represent.
    """

    truncation = 0.0

    @abstractmethod
    def point(self, weights: Weights) -> Weights:
        """Return the point of trained weights; it may share their memory, so do not write to it."""

    @abstractmethod
    def tangent(self, at: Weights, direction: Weights) -> Weights:
        """Return the direction in which the point moves when the weights ``at`` move in ``direction``."""

    @abstractmethod
    def measured(self, names: Sequence[str]) -> list[str]:
        """Select the coordinates on which responsiveness is measured."""

    @contextmanager
    @abstractmethod
    def opened(self) -> Iterator[dict[str, nn.Parameter]]:
        """Make the model compute with coordinates of a point inside, and yield them: name -> parameter.

        On exit the weights become the point of the parameters' final values; after an error they are restored.
        """


class PlainSpace(MergeSpace):
    """The trained weights themselves; of LoRA, the factors A and B each on its own."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def point(self, weights: Weights) -> Weights:
        return weights

    def tangent(self, at: Weights, direction: Weights) -> Weights:
        return direction

    def measured(self, names: Sequence[str]) -> list[str]:
        # A fresh adapter has B = 0, so the gradient of A vanishes by construction whatever was merged.
        return [name for name in names if A not in name]

    @contextmanager
    def opened(self) -> Iterator[dict[str, nn.Parameter]]:
        weights = Weights.of(self.module)
        kept = weights.snapshot()
        try:
            yield {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        except BaseException:
            weights.copy_(kept)
            raise


class UpdateSpace(MergeSpace):
    """The updates BA of a LoRA model, each divided by the layer's scaling.

    Every layer's updates are expressed over one set of orthonormal rows (see :mod:`merganser.merging.updates`), and
    while the space is open the layer has these rows as its A and the coordinates as its B. At the end the update is
    truncated to the rank of the adapter.

    Args:
        module: all its trained parameters are LoRA factors.
        points: states of the weights whose updates, and
        directions: directions of the weights whose tangents, are to lie in the space.
        reference: the state whose A the resulting A approximates.

    Raises:
        ValueError: a trained parameter is not a LoRA factor.
    """

    def __init__(
        self, module: nn.Module, points: Sequence[Weights], reference: Weights, directions: Sequence[Weights] = ()
    ) -> None:
        self.module = module
        self.reference = reference
        other = [name for name in reference if A not in name and B not in name]
        if other:
            raise ValueError(f"'{other[0]}' is trained, but is not a LoRA factor.")
        spanning = [*points, reference, *directions]
        self.rows = {
            name.replace(A, B): spanning_rows([state[name] for state in spanning]) for name in reference if A in name
        }

    def point(self, weights: Weights) -> Weights:
        return Weights({b: to_coordinates(weights[b], weights[b.replace(B, A)], rows) for b, rows in self.rows.items()})

    def tangent(self, at: Weights, direction: Weights) -> Weights:
        moved = {}
        for b, rows in self.rows.items():
            a = b.replace(B, A)
            moved[b] = to_coordinates(direction[b], at[a], rows) + to_coordinates(at[b], direction[a], rows)
        return Weights(moved)

    def measured(self, names: Sequence[str]) -> list[str]:
        return list(names)

    @contextmanager
    def opened(self) -> Iterator[dict[str, nn.Parameter]]:
        factors = dict(self.module.named_parameters())
        originals = {factor: factors[factor] for name in self.rows for factor in (name, name.replace(B, A))}
        free = {b: nn.Parameter(point.clone()) for b, point in self.point(Weights(originals)).items()}
        try:
            for b, rows in self.rows.items():
                _layer(self.module, b).weight = free[b]
                _layer(self.module, b.replace(B, A)).weight = nn.Parameter(rows, requires_grad=False)
            yield free
        finally:
            for name, parameter in originals.items():
                _layer(self.module, name).weight = parameter
        self._deploy(Weights(free), originals)

    @torch.no_grad()
    def _deploy(self, point: Weights, factors: Mapping[str, Tensor]) -> None:
        truncated, total = [], []
        for b, rows in self.rows.items():
            name = b.replace(B, A)
            a_new, b_new, truncated_norm, norm = factorise(point[b], rows, self.reference[name])
            factors[name].copy_(a_new)
            factors[b].copy_(b_new)
            truncated.append(truncated_norm)
            total.append(norm)
        self.truncation = math.sqrt(math.fsum(truncated) / math.fsum(total)) if math.fsum(total) > 0 else 0.0


def _layer(module: nn.Module, parameter: str) -> nn.Module:
    return module.get_submodule(parameter.removesuffix(".weight"))
