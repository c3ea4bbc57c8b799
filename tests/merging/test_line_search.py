"""The best share of the way between two models, against a grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from merganser.errors import InputError
from merganser.merging.line_search import optimal_interpolation


def test_the_share_minimises_the_sum_of_parabolas() -> None:
    generator = np.random.default_rng(4)
    start, end, *earlier = generator.normal(size=(4, 2, 5))
    fishers = generator.uniform(size=(3, 2, 5))
    past = fishers[0] + fishers[1]
    pull = fishers[0] * (start - earlier[0]) + fishers[1] * (start - earlier[1])

    def loss(share: float) -> float:
        at = start + share * (end - start)
        points = zip([*earlier, end], fishers, strict=True)
        return float(sum((information * (at - own) ** 2).sum() for own, information in points))

    parts = [(end[i] - start[i], pull[i], past[i], fishers[2][i]) for i in range(2)]
    share = optimal_interpolation(parts)
    grid = np.linspace(0, 1, 10_001)
    assert 0 < share < 1
    assert share == pytest.approx(grid[np.argmin([loss(point) for point in grid])], abs=1e-4)


def test_by_hand() -> None:
    one, zero = torch.ones(1), torch.zeros(1)
    # Equal Fishers, the start is the optimum of the past: half way. Three times the past's: a quarter.
    assert optimal_interpolation([(one, zero, one, one)]) == pytest.approx(0.5)
    assert optimal_interpolation([(one, zero, 3 * one, one)]) == pytest.approx(0.25)
    # The projected part already cost the past something, in the same direction: less; far enough: nothing.
    assert optimal_interpolation([(one, one / 2, one, one)]) == pytest.approx(0.25)
    assert optimal_interpolation([(one, 5 * one, one, one)]) == 0
    # The past pulls the same way: all of it, never more.
    assert optimal_interpolation([(one, -5 * one, one, one)]) == 1
    # Nobody minds.
    assert optimal_interpolation([(one, zero, zero, zero)]) == 1
    assert optimal_interpolation([]) == 1


def test_shapes_must_agree() -> None:
    with pytest.raises(InputError, match="shape"):
        optimal_interpolation([(np.ones(2), np.ones(2), np.ones(3), np.ones(2))])
