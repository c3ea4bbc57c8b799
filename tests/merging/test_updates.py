"""LoRA updates as points of one linear space."""

from __future__ import annotations

import pytest
import torch

from merganser.merging.adapters import Factors, concatenate, truncate
from merganser.merging.updates import factorise, spanning_rows, to_coordinates

OUT, IN, RANK = 7, 9, 2


def factors(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(RANK, IN, generator=generator), torch.randn(OUT, RANK, generator=generator)


def test_points_stand_for_their_updates_and_sums_for_sums() -> None:
    (a, b), (c, d) = factors(0), factors(1)
    rows = spanning_rows([a, c])
    assert torch.allclose(rows @ rows.T, torch.eye(4), atol=1e-6)
    one, other = to_coordinates(b, a, rows), to_coordinates(d, c, rows)
    assert torch.allclose(one @ rows, b @ a, atol=1e-5)
    assert torch.allclose((0.3 * one + 0.7 * other) @ rows, 0.3 * b @ a + 0.7 * d @ c, atol=1e-5)
    assert float((one * other).sum()) == pytest.approx(float(((b @ a) * (d @ c)).sum()), rel=1e-4)


def test_rows_that_are_rounding_are_left_out() -> None:
    a, _ = factors(0)
    assert len(spanning_rows([a, a * 1.0000001, 2 * a])) == RANK


def test_an_update_of_the_rank_is_kept_whole_and_a_keeps_its_size() -> None:
    a, b = factors(0)
    rows = spanning_rows([a, factors(1)[0]])
    a_new, b_new, rest, whole = factorise(to_coordinates(b, a, rows), rows, a)
    assert torch.allclose(b_new @ a_new, b @ a, atol=1e-5)
    assert rest / whole < 1e-10
    assert float(a_new.norm()) == pytest.approx(float(a.norm()), rel=1e-5)
    assert float((a_new * a).sum()) > 0.5 * float(a.norm()) ** 2


def test_the_cut_is_the_best_of_its_rank() -> None:
    (a, b), (c, d) = factors(0), factors(1)
    rows = spanning_rows([a, c])
    point = 0.5 * to_coordinates(b, a, rows) + 0.5 * to_coordinates(d, c, rows)
    a_new, b_new, rest, whole = factorise(point, rows, a)
    stacked = concatenate([Factors(a.numpy(), b.numpy()), Factors(c.numpy(), d.numpy())], [0.5, 0.5])
    best, error = truncate(stacked, RANK)
    assert (rest / whole) ** 0.5 == pytest.approx(error, rel=1e-4)
    assert torch.allclose((b_new @ a_new).double(), torch.from_numpy(best.update()), atol=1e-4)


def test_an_update_of_zero_leaves_factors_that_can_learn() -> None:
    a, _ = factors(0)
    rows = spanning_rows([a])
    a_new, b_new, rest, whole = factorise(torch.zeros(OUT, len(rows)), rows, a)
    assert torch.count_nonzero(b_new) == 0
    assert float(a_new.norm()) == pytest.approx(float(a.norm()), rel=1e-5)
    assert (rest, whole) == (0.0, 0.0)
