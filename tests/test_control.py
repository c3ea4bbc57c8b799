"""The controller: recorded traces, every branch of the interval rule, guards, and state."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from merganser import ControllerConfig, MergeController

TRACES = sorted((Path(__file__).parent / "data" / "controller_traces").glob("*.json"))


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_recorded_traces_are_reproduced_exactly(path: Path) -> None:
    """Probe losses and learning signals of the original program lead to its merges, one by one."""
    trace = json.loads(path.read_text())
    controller = MergeController(
        interval=trace["interval"],
        cold_start=trace["cold_start"],
        min_interval=trace["min_interval"],
        max_interval=trace["max_interval"],
        threshold_factor=trace["threshold_factor"],
    )
    signals = iter(trace["learning_signals"])
    merges = []
    for step, loss in enumerate(trace["probe_losses"], 1):
        merge = controller.observe(step, loss)
        if merge is None:
            continue
        following = controller.record(next(signals))
        assert merge.rehearsal_steps == merge.interval
        assert merge.weight_new + merge.weight_old == pytest.approx(1)
        merges.append(
            {
                "step": merge.step,
                "cause": merge.cause,
                "alarms": merge.alarms,
                "planned_interval": merge.interval,
                "next_interval": following,
                "w_new": merge.weight_new,
            }
        )
    assert merges == trace["merges"]
    assert len(merges) > 5


def test_there_are_traces() -> None:
    assert len(TRACES) == 2


def fire(controller: MergeController, step: int, loss: float = 1.0) -> int:
    """Observe a constant loss from ``step`` until a merge fires; the step at which it did."""
    while controller.observe(step, loss) is None:
        step += 1
    return step


def merge_with(controller: MergeController, signals: list[float]) -> list[int]:
    """Planned intervals after merges with these learning signals."""
    intervals, step = [], 1
    for signal in signals:
        step = fire(controller, step) + 1
        intervals.append(controller.record(signal))
    return intervals


def test_a_calm_interval_is_forced_after_one_extra_interval() -> None:
    controller = MergeController(interval=8)
    assert fire(controller, 1) == 16
    merge = controller._pending
    assert merge is not None
    assert (merge.cause, merge.alarms, merge.weight_new) == ("forced", 1, 0.6)
    assert merge.threshold == 2.0
    assert merge.probe_loss == 1.0


def test_one_alarm_makes_the_merge_due_and_more_make_it_cautious() -> None:
    controller = MergeController(interval=8)
    for step in range(1, 7):  # int(8 * 2/3) = 5 losses, and the sixth sets the threshold to 2
        assert controller.observe(step, 1.0) is None
    assert controller.threshold == 2.0
    assert controller.observe(7, 2.0) is None  # an alarm, but before the planned step
    assert controller.alarms == 1
    merge = controller.observe(8, 1.0)
    assert merge is not None
    assert (merge.cause, merge.alarms, merge.weight_new) == ("due", 1, 0.6)

    controller = MergeController(interval=8)
    for step in range(1, 7):
        controller.observe(step, 1.0)
    controller.observe(7, 5.0)
    merge = controller.observe(8, 5.0)
    assert merge is not None
    assert (merge.cause, merge.alarms, merge.weight_new, merge.weight_old) == ("due", 2, 0.5, 0.5)


def test_three_alarms_merge_early() -> None:
    controller = MergeController(interval=20)
    for step in range(1, 15):  # int(20 * 2/3) = 13
        assert controller.observe(step, 1.0) is None
    assert controller.observe(15, 3.0) is None
    assert controller.observe(16, 3.0) is None
    merge = controller.observe(17, 3.0)
    assert merge is not None
    assert (merge.cause, merge.alarms, merge.interval) == ("early", 3, 20)


def test_the_weight_table_has_four_corners() -> None:
    table = ControllerConfig(
        weight_moving_alarmed=0.1, weight_moving_calm=0.2, weight_settled_alarmed=0.3, weight_settled_calm=0.4
    )
    for interval, loss, expected in ((70, 9.0, 0.1), (70, 1.0, 0.2), (71, 9.0, 0.3), (71, 1.0, 0.4)):
        controller = MergeController(table, interval=interval)
        for step in range(1, int(interval * 2 / 3) + 2):
            controller.observe(step, 1.0)
        step = int(interval * 2 / 3) + 2
        while (merge := controller.observe(step, loss)) is None:
            step += 1
        assert merge.weight_new == expected
        assert merge.weight_old == 1 - expected


def test_the_interval_is_left_alone_while_cold() -> None:
    """With cold_start 3 the first four merges run at the initial interval; the fifth is the first to adapt it."""
    assert merge_with(MergeController(interval=8), [1, 50, 2, 100, 200]) == [8, 8, 8, 8, 4]
    assert merge_with(MergeController(interval=8, cold_start=0), [1, 2]) == [8, 4]


def test_faster_change_shortens_and_slower_change_lengthens() -> None:
    same = [10.0] * 4
    assert merge_with(MergeController(interval=8), [*same, 10.0])[-1] == 8
    assert merge_with(MergeController(interval=8), [*same, 30.0])[-1] == 2  # int(8 / 3)
    assert merge_with(MergeController(interval=8), [*same, 1000.0])[-1] == 2  # never below min_interval
    assert merge_with(MergeController(interval=8), [*same, 5.0])[-1] == 24  # int(8 * (2 + 1))
    assert merge_with(MergeController(interval=8), [*same, 0.1])[-1] == 128  # never above max_interval
    # From 64 on the interval grows by half an interval less, and a shortened one is halved on top.
    assert merge_with(MergeController(interval=80, cold_start=0), [10, 5])[-1] == 128
    assert merge_with(MergeController(interval=64, cold_start=0, max_interval=500), [10, 5])[-1] == 160  # 64 * 2.5
    assert (
        merge_with(MergeController(interval=128, cold_start=0), [10, 12.8])[-1] == 50
    )  # int(128 / 1.28) = 100, halved


def test_standstill_and_restart() -> None:
    """Learning signals of zero, which the formula would divide by."""
    cold = {"interval": 8, "cold_start": 0}
    assert merge_with(MergeController(**cold), [0.0, 0.0]) == [8, 8]
    assert merge_with(MergeController(**cold), [0.0, 5.0]) == [8, 2]
    assert merge_with(MergeController(**cold), [5.0, 0.0]) == [8, 128]
    # So small that their ratio is infinite.
    assert merge_with(MergeController(**cold), [5.0, 5e-324]) == [8, 128]
    assert merge_with(MergeController(**cold), [5e-324, 5.0]) == [8, 2]


def test_rehearsal_keeps_its_ratio_and_never_rounds_to_nothing() -> None:
    controller = MergeController(interval=8, cold_start=0, rehearsal_steps=2)
    step = fire(controller, 1)
    assert controller._pending is not None
    assert controller._pending.rehearsal_steps == 2
    controller.record(1.0)
    fire(controller, step + 1)
    controller.record(4.0)
    assert controller.interval == 2
    assert controller.rehearsal_steps == 1  # int(2 * 2/8) would be 0
    assert MergeController(interval=8, rehearsal_steps=0).rehearsal_steps == 0
    assert MergeController(interval=8, rehearsal_steps=0, minimum_rehearsal_steps=3).rehearsal_steps == 0
    assert MergeController(interval=8, rehearsal_steps=2, minimum_rehearsal_steps=3).rehearsal_steps == 3
    controller = MergeController(interval=8, cold_start=0, rehearsal_steps=2, minimum_rehearsal_steps=0)
    assert merge_with(controller, [1.0, 4.0])[-1] == 2
    assert controller.rehearsal_steps == 0


def test_ablations() -> None:
    fixed = MergeController(interval=8, cold_start=0, adapt_interval=False)
    assert merge_with(fixed, [1, 100, 1]) == [8, 8, 8]
    blind = MergeController(interval=5, watch_forgetting=False)
    assert not blind.wants_probe()
    fired = []
    for step in range(1, 21):
        merge = blind.observe(step)
        if merge is not None:
            fired.append((step, merge.cause))
            blind.record(1.0)
    assert fired == [(5, "due"), (10, "due"), (15, "due"), (20, "due")]


def test_finish_merges_what_is_left_and_only_that() -> None:
    controller = MergeController(interval=8)
    assert controller.finish(0) is None
    controller.observe(1, 1.0)
    merge = controller.finish(1)
    assert merge is not None
    assert merge.cause == "end"
    controller.record(1.0)
    assert controller.finish(1) is None


def test_steps_without_a_probe_count_towards_the_warm_up() -> None:
    controller = MergeController(interval=8)
    for step in range(1, 9):
        controller.observe(step, 3.0 if step % 4 == 0 else None)
    assert controller.threshold == 6.0  # of the probe at step 4; int(8 * 2/3) + 1 = 6 steps are the warm-up
    merge = controller.observe(12, 7.0)
    assert merge is not None
    assert merge.cause == "due"


def probed(controller: MergeController, losses: list[float], signals: list[float]) -> list[object]:
    """Merges when only the steps that the controller wants are probed, each with the next interval."""
    feed, found = iter(signals), []
    for step, loss in enumerate(losses, 1):
        merge = controller.observe(step, loss if controller.wants_probe() else None)
        if merge is not None:
            found.append((merge, controller.record(next(feed))))
    return found


@given(
    losses=st.lists(st.sampled_from([0.5, 1.0, 2.5]), min_size=40, max_size=120),
    signals=st.lists(st.floats(0.1, 10), min_size=120, max_size=120),
    every=st.integers(1, 9),
)
def test_a_step_without_a_probe_is_judged_by_the_probe_before_it(
    losses: list[float], signals: list[float], every: int
) -> None:
    """With losses that stand still between the probes, sparse probing decides what dense probing decides: alarms count
    steps, not probes. (Only the warm-up mean differs, so the threshold here comes from a first stretch of ones.)"""
    sparse = MergeController(interval=12, probe_every=every, adapt_interval=False)
    dense = MergeController(interval=12, adapt_interval=False)
    feed, held, position = iter(signals), 1.0, 0
    for step, loss in enumerate(losses, 1):
        position += 1
        if sparse.wants_probe():
            held = loss if position > 9 else 1.0
        a = sparse.observe(step, held if sparse.wants_probe() else None)
        b = dense.observe(step, held)
        assert a == b
        if a is not None:
            signal = next(feed)
            assert sparse.record(signal) == dense.record(signal)
            held, position = 1.0, 0


def test_probes_are_spaced_by_the_interval_or_by_steps() -> None:
    losses, signals = [1.0] * 400, [10.0] * 4 + [5.0] * 30
    every, per = MergeController(probe_every=4), MergeController(probes_per_interval=8)
    assert [merge.step for merge, _ in probed(every, losses, signals)] == [  # type: ignore[attr-defined, misc]
        merge.step
        for merge, _ in probed(per, losses, signals)  # type: ignore[attr-defined, misc]
    ]
    for interval, expected in ((4, 1), (8, 1), (16, 2), (100, 12)):
        assert MergeController(interval=interval, probes_per_interval=8).probe_distance == expected
    # Never so rare that the threshold would be known too late: int(I * 2/3) + 1 steps are the warm-up.
    assert MergeController(interval=2, probe_every=8).probe_distance == 2
    assert MergeController(interval=30, probes_per_interval=1).probe_distance == 21
    sparse = MergeController(interval=16, probe_every=5)
    wanted = []
    for step in range(1, 17):
        wanted.append(sparse.wants_probe())
        assert sparse.observe(step, 1.0 if wanted[-1] else None) is None
    assert [step for step, wants in enumerate(wanted, 1) if wants] == [5, 10, 15]


def test_an_alarm_between_probes_counts_every_step() -> None:
    controller = MergeController(interval=20, probe_every=5)
    for step in range(1, 15):
        assert controller.observe(step, 1.0 if controller.wants_probe() else None) is None
    assert controller.threshold == 2.0
    assert controller.observe(15, 3.0) is None
    assert controller.observe(16) is None
    merge = controller.observe(17)
    assert merge is not None
    assert (merge.cause, merge.alarms, merge.probe_loss) == ("early", 3, 3.0)


def test_misuse_is_named() -> None:
    controller = MergeController(interval=1)
    with pytest.raises(RuntimeError, match="No merge is waiting"):
        controller.record(1.0)
    fire(controller, 1)
    with pytest.raises(RuntimeError, match="not recorded"):
        controller.observe(3, 1.0)
    for signal in (math.nan, math.inf, -1.0):
        with pytest.raises(ValueError, match="learning signal"):
            controller.record(signal)
    with pytest.raises(ValueError, match="probe loss at step 4 is nan"):
        MergeController().observe(4, math.nan)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"interval": 0}, "interval"),
        ({"min_interval": 0}, "min_interval"),
        ({"min_interval": 9, "max_interval": 8}, "max_interval"),
        ({"cold_start": -1}, "cold_start"),
        ({"threshold_factor": 0.0}, "threshold_factor"),
        ({"threshold_factor": float("inf")}, "threshold_factor"),
        ({"warmup_fraction": 1.5}, "warmup_fraction"),
        ({"early_alarms": 0}, "early_alarms"),
        ({"rehearsal_steps": -1}, "rehearsal_steps"),
        ({"minimum_rehearsal_steps": -1}, "minimum_rehearsal_steps"),
        ({"weight_settled_calm": 1.2}, "weight_settled_calm"),
        ({"weight_old": math.nan}, "weight_old"),
        ({"interval": 2.5}, "interval is 2.5; give a whole number >= 1"),
        ({"interval": True}, "interval is True"),
        ({"threshold_factor": "2"}, "threshold_factor is '2'; give a number > 0"),
        ({"probe_every": 0}, "probe_every"),
        ({"probes_per_interval": 0}, "probes_per_interval"),
        ({"probe_every": 2, "probes_per_interval": 4}, "keep one"),
    ],
)
def test_impossible_numbers_are_refused_by_name(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        MergeController(**options)


def test_settings_by_name() -> None:
    config = ControllerConfig(interval=5)
    controller = MergeController(config, threshold_factor=np.float32(1.5), probe_every=np.int64(3))
    assert controller.config == ControllerConfig(interval=5, threshold_factor=1.5, probe_every=3)
    assert type(controller.config.threshold_factor) is float
    assert config == ControllerConfig(interval=5)
    assert controller.config.changed(probes_per_interval=2).probe_every is None
    with pytest.raises(TypeError, match=r"There is no setting 'treshold_factor'\. Did you mean 'threshold_factor'"):
        MergeController(treshold_factor=1.5)


def test_a_threshold_can_always_be_written_down() -> None:
    controller = MergeController(interval=2, threshold_factor=1e308)
    for step in range(1, 4):
        controller.observe(step, 100.0)
    assert controller.threshold is not None
    json.dumps(controller.state_dict(), allow_nan=False)
    assert controller.observe(4, 1e300) is not None  # forced: the threshold itself is never reached
    assert controller.alarms == 1


@given(
    losses=st.lists(st.floats(0.01, 50), min_size=30, max_size=200),
    signals=st.lists(st.floats(0, 1e6), min_size=200, max_size=200),
    cut=st.integers(0, 200),
)
def test_state_can_be_taken_and_given_back_anywhere(losses: list[float], signals: list[float], cut: int) -> None:
    """A controller restored from JSON in the middle decides like one that was never interrupted."""

    def decisions(interrupted: bool) -> list[object]:
        controller = MergeController(threshold_factor=1.1)
        feed, found = iter(signals), []
        for step, loss in enumerate(losses, 1):
            merge = controller.observe(step, loss)
            if merge is not None:
                if interrupted and step % 2:
                    state = json.loads(json.dumps(controller.state_dict()))
                    controller = MergeController(threshold_factor=1.1)
                    controller.load_state_dict(state)
                found.append((merge, controller.record(next(feed))))
                assert controller.config.min_interval <= controller.interval <= controller.config.max_interval
                assert controller.due_step > step
            if interrupted and step == cut:
                state = json.loads(json.dumps(controller.state_dict()))
                controller = MergeController(threshold_factor=1.1)
                controller.load_state_dict(state)
        return found

    assert decisions(interrupted=True) == decisions(interrupted=False)


def test_foreign_state_is_refused() -> None:
    state = MergeController().state_dict()
    with pytest.raises(ValueError, match="expected"):
        MergeController().load_state_dict({**state, "more": 1})
