"""What became of each task: words by tests of paired answers, the sentence, tables and frames."""

from __future__ import annotations

import sys

import pytest

from merganser.errors import InputError
from merganser.metrics import ScoreMatrix, ScoreRow
from merganser.metrics.course import cells, courses, courses_frame, courses_html, loss_sentence, since_learned
from merganser.metrics.paired import PairedChange, paired_change
from merganser.metrics.text import score_of


def answers(right: int, n: int = 100) -> list[float]:
    return [1.0] * right + [0.0] * (n - right)


# right answers of 100: before, right after, now
TASKS = {
    "kept": (10, 90, 90),
    "lost": (10, 100, 80),
    "noise": (20, 85, 84),
    "better": (30, 60, 75),
    "last": (5, 95, 95),
}


def rows_and_changes() -> tuple[list[ScoreRow], dict[str, PairedChange]]:
    scores = [{name: score_of(answers(right[moment])) for name, right in TASKS.items()} for moment in range(3)]
    early = [name for name in TASKS if name != "last"]
    rows = [
        ScoreRow(learned=[], scores=scores[0]),
        ScoreRow(learned=early, scores={name: scores[1][name] for name in early}),
        ScoreRow(learned=["last"], scores=scores[2]),
    ]
    return rows, {name: paired_change(answers(TASKS[name][1]), answers(TASKS[name][2])) for name in early}


def test_words_intervals_and_the_sentence() -> None:
    rows, changes = rows_and_changes()
    found = {each.task: each for each in courses(rows, changes)}
    assert {name: each.word for name, each in found.items()} == {
        "kept": "same", "lost": "lost", "noise": "noise", "better": "gained", "last": "new",
    }  # fmt: skip
    assert found["lost"].p == pytest.approx(4 * 2 * 0.5**20)  # McNemar, times four tasks (Holm)
    low, high = changes["lost"].low, changes["lost"].high
    assert cells(found["lost"])[:5] == ("lost", "10.0", "100.0", "80.0", "−20.0")
    assert cells(found["lost"])[5] == f"−{-100 * low:.1f} to −{-100 * high:.1f}"
    assert cells(found["last"])[3:] == ("95.0", "", "", "new")
    assert loss_sentence(list(found.values())) == "Most lost: lost −20.0 points (100.0 when learned, 80.0 now)."
    assert (
        loss_sentence([found["noise"]])
        == "No loss is beyond chance; the largest: noise −1.0 points (85.0 when learned, 84.0 now)."
    )
    assert loss_sentence([found["better"]]) == "Nothing was lost."
    assert loss_sentence([found["last"]]) == ""


def test_without_answers_nothing_is_called_lost() -> None:
    found = courses(rows_and_changes()[0], {})
    assert [each.word for each in found] == ["same", "lower", "lower", "higher", "new"]
    assert loss_sentence(found) == "Most lost: lost −20.0 points (100.0 when learned, 80.0 now), untested."
    assert "evaluation.keep_answers" in courses_html(found, "")


def test_tables_and_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, changes = rows_and_changes()
    matrix = ScoreMatrix([*TASKS, "<b>"])
    for row in rows:
        matrix.add_row(row.learned, row.scores)
    html = matrix._repr_html_()
    assert "80.0 (−20.0)" in html
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
    table = matrix.to_pandas()
    assert table.loc["after last", "lost"] == 0.8
    assert table["<b>"].isna().all()
    frame = courses_frame(courses(rows, changes))
    assert frame.loc["lost", ["before", "learned", "now", "became_wrong"]].tolist() == [0.1, 1.0, 0.8, 20]
    assert frame.loc["last", "word"] == "new"
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match=r"pip install 'merganser\[notebook\]'"):
        matrix.to_pandas()


def test_changes_since_learned() -> None:
    rows = [((), {"a": 0.1}), (("a",), {"a": 0.75}), (("b",), {"a": 0.5, "b": 1.0})]
    assert since_learned(rows) == [{}, {}, {"a": -0.25}]
