"""Numbers and stories as a reader sees them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merganser.control import CAUSES
from merganser.report import formatting
from merganser.report.formatting import describe_merge
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


def test_story_of_a_due_merge_says_every_number() -> None:
    assert describe_merge(merge()) == (
        "Merge 3 of tweets, after step 1,200: it was due (planned every 8 steps) with 1 alarm raised. "
        "The loss on the memory was 1.75 against a threshold of 1.5. Learning signal 0.0125. "
        "After 8 rehearsal steps, 0.6 of the new change (L2 norm 1.25) and 0.4 of the rehearsal's (L2 norm 0.5, "
        "cosine −0.25) were merged. The loss on the new task rose from 0.5 to 0.625, the loss on the memory fell from "
        "1.75 to 0.875. The interval lengthens from 8 to 12 steps."
    )


def test_story_leaves_out_what_was_not_measured() -> None:
    bare = merge(
        cause="end", threshold=None, forgetting_signal=None, cosine=None, rehearsal_steps=0,
        loss_new_before=None, loss_old_after=math.nan,
    )  # fmt: skip
    assert describe_merge(bare) == (
        "Merge 3 of tweets, after step 1,200: the task ended. Learning signal 0.0125. "
        "0.6 of the task's update (L2 norm 1.25) and 0.4 of the model so far (L2 norm 0.5) were merged."
    )


def test_story_of_each_cause_and_of_a_refusal() -> None:
    assert "it fired early, after 3 alarms within the planned interval of 8 steps" in describe_merge(
        merge(cause="early", alarms=3)
    )
    assert "it was forced, 8 steps or more beyond the planned one" in describe_merge(merge(cause="forced"))
    refused = merge(status="refused", reason="the loss on the memory became inf", norm_old=None, cosine=None)
    assert "(L2 norm –) was refused and undone: the loss on the memory became inf." in describe_merge(refused)
    assert "cosine −0.25) was refused and undone." in describe_merge(merge(status="refused"))
    assert describe_merge(merge(next_interval=8)).endswith("The interval stays at 8 steps.")
    assert describe_merge(merge(next_interval=5)).endswith("The interval shortens from 8 to 5 steps.")


def test_the_documentation_states_the_causes_as_the_page_does() -> None:
    text = (Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")
    assert [
        cause
        for cause in CAUSES
        if f", {formatting.CAUSE_LETTER[cause]} | {formatting.cause_title(cause)} |" not in text
    ] == []


def test_causes_have_different_letters() -> None:
    assert set(formatting.CAUSE_LETTER) == set(CAUSES) == {"due", "early", "forced", "end"}
    assert len(set(formatting.CAUSE_LETTER.values())) == 4
