"""Paired comparisons, against numbers worked out by hand, other implementations and simulation."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from merganser.errors import InputError
from merganser.metrics.paired import examples_needed, holm, mcnemar_p, noise_floor, paired_change, tango_interval


def test_mcnemar_by_hand() -> None:
    """8 lost, 1 gained of 9: 2 (1 + 9) / 2^9."""
    assert mcnemar_p(8, 1) == pytest.approx(20 / 512)
    assert mcnemar_p(0, 0) == 1.0
    assert mcnemar_p(3, 3) == 1.0


def test_tango_interval_solves_its_equation() -> None:
    """The variance under delta by the likelihood equation of the paper, maximised here by a grid."""
    lost, gained, n = 9, 3, 50
    z = 1.959963984540054

    def likelihood(share: float, delta: float) -> float:
        """Of lost, gained and unchanged examples, where ``share`` are lost and ``share + delta`` gained."""
        rest = 1 - 2 * share - delta
        if share <= 0 or share + delta <= 0 or rest <= 0:
            return -math.inf
        return lost * math.log(share) + gained * math.log(share + delta) + (n - lost - gained) * math.log(rest)

    for delta, sign in zip(tango_interval(lost, gained, n), (1, -1), strict=True):
        grid = np.linspace(1e-6, 1, 200_001)
        share = grid[int(np.argmax([likelihood(float(value), delta) for value in grid]))]
        variance = (2 * share + delta - delta**2) / n
        assert ((gained - lost) / n - delta) / math.sqrt(variance) == pytest.approx(sign * z, abs=2e-3)


def test_the_interval_where_nothing_or_everything_changes() -> None:
    """No change in n examples: plus and minus z^2 / (n + z^2)."""
    z2 = 1.959963984540054**2
    low, high = tango_interval(0, 0, 50)
    assert (low, high) == (pytest.approx(-z2 / (50 + z2)), pytest.approx(z2 / (50 + z2)))
    assert tango_interval(50, 0, 50)[0] == -1.0
    assert tango_interval(0, 50, 50)[1] == 1.0
    for lost, gained in product(range(4), range(4)):
        low, high = tango_interval(lost, gained, 6)
        mirrored = tango_interval(gained, lost, 6)
        assert (low, high) == (pytest.approx(-mirrored[1], abs=1e-9), pytest.approx(-mirrored[0], abs=1e-9))
        assert low <= (gained - lost) / 6 <= high


def test_intervals_cover_the_true_change() -> None:
    """Right answers .8, lost .1, gained .04: the change is -.06. And for scores between 0 and 1."""
    rng = np.random.default_rng(1)
    covered = partial = 0
    for seed in range(200):
        draw = rng.random(80)
        before = (draw < 0.84).astype(float)
        after = np.where(draw < 0.1, 0.0, np.where(draw >= 0.96, 1.0, before))
        change = paired_change(before, after)
        covered += change.low <= -0.06 <= change.high
        noisy = paired_change(rng.beta(4, 2, 80), rng.beta(3, 3, 80), seed=seed)
        partial += noisy.low <= 3 / 6 - 4 / 6 <= noisy.high
    assert 0.92 <= covered / 200 <= 0.985
    assert 0.91 <= partial / 200 <= 0.985


def test_the_p_value_is_that_of_a_permutation_test() -> None:
    """Exchanging before and after of each example, all 2^10 ways."""
    before = np.array([1.0, 0.9, 0.8, 1.0, 0.7, 0.6, 0.9, 1.0, 0.5, 0.8])
    after = np.array([0.6, 0.9, 0.5, 0.9, 0.8, 0.2, 0.7, 0.6, 0.5, 0.7])
    differences = after - before
    signs = np.array(list(product((-1, 1), repeat=10)))
    exact = (np.abs((signs * differences).mean(axis=1)) >= abs(differences.mean()) - 1e-12).mean()
    assert paired_change(before, after).p == pytest.approx(exact, abs=0.01)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_how_many_examples_would_tell() -> None:
    """Deviation .3, change -.03, allowed .02: (.3 (1.645 + .842) / .01)^2 = 5,565."""
    before = [1.0] * 100
    after = [1.0] * 94 + [0.5] * 6
    change = paired_change(before, after)
    needed = examples_needed(change, 0.02)
    spread = np.std([0.0] * 94 + [-0.5] * 6)
    assert needed == math.ceil((spread * (1.6448536 + 0.8416212) / 0.01) ** 2)
    assert examples_needed(change, 0.03) is None
    assert noise_floor(change) == pytest.approx(1.959964 * spread / 10)
    # Nothing changed: as much as one changed answer of 100 would vary, .1.
    same = paired_change(before, before)
    assert noise_floor(same) == pytest.approx(1.959964 * 0.1 / 10)
    assert examples_needed(same, 0.02) == math.ceil((0.1 * (1.6448536 + 0.8416212) / 0.02) ** 2)
    one = paired_change([0.5] * 100, [0.5] * 99 + [0.6])
    assert noise_floor(one) == pytest.approx(1.959964 * one.deviation / 10)


def test_what_cannot_be_compared() -> None:
    with pytest.raises(InputError, match="Scores of 2 and of 3 examples cannot be paired"):
        paired_change([1, 0], [1, 0, 1])
    with pytest.raises(InputError, match="not in"):
        paired_change([100.0], [50.0])
    with pytest.raises(InputError, match="Confidence 95"):
        paired_change([1.0], [0.0], confidence=95)
