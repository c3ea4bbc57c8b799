r"""Gradient responsiveness: how strongly changes of the weights still change the model's outputs.

Per group of parameters :math:`G_l(\theta) = |\nabla_l P(\theta)|^2 / n` with a scalar probe
:math:`P(\theta) = \sum_i \langle v_i, \phi_\theta(x_i) \rangle` over n examples and fixed independent random vectors
:math:`v_i`: one backward pass estimates the energy of the Jacobian, without labels. The loss

.. math:: L = \frac{1}{|l|} \sum_l \max(0, \log \kappa G_l(\theta_{ref}) - \log G_l(\theta))

has no scale and no effect once every group is as responsive as at the reference. Its gradient needs one Hessian-vector
product for all groups together. Source of the idea: Wang and Deng 2026 (arXiv 2605.08311, abstract); the
formulas are Merganser's own.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from merganser.weights import Weights

Scalar = Callable[[], Tensor]
"""A part of the probe: a sum over some examples at the current weights."""

HvpMethod = Literal["finite_difference", "double_backward"]

FLOOR = 1e-12
"""Energies are raised to at least this fraction of the reference: the logarithm of zero does not exist."""


class Responsiveness:
    """Measures a model's responsiveness against that at reference weights.

    Args:
        parameters: name -> trained parameter of the model.
        groups: group -> names of its parameters; parameters in no group are not measured.
        parts: the probe, as terms of a sum; each is evaluated at the current weights and must be deterministic.
        examples: n, over all parts.
        kappa: required energy, as a multiple of the reference's.
        way: how a Hessian-vector product is computed.
        step: of the central difference, relative to the norm of the weights that it moves, each tensor weighted by the
            part of the direction that lies in it.
    """

    def __init__(
        self,
        parameters: Mapping[str, torch.nn.Parameter],
        groups: Mapping[str, Sequence[str]],
        parts: Sequence[Scalar],
        examples: int,
        *,
        kappa: float = 1.0,
        way: HvpMethod = "double_backward",
        step: float = 3e-4,
    ) -> None:
        self.parameters = dict(parameters)
        self.groups = groups
        self.parts = parts
        self.examples = examples
        self.kappa = kappa
        self.way = way
        self.step = step
        self.reference: dict[str, float] = {}

    def gradient(self) -> Weights:
        """Return the gradient of the probe at the current weights."""
        total = {name: torch.zeros_like(parameter) for name, parameter in self.parameters.items()}
        for part in self.parts:
            for name, gradient in self._gradients(part(), create_graph=False).items():
                total[name] += gradient
        return Weights(total)

    def energies(self, gradient: Weights) -> dict[str, float]:
        """Map each group to its G, from the gradient of the probe."""
        return {
            group: math.fsum(float(gradient[name].double().square().sum()) for name in names) / self.examples
            for group, names in self.groups.items()
        }

    def set_reference(self) -> None:
        """Make the current weights the reference; groups with no gradient are left out."""
        energies = self.energies(self.gradient())
        self.reference = {group: energy for group, energy in energies.items() if energy > 0}

    def hinge(self, energies: Mapping[str, float]) -> tuple[float, dict[str, float]]:
        """Return the loss of the module docstring, and group -> its derivative with respect to the group's energy."""
        loss, slopes = 0.0, {}
        for group, reference in self.reference.items():
            energy = max(energies[group], FLOOR * reference)
            lack = math.log(self.kappa * reference) - math.log(energy)
            if lack > 0:
                loss += lack / len(self.reference)
                slopes[group] = -1.0 / (len(self.reference) * energy)
        return loss, slopes

    def literal(self, energies: Mapping[str, float]) -> tuple[float, dict[str, float]]:
        """Return minus the mean over groups of G / G_ref, unbounded: maximises the squared gradient itself."""
        share = 1.0 / len(self.reference) if self.reference else 0.0
        loss = -share * sum(energies[group] / reference for group, reference in self.reference.items())
        return loss, {group: -share / reference for group, reference in self.reference.items()}

    def loss_and_gradient(
        self, loss: Callable[[Mapping[str, float]], tuple[float, dict[str, float]]] | None = None
    ) -> tuple[float, Weights | None]:
        """Return the loss at the current weights, and its gradient with respect to them; ``None`` where it is zero.

        Args:
            loss: :meth:`hinge` (the default) or :meth:`literal`.
        """
        gradient = self.gradient()
        value, slopes = (loss or self.hinge)(self.energies(gradient))
        direction = {
            name: gradient[name] * (2.0 * slopes[group] / self.examples)
            for group, names in self.groups.items()
            if group in slopes
            for name in names
        }
        return value, self.hessian_times(direction) if direction else None

    def hessian_times(self, direction: Mapping[str, Tensor]) -> Weights:
        """Return the Hessian of the probe times a vector that is zero where ``direction`` has no entry."""
        return self._twice(direction) if self.way == "double_backward" else self._difference(direction)

    def _twice(self, direction: Mapping[str, Tensor]) -> Weights:
        """Differentiate the gradient's inner product with the direction."""
        total = {name: torch.zeros_like(parameter) for name, parameter in self.parameters.items()}
        # Of the attention kernels only the plain one can be differentiated twice.
        with sdpa_kernel(SDPBackend.MATH):
            for part in self.parts:
                first = self._gradients(part(), create_graph=True)
                product = torch.stack([(first[name] * vector).sum() for name, vector in direction.items()]).sum()
                if not product.requires_grad:  # the probe is linear in the weights
                    continue
                for name, gradient in self._gradients(product, create_graph=False).items():
                    total[name] += gradient
        return Weights(total)

    def _difference(self, direction: Mapping[str, Tensor]) -> Weights:
        """Take a central difference of the gradient along the direction; the weights are restored.

        Wrong where the gradient jumps between the two points, as with ReLU: the difference contains the jump, the
        Hessian does not.
        """
        moved = Weights({name: self.parameters[name] for name in direction})
        vector = Weights(direction)
        length = vector.l2()
        # Directions are concentrated in a few small tensors: a step relative to the norm of all weights is too long.
        weighted_squares = math.fsum(float(v.norm() * moved[name].norm()) ** 2 for name, v in vector.items())
        size = self.step * (math.sqrt(weighted_squares) / length or 1.0)
        original = moved.snapshot()
        with contextlib.ExitStack() as stack:
            stack.callback(moved.copy_, original)
            moved.combine_(1.0, [(size / length, vector)])
            ahead = self.gradient()
            moved.copy_(original).combine_(1.0, [(-size / length, vector)])
            behind = self.gradient()
        return ahead.combine_(length / (2 * size), [(-length / (2 * size), behind)])

    def _gradients(self, value: Tensor, create_graph: bool) -> dict[str, Tensor]:
        """Map each name to the gradient of ``value``; zero where it does not depend on a parameter."""
        gradients = torch.autograd.grad(
            value,
            list(self.parameters.values()),
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )
        return dict(zip(self.parameters, gradients, strict=True))
