"""TaSL's merge by hand."""

from __future__ import annotations

from merganser.merging.matrix_importance import most_important, rescale, weights_of_new


def test_scores_are_rescaled_and_the_largest_are_important() -> None:
    assert rescale({"a": 2.0, "b": 4.0, "c": 3.0}) == {"a": 0.0, "b": 1.0, "c": 0.5}
    assert rescale({"a": 2.0, "b": 2.0}) == {"a": 0.0, "b": 0.0}
    assert most_important({"a": 1.0, "b": 3.0, "c": 3.0, "d": 2.0}, 0.5) == {"b", "c"}
    assert most_important({"a": 1.0, "b": 3.0}, 0.01) == {"b"}


def test_weights_of_the_new_task() -> None:
    new = {"a": 1.0, "b": 0.0, "c": 0.9, "d": 0.1}
    old = {"a": 1.0, "b": 0.9, "c": 0.1, "d": 0.0}
    assert weights_of_new(new, old, 0.5, 0.3, 0.6) == {"a": 0.3, "b": 0.0, "c": 1.0, "d": 0.6}
