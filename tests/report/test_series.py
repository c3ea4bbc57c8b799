"""What charts draw, and that thinning hides nothing."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merganser.report.curve_images import BOTTOM, TOP, curve_images
from merganser.report.series import (
    POINTS,
    buckets,
    chart_data,
    learned_before,
    merge_stride,
    merges_in_order,
    segments,
    shown_merges,
    thinned,
)
from merganser.runs.record import RunRecord, SignalRecord
from tests.report.conftest import TOPICS, make_run


def test_buckets_by_hand() -> None:
    assert buckets([1.0, 3.0, None, float("nan"), 5.0], 2) == {
        "mean": [2.0, None, 5.0],
        "low": [1.0, None, 5.0],
        "high": [3.0, None, 5.0],
    }


@given(st.lists(st.floats(-1e6, 1e6) | st.none(), max_size=60), st.integers(1, 7))
def test_every_value_is_inside_its_band(values: list[float | None], width: int) -> None:
    drawn = buckets(values, width)
    assert len(drawn["mean"]) == -(-len(values) // width)
    for index, value in enumerate(values):
        if value is None:
            continue
        low, high = drawn["low"][index // width], drawn["high"][index // width]
        assert low is not None
        assert high is not None
        slack = 1e-4 * max(abs(value), 1e-300)
        assert low - slack <= value <= high + slack


def signal(step: int, interval: int | None) -> SignalRecord:
    return SignalRecord(step=step, loss=1.0, learning_rate=0.1, interval=interval)


def test_segments_join_equal_neighbours_only() -> None:
    signals = [signal(1, 8), signal(2, 8), signal(3, 12), signal(4, None), signal(5, 12), signal(6, 8)]
    assert segments(signals, "interval") == [[1, 2, 8], [3, 3, 12], [5, 5, 12], [6, 6, 8]]


def test_long_tasks_are_thinned_and_short_ones_are_not() -> None:
    data = chart_data(make_run(["a", "b"], steps=1000))
    assert [task["width"] for task in data["tasks"]] == [5, 5]  # ceil(1000 / 240)
    assert len(data["tasks"][0]["x"]) == 200 <= POINTS
    assert data["tasks"][0]["x"][:2] == [3.0, 8.0]  # middles of steps 1..5 and 6..10
    short = chart_data(make_run(["a"], steps=POINTS))["tasks"][0]
    assert short["width"] == 1
    assert short["x"] == list(range(1, POINTS + 1))


def test_very_many_levels_become_means_over_steps() -> None:
    """By hand: (2 * 8 + 1 * 11) / 3 = 9."""
    levels = [[1, 2, 8], [3, 3, 11], [5, 5, 12], [6, 6, 8], [7, 9, 1]]
    assert thinned(levels, most=5) == levels
    assert thinned(levels, most=3) == [[1, 3, 9], [5, 6, 10], [7, 9, 1]]


def test_of_very_many_merges_every_kth_is_shown(run: RunRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight merges in each of four tasks, at steps 15, 30, ..., 120."""
    monkeypatch.setattr("merganser.report.series.MERGES", 10)
    assert merge_stride(run) == 4  # ceil(32 / 10)
    assert [merge.step for merge in shown_merges(run)] == [15, 75, 120] * 4
    data = chart_data(run)
    assert [merge["step"] for merge in data["merges"]] == [15, 75, 120] * 4
    assert [task["merges"] for task in data["tasks"]] == [0, 8, 8, 8, 8]


def test_merges_are_in_the_order_of_the_ledger(run: RunRecord) -> None:
    run.merges.reverse()
    data = chart_data(run)
    assert len(data["merges"]) == 32
    assert [(m["task"], m["step"]) for m in data["merges"]][:3] == [(1, 15), (1, 30), (1, 45)]
    assert [m.step for m in merges_in_order(run)] == [m["step"] for m in data["merges"]]
    assert data["merges"][2]["refused"] is True
    assert [m["letter"] for m in data["merges"]][:3] == ["E", "F", "D"]


def test_curves_stand_at_the_number_of_tasks_learned(sequential: RunRecord) -> None:
    joint = make_run(TOPICS, method="joint", merging=False, together=True)
    assert learned_before(joint) == [0, 5]
    data = chart_data(sequential, [joint])
    curve = data["curves"][1]
    assert [point[0] for point in curve["points"]] == [0, 1, 2, 3, 4, 5]
    assert curve["own"] == 2
    assert [point[1] for point in curve["points"]] == [0.12, 0.12, 0.87, 0.72, 0.57, 0.42]
    assert [point[0] for point in curve["baselines"][0]] == [0, 5]
    assert [task["name"] for task in chart_data(joint)["tasks"]] == ["newsgroups and 4 more"]


def test_missing_and_non_finite_numbers_become_null(run: RunRecord) -> None:
    run.signals["tweets"][4].loss = float("inf")
    run.merges[0].learning_signal = float("nan")
    del run.scores.rows[1].scores["tweets"]
    data = chart_data(run)
    assert data["tasks"][2]["loss"]["mean"][4] is None
    assert data["merges"][0]["signal"] is None
    assert [point[0] for point in data["curves"][2]["points"]] == [0, 2, 3, 4, 5]
    json.dumps(data, allow_nan=False)


def test_merges_without_recorded_steps_still_have_an_axis(run: RunRecord) -> None:
    del run.signals["grimm"]
    grimm = chart_data(run)["tasks"][-1]
    assert (grimm["name"], grimm["steps"], grimm["x"]) == ("grimm", 120, [])


def test_curves_are_images_with_their_scores(sequential: RunRecord) -> None:
    data = chart_data(sequential, [sequential] * 4, {"reuters": 0.05})
    images = curve_images(data)
    assert len(images) == 5
    root = ElementTree.fromstring(images[1])
    assert root.attrib["aria-label"].startswith("reuters: 12.0 percent after 0, 12.0 percent after 1, 87.0 percent")
    (line,) = [each for each in root.iter("polyline") if "--accent" in each.attrib["style"]]
    heights = [float(place.split(",")[1]) for place in line.attrib["points"].split()]
    # 87 percent of the way from the bottom to the top is reached when it is learned, and falls by 15 points each.
    assert heights[2] == pytest.approx(BOTTOM - 0.87 * (BOTTOM - TOP), abs=0.06)
    assert heights[3] - heights[2] == pytest.approx(0.15 * (BOTTOM - TOP), abs=0.11)
    (band,) = root.iter("rect")
    assert float(band.attrib["height"]) == pytest.approx(0.1 * (BOTTOM - TOP), abs=0.06)
    assert len(list(root.iter("path"))) == 4  # markers of the baselines
    ticks = [text.text for text in root.iter("text")]
    assert ticks == ["reuters", "0", "2", "4", "0", "50", "100"]
