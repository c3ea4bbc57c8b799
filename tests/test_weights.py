"""Weights as one vector, and AimMerging's merge on them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from merganser.merging.trajectory import merge_two_phases
from merganser.weights import Weights


def weights(*values: list[float]) -> Weights:
    return Weights({f"w{i}": torch.tensor(v, dtype=torch.float64) for i, v in enumerate(values)})


def test_norms_and_products_by_hand() -> None:
    a, b = weights([3.0, -4.0], [12.0]), weights([1.0, 1.0], [2.0])
    assert a.l1() == 19
    assert a.l2() == 13
    assert a.dot(b) == 23
    assert a.cosine(a) == pytest.approx(1)
    assert a.cosine(weights([0.0, 0.0], [0.0])) is None
    assert a.minus(b)["w0"].tolist() == [2.0, -5.0]
    assert (a.numel, a.nbytes, len(a), list(a)) == (3, 24, 2, ["w0", "w1"])


def test_only_trainable_parameters_and_in_the_models_own_memory() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model[0].weight.requires_grad_(False)
    found = Weights.of(model)
    assert list(found) == ["0.bias", "1.weight", "1.bias"]
    snapshot = found.snapshot()
    with torch.no_grad():
        model[1].weight.add_(1.0)
    assert found.minus(snapshot).l1() == pytest.approx(2.0)  # two entries of one each
    found.copy_(snapshot)
    assert torch.equal(model[1].weight, snapshot["1.weight"])
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameters"):
        Weights.of(model)


def test_combining_allocates_nothing_and_keeps_the_memory() -> None:
    a, b = weights([1.0, 2.0]), weights([10.0, 20.0])
    place = a["w0"].data_ptr()
    a.combine_(2.0, [(0.5, b)])
    assert a["w0"].tolist() == [7.0, 14.0]
    assert a["w0"].data_ptr() == place


def test_differences_in_names_and_shapes_are_named() -> None:
    with pytest.raises(ValueError, match="'w1' is in only one"):
        weights([1.0]).minus(weights([1.0], [2.0]))
    with pytest.raises(ValueError, match=r"'w0' is \(1,\) and \(2,\)"):
        weights([1.0]).minus(weights([1.0, 2.0]))


def test_finiteness() -> None:
    assert weights([1.0]).is_finite()
    assert not weights([1.0, float("nan")]).is_finite()
    assert not weights([float("inf")]).is_finite()


vector = st.lists(st.floats(-10, 10), min_size=4, max_size=4)
share = st.floats(0, 1)


@given(start=vector, middle=vector, end=vector, new=share, old=share)
def test_the_two_phase_merge_is_its_formula(
    start: list[float], middle: list[float], end: list[float], new: float, old: float
) -> None:
    a, b, c = weights(start), weights(middle), weights(end)
    merged = merge_two_phases(c.snapshot(), a, b, weight_new=new, weight_old=old)["w0"]
    expected = a["w0"] + new * (b["w0"] - a["w0"]) + old * (c["w0"] - b["w0"])
    assert torch.allclose(merged, expected, atol=1e-12)


def test_limits_of_the_two_phase_merge() -> None:
    start, middle, end = weights([0.0]), weights([2.0]), weights([3.0])
    for new, old, expected in ((1.0, 1.0, 3.0), (0.0, 0.0, 0.0), (1.0, 0.0, 2.0), (0.5, 0.5, 1.5), (0.6, 0.4, 1.6)):
        merged = merge_two_phases(end.snapshot(), start, middle, weight_new=new, weight_old=old)
        assert merged["w0"].item() == pytest.approx(expected)
