"""TaSL: importance from the trajectory, and the four ways to consolidate a matrix."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from merganser.merging.matrix_importance import most_important, rescale
from merganser.methods.tasl import Tasl, TaslOptions
from merganser.weights import Weights
from tests.methods.plain import Holder, context, fire, random_weights, set_to

SHAPES = dict.fromkeys("abcd", (2, 3))


def test_importance_along_a_trajectory_by_hand() -> None:
    module = Holder(random_weights(0, SHAPES))
    method = Tasl(TaslOptions(smoothing=0.6, uncertainty=0.8))
    given = context(module, 1)
    method.begin_task()
    (callback,) = method.callbacks(given)
    mean = {name: torch.zeros(2, 3) for name in SHAPES}
    deviation = {name: torch.zeros(2, 3) for name in SHAPES}
    for step in range(3):
        set_to(module, random_weights(10 + step, SHAPES))
        for name, parameter in module.named_parameters():
            parameter.grad = random_weights(20 + step, SHAPES)[name]
            now = (parameter.detach() * parameter.grad).abs()
            mean[name] = 0.6 * mean[name] + 0.4 * now
            deviation[name] = 0.8 * deviation[name] + 0.2 * (now - mean[name]).abs()
        fire(callback, "on_pre_optimizer_step", step=step)
    method.after_task(given)
    last = {name: float((mean[name] * deviation[name]).mean()) for name in SHAPES}
    assert method.importance == pytest.approx(rescale(last), abs=1e-5)
    assert method.records.merges == []


def test_the_score_is_that_of_the_last_step() -> None:
    """By hand, for |w g| of 2 and then 1 and decays of 1/2: the mean is 1 and 1, the deviation 1/2 and 1/4."""
    method = Tasl(TaslOptions(smoothing=0.5, uncertainty=0.5))
    method.observe({"a": torch.full((2, 3), 2.0)})
    assert method.scores() == {"a": 0.5}
    method.observe({"a": torch.full((2, 3), 1.0)})
    assert method.scores() == {"a": 0.25}  # the mean over the steps would be 0.375


def test_importance_accumulates_rescaled_numbers_of_the_past_too() -> None:
    """By hand: past (.3, .2, .1, .1) is (1, .5, 0, 0) rescaled. With beta = .7, a stays the most important matrix to
    the tasks so far; without rescaling the past it would be d, of .7 x .1 + .3 = .37 against .7 x .3 = .21."""
    method = Tasl(TaslOptions(memory=0.7, smoothing=0.0, uncertainty=0.0, important=0.25))
    method.importance = {"a": 0.3, "b": 0.2, "c": 0.1, "d": 0.1}
    module = Holder(random_weights(0, SHAPES))
    given = context(module, 2, [random_weights(0, SHAPES)] * 2)
    method.begin_task()
    method.callbacks(given)
    method._mean = {name: torch.full((2, 3), value) for name, value in zip("abcd", (0.0, 4.0, 2.0, 20.0), strict=True)}
    method._deviation = {name: torch.ones(2, 3) for name in SHAPES}
    method.after_task(given)
    assert method.importance == pytest.approx({"a": 0.7, "b": 0.41, "c": 0.03, "d": 0.3})
    assert most_important(method.importance, 0.25) == {"a"}


def test_resuming_in_the_middle_of_a_task_changes_nothing() -> None:
    def observed(steps: range, method: Tasl) -> Tasl:
        for step in steps:
            method.observe({name: value.abs() for name, value in random_weights(step, SHAPES).items()})
        return method

    whole = observed(range(5), Tasl(TaslOptions()))
    half = observed(range(2), Tasl(TaslOptions()))
    again = Tasl(TaslOptions())
    again.begin_task()
    state = half.task_state()
    again.load_task_state(state)
    observed(range(2, 5), again)
    for method in (whole, again):
        method._before = Weights(random_weights(0, SHAPES))
        method.after_task(context(Holder(random_weights(0, SHAPES)), 1))
    assert again.importance == whole.importance


def test_each_matrix_is_kept_replaced_or_averaged(tmp_path: Path) -> None:
    options = TaslOptions(important=0.5, memory=0.6)
    first = Tasl(options)
    first.importance = {"a": 1.0, "b": 0.9, "c": 0.1, "d": 0.0}  # important so far: a and b
    first.save(tmp_path)
    method = Tasl(options)
    method.load(tmp_path)
    assert method.importance == first.importance
    assert method.bytes_kept() == {"importance": 32}
    old, new = random_weights(0, SHAPES), random_weights(1, SHAPES)
    module = Holder(old)
    given = context(module, 2, [old])
    method.begin_task()
    method.callbacks(given)
    # important now: a and c
    for scale in (1.0, 2.0):
        method.observe({n: torch.full((2, 3), scale * s) for n, s in {"a": 3.0, "b": 1.0, "c": 2.0, "d": 0.0}.items()})
    now = rescale(method.scores())
    set_to(module, new)
    method.after_task(given)
    found = Weights.of(module)
    torch.testing.assert_close(found["a"], 0.3 * new["a"] + 0.7 * old["a"])
    torch.testing.assert_close(found["b"], old["b"])
    torch.testing.assert_close(found["c"], new["c"])
    torch.testing.assert_close(found["d"], 0.5 * new["d"] + 0.5 * old["d"])
    assert method.importance == pytest.approx({n: 0.6 * first.importance[n] + 0.4 * now[n] for n in SHAPES})
    (merge,) = method.records.merges
    assert merge.weight_new == pytest.approx((0.3 + 0 + 1 + 0.5) / 4)
