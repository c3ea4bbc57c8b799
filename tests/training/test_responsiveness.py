"""Gradient responsiveness where its energies can be told by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from merganser.training.trm.responsiveness import FLOOR, Responsiveness

X, V = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64), torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)


def measure(**options: Any) -> tuple[Responsiveness, nn.Parameter, nn.Parameter]:
    """P = sum_i v_i tanh(a x_i) + b: the energy of a is (sum_i v_i x_i (1 - tanh(a x_i)^2))^2 / 3, that of b 1 / 3."""
    a = nn.Parameter(torch.tensor([0.3], dtype=torch.float64))
    b = nn.Parameter(torch.tensor([0.0], dtype=torch.float64))
    unread = nn.Parameter(torch.ones(2, dtype=torch.float64))
    # The probe comes in two parts.
    parts = [lambda: (V[:2] * torch.tanh(a * X[:2])).sum() + b.sum(), lambda: (V[2:] * torch.tanh(a * X[2:])).sum()]
    groups = {"one": ["a"], "two": ["b"], "none": ["unread"]}
    found = Responsiveness({"a": a, "b": b, "unread": unread}, groups, parts, 3, **options)
    found.set_reference()
    return found, a, b


def slope(a: float) -> float:
    """dP / da."""
    return float((V * X * (1 - torch.tanh(a * X) ** 2)).sum())


def curvature(a: float) -> float:
    """d2P / da2."""
    return float((-2 * V * X**2 * torch.tanh(a * X) * (1 - torch.tanh(a * X) ** 2)).sum())


def test_energies_by_hand_and_groups_without_any_are_left_out() -> None:
    found, a, _ = measure()
    assert found.reference == pytest.approx({"one": slope(0.3) ** 2 / 3, "two": 1 / 3})
    assert found.energies(found.gradient())["none"] == 0.0
    assert found.loss_and_gradient() == (0.0, None)  # at the reference nothing is lacking
    with torch.no_grad():
        a.fill_(0.1)
    assert slope(0.1) ** 2 > slope(0.3) ** 2
    assert found.loss_and_gradient() == (0.0, None)  # nor where it is more responsive


@pytest.mark.parametrize("way", ["double_backward", "finite_difference"])
def test_the_hinge_and_its_gradient_by_hand(way: Any) -> None:
    found, a, _ = measure(way=way, kappa=2.0)
    with torch.no_grad():
        a.fill_(0.8)
    value, gradient = found.loss_and_gradient()
    # Group two has the energy it had and lacks log 2; its gradient is constant, so that nothing can be done about it.
    lack = math.log(2 * slope(0.3) ** 2) - math.log(slope(0.8) ** 2)
    assert lack > 0
    assert value == pytest.approx((lack + math.log(2)) / 2)
    assert gradient is not None
    assert gradient["a"].item() == pytest.approx(-curvature(0.8) / slope(0.8), rel=1e-5)
    assert gradient["b"].item() == pytest.approx(0.0, abs=1e-9)
    assert a.item() == 0.8  # the weights are put back exactly


@pytest.mark.parametrize("way", ["double_backward", "finite_difference"])
def test_the_literal_variant_by_hand(way: Any) -> None:
    found, a, _ = measure(way=way)
    with torch.no_grad():
        a.fill_(0.1)
    value, gradient = found.loss_and_gradient(found.literal)
    assert value == pytest.approx(-(slope(0.1) ** 2 / slope(0.3) ** 2 + 1) / 2)
    assert gradient is not None
    assert gradient["a"].item() == pytest.approx(-slope(0.1) * curvature(0.1) / slope(0.3) ** 2, rel=1e-5)


def test_the_scale_of_the_probe_does_not_matter() -> None:
    found, _, _ = measure(kappa=2.0)
    plain = found.hinge({"one": 0.01, "two": 0.2})
    found.reference = {group: 100 * energy for group, energy in found.reference.items()}
    scaled = found.hinge({"one": 1.0, "two": 20.0})
    assert scaled[0] == pytest.approx(plain[0])
    assert scaled[1] == pytest.approx({group: each / 100 for group, each in plain[1].items()})


def test_an_energy_of_zero_has_a_finite_loss() -> None:
    found, _, _ = measure()
    value, slopes = found.hinge({"one": 0.0, "two": 1.0})
    assert value == pytest.approx(-math.log(FLOOR) / 2)
    assert math.isfinite(slopes["one"])
