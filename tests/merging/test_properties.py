"""What must hold for any tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from merganser.merging import ema, opcm, trim
from merganser.merging.adapters import Factors, inner_product
from merganser.merging.linear import linear
from merganser.merging.magmax import fold, magmax
from merganser.merging.rules import RULES
from merganser.merging.tensors import BLOCK, ArrayInputs, Inputs
from merganser.merging.trim import TopKThreshold, top_k_threshold, top_k_thresholds

numbers = st.floats(-100, 100, width=32).filter(lambda value: value == 0 or abs(value) > 1e-3)
tensors = hnp.arrays(np.float32, (3, 4, 5), elements=numbers)
bases = hnp.arrays(np.float32, (4, 5), elements=numbers)

ORDERED = ("slerp", "magmax", "tunable_magmax", "ema", "opcm")
"""Rules whose result depends on the order of the models; so does that of rules with random masks."""


def merge(name: str, models: list[np.ndarray], base: np.ndarray, **arguments: Any) -> np.ndarray:
    rule = RULES[name]
    if rule.max_models is not None:
        models = models[: rule.max_models]
    positional: list[Any] = [models] if rule.base == "none" else [models, base]
    if rule.extra:
        positional.append([np.ones_like(model) for model in models])
    result: np.ndarray = rule.function(*positional, **arguments)
    return result


@pytest.mark.parametrize("name", ["linear", "slerp", "karcher", "ties", "della", "sce", "model_stock", "fisher", "ema"])
@settings(max_examples=12, deadline=None)
@given(model=bases, base=bases)
def test_identical_models_give_that_model(name: str, model: np.ndarray, base: np.ndarray) -> None:
    merged = merge(name, [model] * 3, base)
    np.testing.assert_allclose(merged, model, rtol=2e-5, atol=2e-4)


@pytest.mark.parametrize("name", ["task_arithmetic", "dare_linear", "dare_ties", "breadcrumbs", "breadcrumbs_ties"])
@settings(max_examples=12, deadline=None)
@given(model=bases, base=bases)
def test_weights_that_sum_to_one_on_identical_models_give_that_model(
    name: str, model: np.ndarray, base: np.ndarray
) -> None:
    merged = merge(name, [model] * 3, base, weights=[0.5, 0.25, 0.25])
    np.testing.assert_allclose(merged, model, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if name not in ORDERED and not rule.random])
@settings(max_examples=12, deadline=None)
@given(models=tensors, base=bases)
def test_the_order_of_the_models_does_not_matter(name: str, models: np.ndarray, base: np.ndarray) -> None:
    """Where an election is decided by rounding alone (a sum that cancels) an entry may go either way."""
    there = merge(name, list(models), base)
    back = merge(name, list(models[::-1]), base)
    total = np.abs((models.astype(np.float64) - base).sum(axis=0))
    decided = total > 1e-3 if name in ("ties", "breadcrumbs_ties", "sce") else np.ones_like(total, bool)
    np.testing.assert_allclose(there[decided], back[decided], rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("name", ["ties", "dare_linear", "dare_ties", "della", "della_linear", "breadcrumbs"])
@settings(max_examples=10, deadline=None)
@given(models=tensors, base=bases)
def test_density_one_is_no_trimming(name: str, models: np.ndarray, base: np.ndarray) -> None:
    elected = name in ("ties", "dare_ties", "della")
    plain = merge("ties" if elected else "task_arithmetic", list(models), base, normalize=False)
    merged = merge(name, list(models), base, density=1.0, normalize=False)
    np.testing.assert_allclose(merged, plain, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["ties", "dare_ties", "della", "task_arithmetic", "breadcrumbs", "magmax"])
@settings(max_examples=10, deadline=None)
@given(models=tensors, factor=st.sampled_from([0.25, 0.5, 2.0, 8.0]))
def test_scaling_the_updates_scales_the_result(name: str, models: np.ndarray, factor: float) -> None:
    """By a power of two, so that nothing is rounded."""
    zero = np.zeros_like(models[0])
    once = merge(name, list(models), zero)
    scaled = merge(name, [model * np.float32(factor) for model in models], zero)
    np.testing.assert_array_equal(scaled, once * np.float32(factor))


@pytest.mark.parametrize("name", ["task_arithmetic", "ties", "dare_linear", "magmax", "tunable_magmax"])
@settings(max_examples=10, deadline=None)
@given(models=tensors, base=bases)
def test_scale_zero_is_the_base(name: str, models: np.ndarray, base: np.ndarray) -> None:
    np.testing.assert_array_equal(merge(name, list(models), base, scale=0.0), base)


@settings(max_examples=60, deadline=None)
@given(
    values=hnp.arrays(np.float32, st.integers(1, 60), elements=st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0])),
    share=st.floats(0, 1),
)
def test_a_cut_keeps_exactly_k_the_largest_first_and_ties_by_index(values: np.ndarray, share: float) -> None:
    k = round(share * len(values))
    kept = top_k_threshold(values, k).kept(values, 0)
    order = sorted(range(len(values)), key=lambda index: (-values[index], index))
    assert sorted(np.flatnonzero(kept)) == sorted(order[:k])


class Sliced(ArrayInputs):
    """Inputs that are read in blocks, as from a file."""

    step = BLOCK


@pytest.mark.parametrize("kind", ["smooth", "few values", "mostly zero", "sorted", "constant", "two sizes", "infinite"])
@pytest.mark.parametrize("density", [0.01, 0.3, 0.77])
def test_cuts_of_long_tensors_are_those_of_sorting(kind: str, density: float) -> None:
    generator = np.random.default_rng(3)
    size = 5 * BLOCK + 123
    values = generator.normal(size=size)
    values = {
        "smooth": values,
        "few values": np.round(values * 2) / 2,
        "mostly zero": np.where(generator.random(size) < 0.9, 0.0, values),
        "sorted": np.sort(values),
        "constant": np.ones(size),
        "two sizes": np.where(np.arange(size) < size // 2, 1e-6, 1.0) * values,
        "infinite": np.where(generator.random(size) < 0.5, np.inf, values),
    }[kind].astype(np.float32)
    k = round(density * size)
    (found,) = top_k_thresholds(Sliced([values], None), [(0, k)])
    magnitudes = np.abs(values)
    expected = np.zeros(size, bool)
    expected[np.argsort(-magnitudes, kind="stable")[:k]] = True
    kept = found.kept(magnitudes, 0)
    # Zeros may be kept or not: they add nothing.
    np.testing.assert_array_equal(kept | (magnitudes == 0), expected | (magnitudes == 0))
    assert np.count_nonzero(kept) == k
    np.testing.assert_array_equal(found.kept(magnitudes[1000:3000], 1000), kept[1000:3000])


@pytest.mark.parametrize("kind", ["smooth", "two sizes"])
def test_a_pass_collects_no_more_than_there_is_room_for(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trim, "MAX_COLLECTED", 1 << 15)
    collected = []
    from_scan = trim._scanned_threshold

    def watched(inputs: Inputs, scan: Any) -> TopKThreshold | None:
        collected.append(len(scan.values))
        return from_scan(inputs, scan)

    monkeypatch.setattr(trim, "_scanned_threshold", watched)
    generator = np.random.default_rng(3)
    size = 5 * BLOCK + 123
    models = [generator.normal(size=size).astype(np.float32) for _ in range(3)]
    if kind == "two sizes":
        models[1] *= np.where(np.arange(size) < size // 2, 1e-6, 1.0).astype(np.float32)
    wanted = [(0, size // 3), (1, size // 2), (2, size // 5)]
    found = top_k_thresholds(Sliced(models, None), wanted)
    assert found == [top_k_threshold(np.abs(models[model]), k) for model, k in wanted]
    assert 0 < sum(collected) <= 1 << 15


def test_nan_counts_as_the_largest_magnitude() -> None:
    values = np.array([1.0, np.nan, 3.0], np.float32)
    assert list(top_k_threshold(values, 1).kept(values, 0)) == [False, True, False]
    assert list(top_k_threshold(values, 2).kept(values, 0)) == [False, True, True]
    assert list(TopKThreshold(-1.0, 0).kept(values, 0)) == [True, True, True]


# A running merge over a stream equals the merge of all at once.


@settings(max_examples=15, deadline=None)
@given(models=hnp.arrays(np.float32, (5, 6), elements=numbers), base=hnp.arrays(np.float32, 6, elements=numbers))
def test_running_magmax_is_magmax(models: np.ndarray, base: np.ndarray) -> None:
    largest = models[0] - base
    for model in models[1:]:
        largest = fold(largest, model - base)
    np.testing.assert_array_equal(base + largest * np.float32(0.5), magmax(list(models), base))


@settings(max_examples=15, deadline=None)
@given(models=hnp.arrays(np.float32, (5, 6), elements=numbers))
def test_running_means_are_means(models: np.ndarray) -> None:
    mean, average = models[0], models[0]
    for count, model in enumerate(models[1:], start=2):
        mean = ema.mean_step(mean, model, count=count)
        average = ema.ema_step(average, model, alpha=0.3)
    np.testing.assert_allclose(mean, linear(list(models)), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(average, ema.ema(list(models), alpha=0.3), rtol=1e-4, atol=1e-4)


def test_running_opcm_is_opcm_and_keeps_the_norm() -> None:
    generator = np.random.default_rng(0)
    base = generator.normal(size=(8, 6)).astype(np.float32)
    updates = [generator.normal(size=(8, 6)).astype(np.float32) * (i + 1) for i in range(4)]
    kept = None
    for update in updates:
        kept = opcm.fold(kept, update)
    assert kept is not None
    merged = opcm.opcm([base + update for update in updates], base)
    np.testing.assert_allclose(base + kept.update, merged, rtol=1e-4, atol=1e-4)
    norms = [float(np.linalg.norm(update)) for update in updates]
    assert float(np.linalg.norm(kept.update)) == pytest.approx(sum(norms) / 4, rel=1e-5)


def test_opcm_of_factors_is_opcm_of_their_products() -> None:
    generator = np.random.default_rng(2)
    whole, parts = None, None
    for _ in range(4):
        update = Factors(generator.normal(size=(2, 7)), generator.normal(size=(9, 2)), 0.5)
        whole = opcm.fold(whole, update.update(), share_of_spectrum=0.6)
        parts = opcm.fold_factors(parts, update, share_of_spectrum=0.6)
        np.testing.assert_allclose(parts[0].update(), whole.update, atol=1e-9)
        assert (parts[1].scale, parts[1].mean_norm) == pytest.approx((whole.scale, whole.mean_norm))
    assert parts is not None
    assert parts[0].rank == 7  # four updates of rank 2 in nine rows and seven columns
    assert inner_product(parts[0], update) == pytest.approx(float((parts[0].update() * update.update()).sum()))


def test_opcm_of_factors_without_an_update_changes_nothing_but_the_size() -> None:
    first = Factors(np.eye(2, 5), np.eye(4, 2))
    nothing = Factors(np.eye(2, 5), np.zeros((4, 2)))
    kept = opcm.fold_factors(opcm.fold_factors(None, first), nothing)
    np.testing.assert_allclose(kept[0].update(), first.update() / 2, atol=1e-12)  # the mean norm has halved
    assert opcm.fold_factors(None, nothing)[0].update().any() == 0
