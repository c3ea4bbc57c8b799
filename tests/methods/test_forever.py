"""FOREVER and model time: moments, days, pace and the anchor by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from merganser.events import Notice
from merganser.methods.forever import Forever, ForeverOptions
from merganser.training.anchored_replay import AnchoredReplay, anchor_factor
from merganser.training.model_time import GrowingIntervals, ModelTime
from merganser.training.options import TrainingOptions
from merganser.training.rehearsal import MemoryBatches
from merganser.weights import Weights
from tests.methods import plain
from tests.methods.test_methods import MEMORY, Line, collate


def test_moments_are_the_given_ones_and_then_every_doubling() -> None:
    moments = GrowingIntervals()
    times = [day for day in range(1, 300) if moments.reached(day)]
    assert times == [1, 2, 4, 7, 15, 30, 60, 120, 240]
    several = GrowingIntervals()
    assert [several.reached(time) for time in (0.9, 5.0, 6.9, 7.0, 100.0, 119.0)] == [
        False,
        True,
        False,
        True,
        True,
        False,
    ]
    assert several.next == 120


@pytest.mark.parametrize("clock", ["model", "steps"])
def test_a_day_is_the_way_of_the_first_steps(clock: Any) -> None:
    module = nn.Linear(2, 1, bias=False)
    module.weight.data.zero_()
    time = ModelTime(module, 2, clock, smoothing=0.5)
    days, paces = [], []
    for x, y in ((3.0, 4.0), (3.0, 5.0), (9.0, 13.0), (9.0, 13.0)):  # updates of length 5, 1, 10 and 0
        module.weight.data[:] = torch.tensor([x, y])
        time.advance()
        days.append(time.days)
        paces.append(time.pace)
    assert days == pytest.approx([0, 1, 16 / 6, 16 / 6] if clock == "model" else [0, 1, 1.5, 2])
    # Means 5, 3, 6.5 and 3.25, against 3 on the first day.
    assert paces == pytest.approx([1, 1, 6.5 / 3, 3.25 / 3])
    again = ModelTime(module, 2, clock, smoothing=0.5)
    again.load_task_state(time.task_state())
    assert (again.days, again.pace) == (time.days, time.pace)


def test_time_stands_where_nothing_moves() -> None:
    time = ModelTime(nn.Linear(1, 1), 1)
    assert time.advance() == 0
    assert (time.days, time.pace) == (0.0, 1.0)


def test_the_anchor_follows_the_pace_within_bounds() -> None:
    assert [anchor_factor(pace, 1.0) for pace in (0.0, 0.7, 1.0, 2.5, 9.0)] == [0.5, 0.7, 1.0, 2.5, 3.0]
    assert [anchor_factor(pace, 0.0) for pace in (0.0, 9.0)] == [1.0, 1.0]


def test_a_burst_minimises_the_loss_on_the_memory_and_the_distance_from_the_anchor() -> None:
    model, records = Line(), SimpleNamespace(cost=SimpleNamespace(examples_rehearsed=0))
    batches = MemoryBatches(MEMORY, 2, 7)
    settings = ForeverOptions(day_steps=1, days=[1.0], anchor=0.5, gamma=1.0, smoothing=0.0)
    replay = AnchoredReplay(batches, collate, Weights({"w": torch.tensor([1.0])}), settings, 3, records)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    plain.fire(replay, "on_train_begin", model=model)
    with torch.no_grad():
        model.w.copy_(torch.tensor([1.9]))
    replay._time.advance()
    expected, day, pace = 1.9, 0.1, 1.0
    for draw in range(3):
        x = collate(batches.rehearsal(draw))["x"]
        gradient = float((2 * expected * x**2).mean()) + 2 * 0.5 * min(3.0, max(0.5, pace)) * (expected - 1.0)
        expected, pace = expected - 0.001 * gradient, 0.001 * abs(gradient) / day
    replay._rehearse(model, optimizer, 0.0)
    assert model.w.item() == pytest.approx(expected, rel=1e-5)
    assert records.cost.examples_rehearsed == 6
    assert replay._time.updates == 4  # rehearsal takes model time, too


def test_what_is_asked_for_is_checked_and_a_task_without_a_day_is_told() -> None:
    for wrong in ([], [0.0, 1.0], [2.0, 1.0]):
        with pytest.raises(ValidationError, match="days"):
            ForeverOptions(days=wrong)
    told: list[Any] = []
    method, module = Forever(ForeverOptions()), Line()
    backbone = SimpleNamespace(module=module, collate=collate)
    given: dict[str, Any] = {"backbone": backbone, "training": TrainingOptions(batch=4), "listener": told.append}
    assert method.callbacks(plain.context(module, 2, **given)) == []  # no memory
    (replay,) = method.callbacks(plain.context(module, 2, **given, memory=MEMORY, steps=23))
    assert isinstance(replay, AnchoredReplay)
    assert replay.steps == 2  # six examples in batches of four
    assert "23 optimizer steps are fewer than the first day" in told[0].text
    assert isinstance(told[0], Notice)
