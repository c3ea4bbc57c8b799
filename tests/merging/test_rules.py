"""Every rule on cases small enough to compute by hand, and what its docstring promises."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch

from merganser.errors import InputError
from merganser.merging import dare, della, ema, fisher, karcher, opcm, tunable_magmax
from merganser.merging.breadcrumbs import breadcrumbs
from merganser.merging.linear import linear
from merganser.merging.magmax import magmax
from merganser.merging.masks import mask_key, mask_threshold, random_bits
from merganser.merging.model_stock import model_stock
from merganser.merging.rules import RULES, get_rule
from merganser.merging.sce import sce
from merganser.merging.slerp import slerp
from merganser.merging.task_arithmetic import task_arithmetic
from merganser.merging.ties import ties


def array(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def close(result: np.ndarray, *values: float) -> None:
    np.testing.assert_allclose(result, np.array(values), rtol=1e-6, atol=1e-7)


def test_linear_divides_by_the_sum_of_the_weights() -> None:
    close(linear([array(1, 2), array(3, 6)], weights=[1, 3]), 2.5, 5.0)
    close(linear([array(1, 2), array(3, 6)], weights=[1, 3], normalize=False), 10.0, 20.0)


def test_linear_refuses_weights_that_cancel() -> None:
    with pytest.raises(InputError, match="sum to zero"):
        linear([array(1), array(2)], weights=[1, -1])
    close(linear([array(1), array(2)], weights=[1, -1], normalize=False), -1.0)


def test_task_arithmetic_adds_scaled_updates() -> None:
    merged = task_arithmetic([array(2, 1), array(1, 4)], array(1, 1), weights=[0.5, 1.0], scale=2.0)
    close(merged, 2.0, 7.0)


def test_task_arithmetic_keeps_what_no_model_changed_exactly() -> None:
    base = array(0.1, 1e-20, 12345.678)
    np.testing.assert_array_equal(task_arithmetic([base, base], base, weights=[0.3, 0.9]), base)


def test_slerp_walks_the_arc() -> None:
    half = math.sqrt(0.5)
    close(slerp([array(1, 0), array(0, 1)], t=0.5), half, half)
    close(slerp([array(2, 0), array(0, 4)], t=0.5), 2 * half, 4 * half)
    close(slerp([array(1, 0), array(0, 1)], t=1 / 3), math.cos(math.pi / 6), math.sin(math.pi / 6))


def test_slerp_is_linear_where_the_arc_is_a_line() -> None:
    close(slerp([array(1, 1), array(3, 3)], t=0.25), 1.5, 1.5)
    close(slerp([array(0, 0), array(2, 4)], t=0.5), 1.0, 2.0)


def test_slerp_takes_two() -> None:
    with pytest.raises(InputError, match="exactly 2"):
        slerp([array(1), array(2), array(3)])


def test_karcher_of_two_is_the_middle_of_the_arc_times_the_mean_norm() -> None:
    half = math.sqrt(0.5)
    close(karcher.karcher([array(1, 0), array(0, 3)], max_iter=100, tol=1e-10), 2 * half, 2 * half)


def test_karcher_minimises_the_squared_angles() -> None:
    models = [array(1, 0, 0), array(0, 1, 0), array(0.2, 0.3, 1)]
    mean = karcher.karcher(models, max_iter=200, tol=1e-12).astype(np.float64)

    def cost(direction: np.ndarray) -> float:
        unit = direction / np.linalg.norm(direction)
        return sum(float(np.arccos(unit @ (m / np.linalg.norm(m)))) ** 2 for m in models)

    for step in np.eye(3) * 0.01:
        assert cost(mean) < cost(mean + step)
        assert cost(mean) < cost(mean - step)


def test_karcher_ignores_zero_tensors_but_for_the_norm() -> None:
    close(karcher.karcher([array(0, 0), array(0, 4)]), 0.0, 2.0)
    close(karcher.karcher([array(0, 0), array(0, 0)]), 0.0, 0.0)


def test_ties_trims_elects_and_averages_what_agrees() -> None:
    base = array(10, 10, 10, 10)
    first, second = base + array(4, -1, 3, 0.5), base + array(2, -3, -4, 0.1)
    # Kept: (4, 0, 3, 0) and (0, -3, -4, 0); signs by sum: +, -, -, +.
    close(ties([first, second], base, density=0.5), 14.0, 7.0, 6.0, 10.0)
    close(ties([first, second], base, density=0.5, weights=[2, 1]), 14.0, 7.0, 13.0, 10.0)
    close(ties([first, second], base, density=0.5, weights=[2, 1], normalize=False), 18.0, 7.0, 16.0, 10.0)
    close(ties([first, second], base, density=0.5, scale=0.5), 12.0, 8.5, 8.0, 10.0)


def test_ties_averages_over_those_that_agree_by_weight() -> None:
    base = array(0, 0)
    merged = ties([array(1, 1), array(4, -2), array(1, 4)], base, weights=[1, 2, 1])
    # Sums: 10 and 1: all agree in the first; the first and third in the second.
    close(merged, 10 / 4, 5 / 2)


def test_ties_counts_a_zero_sum_as_positive() -> None:
    close(ties([array(2), array(-2)], array(0)), 2.0)


@pytest.mark.parametrize(("density", "kept"), [(0.0, 0), (0.24, 1), (0.5, 2), (0.62, 2), (0.63, 3), (1.0, 4)])
def test_trimming_keeps_exactly_the_rounded_count(density: float, kept: int) -> None:
    merged = ties([array(1, 1, 1, 1)], array(0, 0, 0, 0), density=density)
    # Equal magnitudes are kept in the order of their index.
    close(merged, *([1.0] * kept + [0.0] * (4 - kept)))


def test_breadcrumbs_drop_both_ends() -> None:
    update = array(1, -2, 3, -4, 5, 6, 7, 8, 9, 10)
    merged = breadcrumbs([update], array(*[0] * 10), density=0.5, gamma=0.2)
    close(merged, 0, 0, 0, -4, 5, 6, 7, 8, 0, 0)
    # Fewer outliers go where the density would not hold otherwise.
    merged = breadcrumbs([update], array(*[0] * 10), density=0.9, gamma=0.5)
    close(merged, 1, -2, 3, -4, 5, 6, 7, 8, 9, 0)


def test_breadcrumbs_of_density_one_keep_all() -> None:
    close(breadcrumbs([array(1, 2)], array(0, 0), density=1.0, gamma=0.5), 1.0, 2.0)


def test_magmax_takes_the_largest_ties_to_the_later() -> None:
    base = array(1, 1, 1)
    merged = magmax([base + array(2, -1, 3), base + array(-2, 0.5, -4)], base, scale=1.0)
    close(merged, -1.0, 0.0, -3.0)
    close(magmax([base + array(2, -1, 3), base + array(-2, 0.5, -4)], base), 0.0, 0.5, -1.0)


def test_tunable_magmax_supplies_exactly_the_quota() -> None:
    generator = np.random.default_rng(0)
    base = np.zeros(1000, np.float32)
    models = [generator.normal(size=1000).astype(np.float32) for _ in range(3)]
    merged = tunable_magmax.tunable_magmax(models, base, weights=[0.2, 0.5, 0.3], scale=1.0, name="t")
    supplied = [int(np.count_nonzero(merged == model)) for model in models]
    assert supplied == [200, 500, 300]


def test_tunable_magmax_quotas_sum_to_the_size() -> None:
    assert tunable_magmax.entry_quotas([1, 1, 1], 3, 11) == [4, 4, 3]
    for percent in range(1, 100):  # the decimals that were given, not the nearest binary numbers
        given = [float(f"0.{percent:02}"), float(f"0.{100 - percent:02}")]
        assert tunable_magmax.entry_quotas(given, 2, 100) == [percent, 100 - percent]
    with pytest.raises(InputError, match="not negative"):
        tunable_magmax.entry_quotas([1, -1], 2, 4)


def test_tunable_magmax_gives_surplus_to_the_largest_earlier_task() -> None:
    base = array(0, 0, 0, 0)
    # Task 3 wins everywhere but may keep none: each entry goes to the larger of tasks 1 and 2.
    models = [array(5, 1, 5, 1), array(1, 5, 1, 5), array(9, 9, 9, 9)]
    close(tunable_magmax.tunable_magmax(models, base, weights=[1, 1, 0], scale=1.0), 5, 5, 5, 5)


def test_tunable_magmax_hands_the_first_tasks_surplus_to_the_task_that_is_largest_there() -> None:
    """Task 1 wins all six entries and may keep two. Of the four that it gives up, task 2 takes its two from the first
    three as far as there are, task 3 from the last three, and only what is left goes to either."""
    base = np.zeros(6, np.float32)
    models = [array(9, 9, 9, 9, 9, 9), array(5, 5, 5, 1, 1, 1), array(2, 2, 2, 6, 6, 6)]
    given_up = set()
    for seed in range(30):
        merged = tunable_magmax.tunable_magmax(models, base, weights=[1, 1, 1], scale=1.0, seed=seed)
        owner = [{9: 0, 5: 1, 1: 1, 2: 2, 6: 2}[int(value)] for value in merged]
        assert [owner.count(task) for task in (0, 1, 2)] == [2, 2, 2]
        there = [sum(task != 0 for task in half) for half in (owner[:3], owner[3:])]
        given_up.add(there[0])
        assert owner[:3].count(1) == min(2, there[0])
        assert owner[3:].count(2) == min(2, there[1])
    assert given_up == {1, 2, 3}


def test_tunable_magmax_asks_no_task_without_a_quota() -> None:
    """Tasks 2 and 4 may supply nothing, so the largest of tasks 1 and 3 supplies each entry."""
    base = np.zeros(2, np.float32)
    models = [array(1, 1), array(3, 3), array(2, 0.5), array(9, 9)]
    for seed in range(4):
        close(tunable_magmax.tunable_magmax(models, base, weights=[1, 0, 1, 0], scale=1.0, seed=seed), 2, 1)


def test_tunable_magmax_with_the_winners_shares_is_magmax() -> None:
    base = array(0, 0, 0, 0)
    models = [array(5, -6, 1, 1), array(1, 1, -7, 8)]
    np.testing.assert_array_equal(
        tunable_magmax.tunable_magmax(models, base, weights=[1, 1]), magmax(models, base, scale=0.5)
    )


def test_fisher_weighs_entry_by_entry() -> None:
    merged = fisher.fisher([array(1, 1, 1), array(3, 3, 5)], [array(1, 3, 0), array(1, 1, 0)], weights=[1, 1])
    close(merged, 2.0, 1.5, 3.0)


def test_fisher_of_tiny_entries_does_not_underflow() -> None:
    close(fisher.fisher([array(2), array(4)], [array(1e-40), array(3e-40)]), 3.5)


def test_fisher_refuses_negative_information() -> None:
    with pytest.raises(InputError, match=r"^An input has a negative entry"):
        fisher.fisher([array(1)], [array(-1)])


def test_ema_weighs_the_newest_with_alpha() -> None:
    close(ema.ema([array(0), array(10), array(20)], alpha=0.4), 0.4 * 20 + 0.6 * 0.4 * 10)
    close(ema.ema_step(array(1), array(3), alpha=0.5), 2.0)


def test_model_stock_interpolates_by_the_angle() -> None:
    base = array(0, 0)
    # Orthogonal updates: cosine 0, nothing in common, the base stays.
    close(model_stock([array(1, 0), array(0, 1)], base), 0.0, 0.0)
    # Equal updates: t = 1.
    close(model_stock([array(1, 0), array(1, 0)], base), 1.0, 0.0)
    # 60 degrees: t = 2 c / (1 + c) = 2/3.
    close(model_stock([array(1, 0), array(0.5, math.sqrt(0.75))], base), 2 / 3 * 0.75, 2 / 3 * math.sqrt(0.75) / 2)


def test_model_stock_per_filter() -> None:
    base = np.zeros((2, 2), np.float32)
    first, second = np.array([[1, 0], [1, 0]], np.float32), np.array([[1, 0], [0, 1]], np.float32)
    close(model_stock([first, second], base, filter_wise=True).ravel(), 1.0, 0.0, 0.0, 0.0)


def test_sce_selects_weighs_and_erases() -> None:
    base = array(0, 0, 0)
    first, second = array(1, 4, 0.1), array(1, -2, 0.2)
    # Variances 0, 9, .0025: of the two that are not zero half (one) is selected: the second entry.
    close(sce([first, second], base, select=0.5), 0.0, 4.0, 0.0)
    # All: energies 17.01 : 5.04; the signs agree in the first and third entry.
    share = 17.01 / 22.05
    close(sce([first, second], base), 1.0, 4.0, 0.1 * share + 0.2 * (1 - share))


def test_opcm_removes_what_lies_along_earlier_updates() -> None:
    base = np.zeros((2, 2), np.float32)
    first, second = np.diag([3.0, 1.0]).astype(np.float32), np.array([[5.0, 2.0], [0.0, 7.0]], np.float32)
    merged = opcm.opcm([first, second], base)
    # The diagonal of Q goes; [0, 2] is left: [[3, 2], [0, 1]], scaled to the mean norm.
    expected = np.array([[3.0, 2.0], [0.0, 1.0]])
    mean = (np.linalg.norm(first) + np.linalg.norm(second)) / 2
    np.testing.assert_allclose(merged, expected * mean / np.linalg.norm(expected), rtol=1e-5, atol=1e-6)


def test_opcm_protects_the_leading_block() -> None:
    merged = np.diag([4.0, 3.0, 2.0, 1.0]).astype(np.float32)
    update = np.ones((4, 4), np.float32)
    kept = opcm.project(merged, update, 0.7)
    # Shares .4, .7, .9, 1: two directions are protected at .7.
    expected = np.ones((4, 4))
    expected[:2, :2] = 0
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(kept, expected, atol=1e-6)


def test_opcm_thin_factors_keep_what_lies_outside() -> None:
    generator = np.random.default_rng(1)
    merged, update = generator.normal(size=(5, 3)), generator.normal(size=(5, 3))
    u, s, vt = np.linalg.svd(merged, full_matrices=True)
    q = u.T @ update @ vt.T
    rank = int(np.count_nonzero(np.cumsum(s) / s.sum() <= 0.5))
    q[:rank, :rank] = 0
    q[np.arange(3), np.arange(3)] = 0
    np.testing.assert_allclose(opcm.project(merged, update, 0.5), u @ q @ vt, atol=1e-10)


def test_dare_divides_what_is_left_by_the_density() -> None:
    base = np.zeros(10_000, np.float32)
    merged = dare.dare([np.ones(10_000, np.float32)], base, density=0.25, name="x")
    assert set(np.unique(merged)) == {0.0, 4.0}
    # Four standard deviations of a binomial around 2500.
    assert abs(np.count_nonzero(merged) - 2500) < 4 * math.sqrt(10_000 * 0.25 * 0.75)


def test_dare_can_keep_the_norm_instead() -> None:
    update = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    merged = dare.dare([update], np.zeros(1000, np.float32), density=0.3, rescale="l1", name="x")
    assert np.abs(merged).sum() == pytest.approx(np.abs(update).sum(), rel=1e-5)
    plain = dare.dare([update], np.zeros(1000, np.float32), density=0.3, rescale="none", name="x")
    np.testing.assert_array_equal(plain[plain != 0], update[plain != 0])


def test_masks_depend_on_seed_name_and_model_only() -> None:
    def mask(seed: int, name: str, model: int) -> np.ndarray:
        return random_bits(mask_key(seed, name, model), 0, 256) < np.uint64(mask_threshold(0.5))

    for other in ((1, "a", 0), (0, "b", 0), (0, "a", 1)):
        assert 64 < np.count_nonzero(mask(0, "a", 0) != mask(*other)) < 192
    key = mask_key(0, "a", 0)
    np.testing.assert_array_equal(random_bits(key, 100, 200), random_bits(key, 0, 256)[100:200])


def test_draws_are_those_of_splitmix64() -> None:
    # The published first outputs of the generator for seed 0, shifted to 53 bits.
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [int(value) for value in random_bits(0, 0, 3)] == [value >> 11 for value in expected]


def test_della_keeps_large_entries_more_often() -> None:
    rows = np.tile(np.arange(1, 11, dtype=np.float32), (4000, 1))
    base = np.zeros_like(rows)
    merged = della.della([rows], base, density=0.5, epsilon=0.3, rescale="none", name="x")
    kept = (merged != 0).mean(axis=0)
    np.testing.assert_allclose(kept, 0.2 + 0.6 * np.arange(10) / 9, atol=0.04)
    # Divided by the probability, the mean of every entry is the entry.
    unbiased = della.della([rows], base, density=0.5, epsilon=0.3, name="x").mean(axis=0)
    np.testing.assert_allclose(unbiased, rows[0], rtol=0.12)


def test_della_refuses_probabilities_outside() -> None:
    with pytest.raises(InputError, match="epsilon"):
        della.della([array(1, 2)], array(0, 0), density=0.1, epsilon=0.2)


def test_torch_tensors_come_back_in_their_type() -> None:
    first, second = torch.tensor([1.0, 2.0], dtype=torch.bfloat16), torch.tensor([2.0, 5.0], dtype=torch.bfloat16)
    merged = linear([first, second], weights=[1, 1])
    assert merged.dtype == torch.bfloat16
    assert merged.tolist() == [1.5, 3.5]


def test_double_precision_stays_double() -> None:
    merged = linear([np.array([1.0]), np.array([1.0 + 1e-12])], weights=[1, 1])
    assert merged.dtype == np.float64
    assert merged[0] == 1.0 + 5e-13


def test_shapes_that_differ_are_named() -> None:
    with pytest.raises(InputError, match=r"Model 2 has shape \[3\]"):
        linear([array(1, 2), array(1, 2, 3)])
    with pytest.raises(InputError, match="The base has shape"):
        ties([array(1, 2)], array(1))


def test_integers_are_refused() -> None:
    with pytest.raises(InputError, match="int64"):
        linear([np.array([1, 2])])


def test_an_unknown_rule_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match="Did you mean 'ties'"):
        get_rule("tie")


@pytest.mark.parametrize("name", sorted(RULES))
def test_the_table_agrees_with_the_functions(name: str) -> None:
    row = RULES[name]
    function = getattr(row.function, "func", row.function)
    # dare and della take their options as one object.
    options = {dare.dare: dare.DareOptions, della.della: della.DellaOptions}.get(function, function)
    accepted = inspect.signature(options).parameters
    fixed = getattr(row.function, "keywords", {})
    arguments = row.arguments({parameter.name: parameter.default for parameter in (*row.per_model, *row.options)})
    assert set(arguments) <= set(accepted)
    for key, value in arguments.items():
        default = fixed.get(key, accepted[key].default)
        assert default == value, f"{key}: the function says {default}, the table {value}"


@pytest.mark.parametrize("name", sorted(RULES))
@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_a_scalar_stays_a_scalar(name: str, framework: str) -> None:
    tensor = torch.tensor if framework == "torch" else np.float32
    models = [tensor(1.0), tensor(3.0)]
    second = [models] if get_rule(name).extra else [tensor(0.0)] if get_rule(name).base == "required" else []
    assert get_rule(name).function(models, *second).shape == ()
