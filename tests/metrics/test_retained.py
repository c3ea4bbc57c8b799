"""What was retained of what a model knew before training: TRACE's deltas, wins and losses."""

from __future__ import annotations

import pytest

from merganser.errors import InputError
from merganser.metrics import Score, ScoreMatrix, summary
from merganser.metrics.retained import Outcomes, outcomes, retained, win_rates


def matrix(*rows: tuple[float, float, float], learned: bool = True) -> ScoreMatrix:
    made = ScoreMatrix(["new"], {"facts": "general", "maths": "general", "safety": "safety"})
    for number, values in enumerate(rows):
        scores = dict(zip(("facts", "maths", "safety"), values, strict=True))
        entries = {name: Score(value=value, n=100, stderr=0.03) for name, value in scores.items()}
        made.add_row(["new"] if number else [], {"new": Score(value=0.5, n=10, stderr=0.1), **entries})
    return made


def test_the_deltas_are_means_of_changes_against_row_0() -> None:
    made = {metric.name: metric for metric in retained(matrix((0.5, 0.4, 0.9), (0.4, 0.1, 0.95)))}
    assert list(made) == ["retained", "retained (general)", "retained (safety)"]
    assert made["retained (general)"].value == pytest.approx((-0.1 - 0.3) / 2)
    assert made["retained (safety)"].value == pytest.approx(0.05)
    assert made["retained"].value == pytest.approx((-0.1 - 0.3 + 0.05) / 3)
    assert made["retained (safety)"].stderr == pytest.approx(0.03 * 2**0.5)
    assert "General Ability Delta" in made["retained (general)"].source


def test_they_are_undefined_before_anything_was_learned_and_absent_without_watched_tasks() -> None:
    assert {metric.value for metric in retained(matrix((0.5, 0.4, 0.9)))} == {None}
    assert retained(ScoreMatrix(["new"])) == []


def test_other_metrics_do_not_count_watched_tasks() -> None:
    plain = ScoreMatrix(["new"])
    plain.add_row([], {"new": Score(value=0.5, n=10, stderr=0.1)})
    plain.add_row(["new"], {"new": Score(value=0.5, n=10, stderr=0.1)})
    assert summary(matrix((0.5, 0.4, 0.9), (0.4, 0.1, 0.95))) == summary(plain)


def test_a_watched_task_is_no_task_to_learn() -> None:
    made = matrix((0.5, 0.4, 0.9))
    with pytest.raises(InputError, match="Row 1 learned 'safety', which is watched"):
        made.add_row(["safety"], {})
    assert (made.tasks, made.watched["safety"]) == (("new", "facts", "maths", "safety"), "safety")


def test_win_and_loss_rates() -> None:
    found = outcomes([0.0, 1.0, 0.5, 0.5], [1.0, 0.0, 0.75, 0.5])
    assert found == Outcomes(wins=2, ties=1, losses=1)
    groups = {"a": "safety", "b": "safety", "c": "general"}
    rates = {m.name: m for m in win_rates(groups, {"a": found, "b": Outcomes(wins=0, ties=4, losses=0), "c": found})}
    assert list(rates) == ["win rate (safety)", "loss rate (safety)"]
    assert (rates["win rate (safety)"].value, rates["loss rate (safety)"].value) == (0.25, 0.125)
    assert rates["win rate (safety)"].stderr == pytest.approx((0.25 / 4) ** 0.5 / 2)
    assert win_rates(groups, {}) == []
