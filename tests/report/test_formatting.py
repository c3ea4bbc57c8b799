"""Numbers and stories as a reader sees them."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merganser.control import CAUSES
from merganser.report import formatting
from merganser.report.formatting import describe_merge, shortened_within
from merganser.runs.record import MergeRecord


def merge(**changes: object) -> MergeRecord:
    values: dict[str, object] = {
        "task": "tweets", "task_index": 2, "merge": 3, "step": 1200, "cause": "due", "alarms": 1, "interval": 8,
        "next_interval": 12, "threshold": 1.5, "learning_signal": 0.0125, "forgetting_signal": 1.75,
        "rehearsal_steps": 8, "weight_new": 0.6, "weight_old": 0.4, "norm_new": 1.25, "norm_old": 0.5, "cosine": -0.25,
        "loss_new_before": 0.5, "loss_new_after": 0.625, "loss_old_before": 1.75, "loss_old_after": 0.875,
    }  # fmt: skip
    return MergeRecord.model_validate(values | changes)


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [
        (0.6049, False, "60.5"),
        (-0.0294, False, "−2.9"),
        (0.0294, True, "+2.9"),
        (-0.0001, True, "0.0"),
        (None, False, "–"),
        (math.nan, False, "–"),
        (math.inf, True, "–"),
    ],
)
def test_score(value: float | None, signed: bool, text: str) -> None:
    assert formatting.score(value, signed) == text


def test_rows_whose_weights_are_kept() -> None:
    assert [formatting.kept_rows(keep) for keep in ("tagged", 1, 3)] == [
        "the last row",
        "the last row",
        "the last 3 rows",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0125, "0.0125"), (1234.5, "1,230"), (1.2345e-7, "1.23 × 10^−7"), (-0.5, "−0.5"), (0.0, "0"), (None, "–")],
)
def test_significant(value: float | None, text: str) -> None:
    assert formatting.significant(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 s"),
        (0.043, "0.04 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (245, "4 min 05 s"),
        (3599.9, "1 h 00 min"),
        (7380, "2 h 03 min"),
    ],
)
def test_seconds(value: float, text: str) -> None:
    assert formatting.seconds(value) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_600, "1 MB"), (2_400_000, "2.4 MB"), (5 * 10**12, "5,000 GB")],
)
def test_size(count: int, text: str) -> None:
    assert formatting.size(count) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0123, "1.2 %"),
        (0.0994, "9.9 %"),
        (0.0996, "10 %"),
        (-0.25, "−25 %"),
        (0.5, "50 %"),
        (0, "0 %"),
        (1, "100 %"),
        (None, "–"),
    ],
)
def test_percent(value: float | None, text: str) -> None:
    assert formatting.percent(value) == text


@given(st.floats(-1e300, 1e300) | st.sampled_from([math.nan, math.inf, -math.inf]))
def test_every_number_is_said_without_nan(value: float) -> None:
    for say in (formatting.score, formatting.significant, formatting.percent):
        text = say(value)
        assert text
        assert "nan" not in text
        assert "inf" not in text
        assert (text == formatting.MISSING) == (not math.isfinite(value))


def test_the_story_of_a_merge_holds_every_number() -> None:
    story = describe_merge(merge(interval=9))
    for number in "3 1,200 9 1 1.75 1.5 0.0125 8 0.6 1.25 0.4 0.5 −0.25 0.625 0.875 12".split():  # noqa: SIM905
        assert re.search(rf"(?<![\d.]){re.escape(number)}(?![\d]|\.\d)", story), number


def test_the_story_leaves_out_what_was_not_measured() -> None:
    bare = merge(
        cause="end", threshold=None, forgetting_signal=None, cosine=None, rehearsal_steps=0,
        loss_new_before=None, loss_old_after=math.nan,
    )  # fmt: skip
    story = describe_merge(bare)
    for absent in ("None", "nan", formatting.MISSING, "threshold", "memory", "cosine", "rehears", "interval"):
        assert absent not in story


def test_the_story_tells_causes_refusals_and_intervals_apart() -> None:
    changes = [
        *({"cause": cause} for cause in CAUSES),
        {"status": "refused"},
        {"status": "refused", "reason": "the loss on the memory became inf"},
        *({"next_interval": interval} for interval in (5, 8)),
    ]
    stories = [describe_merge(merge(**change)) for change in changes]
    assert len(set(stories)) == len(stories)
    assert "the loss on the memory became inf" in stories[5]
    assert "5" in stories[6].rpartition("interval")[2]


def test_causes_have_different_letters() -> None:
    assert len({formatting.CAUSE_LETTER[cause] for cause in CAUSES}) == len(CAUSES)


def test_a_long_name_keeps_its_end() -> None:
    assert shortened_within("task-59") == "task-59"
    assert shortened_within("classification-of-claims-12") == "classific…laims-12"
    assert len(shortened_within("x" * 40)) == 18
