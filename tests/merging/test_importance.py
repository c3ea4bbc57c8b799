"""Recurrent-KIF's fusion: by hand, and against a transcription that goes entry by entry."""

from __future__ import annotations

import pytest
import torch

from merganser.merging.importance import importance_masks, merge_by_importance
from merganser.weights import Weights


def weights(**tensors: list[float]) -> Weights:
    return Weights({name: torch.tensor(values) for name, values in tensors.items()})


def test_by_hand() -> None:
    start, middle = weights(a=[0.0, 0.0, 0.0, 0.0]), weights(a=[1.0, 1.0, 1.0, 1.0])
    current = weights(a=[3.0, 3.0, 3.0, 3.0])  # new update 1, old update 2
    new = {"a": torch.tensor([True, True, False, False])}
    old = {"a": torch.tensor([True, False, True, False])}
    mean = merge_by_importance(current, start, middle, new, old)
    # Both: 0.4 + 0.6 * 2; new alone: 1; old alone: 2; neither: 0.5 + 0.5 * 2.
    assert current["a"].tolist() == pytest.approx([1.6, 1.0, 2.0, 1.5])
    assert mean == pytest.approx((0.4 + 1 + 0 + 0.5) / 4)


def test_the_share_is_of_all_tensors_together() -> None:
    scores = weights(a=[5.0, 0.0, 1.0], b=[4.0, 3.0, 0.0, 0.0, 2.0, 0.5, 0.25])
    top = importance_masks(scores, 0.2)
    assert (top["a"].tolist(), top["b"].tolist()) == ([True, False, False], [True] + [False] * 6)
    # Entries that equal the last one count, too; those of score 0 never do.
    ties = importance_masks(weights(a=[1.0, 1.0, 1.0, 0.0]), 0.25)
    assert ties["a"].tolist() == [True, True, True, False]
    assert not importance_masks(weights(a=[0.0, 0.0]), 1.0)["a"].any()
    with pytest.raises(ValueError, match="fraction is 0"):
        importance_masks(scores, 0.0)


@pytest.mark.parametrize("seed", range(5))
def test_against_a_transcription_entry_by_entry(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw() -> dict[str, torch.Tensor]:
        return {n: torch.randn(shape, generator=generator) for n, shape in (("a", (3, 4)), ("b", (8,)))}

    theta0, theta_k, theta_m = draw(), draw(), draw()
    new, old = ({name: value.abs() for name, value in draw().items()} for _ in range(2))
    tops = []
    for scores in (new, old):
        ordered = sorted((float(v) for t in scores.values() for v in t.flatten()), reverse=True)
        tops.append(ordered[4 - 1])  # 20 % of 20
    expected = {}
    for name in theta0:
        flat = []
        for o, k, m, i_new, i_old in zip(
            *(each[name].flatten().tolist() for each in (theta0, theta_k, theta_m, new, old)), strict=True
        ):
            if i_new >= tops[0] and i_old >= tops[1]:
                flat.append(o + 0.4 * (k - o) + 0.6 * (m - k))
            elif i_new >= tops[0]:
                flat.append(k)
            elif i_old >= tops[1]:
                flat.append(o + m - k)
            else:
                flat.append(o + 0.5 * (k - o) + 0.5 * (m - k))
        expected[name] = torch.tensor(flat)
    masks = [importance_masks(Weights(scores), 0.2) for scores in (new, old)]
    assert [int(sum(mask.sum() for mask in each.values())) for each in masks] == [4, 4]
    current = Weights(theta_m).snapshot()
    merge_by_importance(current, Weights(theta0), Weights(theta_k), *masks)
    for name, value in current.items():
        assert torch.allclose(value.flatten(), expected[name], atol=1e-6)


def test_kth_largest_is_that_of_a_sorted_vector() -> None:
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0)) * torch.logspace(-30, 30, 1000)
    found = Weights({"a": values[:300], "b": values[300:]})
    ordered = values.sort(descending=True).values.tolist()
    for k in (1, 2, 200, 999, 1000):
        assert found.kth_largest(k) == ordered[k - 1]
    assert found.total == 1000
    with pytest.raises(ValueError, match="k is 1001; it must be from 1 to 1000"):
        found.kth_largest(1001)
    assert Weights({"a": torch.zeros(3)}).kth_largest(2) == 0.0
