"""The answer first: verdict, dumbbells and changed answers of a run whose answers were kept, and of one without."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from merganser.metrics.paired import paired_change
from merganser.report import page as page_module
from merganser.report.flips import LONGEST, MOST_IN_ALL, flips
from merganser.report.overview import dumbbells, verdict
from merganser.report.page import render
from merganser.report.verdict import noise_of, verdict_sentence
from merganser.runs import read_run
from merganser.runs.record import RunRecord
from merganser.streams.watch_options import Group
from tests.report.answered import to_disk, watching
from tests.report.conftest import make_run


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    return read_run(to_disk(make_run(["first", "second", "third"], steps=9), tmp_path_factory.mktemp("kept") / "run"))


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    run = make_run(["first", "second", "third"], steps=9)
    return read_run(to_disk(run, tmp_path_factory.mktemp("without") / "run", answers=False))


def test_the_verdict_has_its_interval_and_what_to_do(kept: RunRecord) -> None:
    tasks = kept.courses()
    (first, second, third) = tasks
    assert first.paired is not None
    assert verdict_sentence(tasks) == (
        "Learned third: 84.0 % (14.0 % before any training). "
        f"Most lost: first −6.0 points (90.0 when learned, 84.0 now; likely {first.interval})."
    )
    assert first.paired.low < -0.06 < first.paired.high < 0
    found = verdict(kept, tasks)
    assert (found["keep"], found["question"]) == ("cannot be told", "Keep third?")
    assert "whether learning it cost first and second more than 2 points each; about" in found["why"]
    assert second.word in ("lost", "noise")
    assert third.fresh
    # Paired scores are known better than two scores on their own: 7.1 points for the same numbers.
    assert 0.01 < noise_of(tasks)["first"] < 0.05


def test_changed_answers_in_full_and_the_losses_first(kept: RunRecord) -> None:
    found = flips(kept, kept.courses())
    assert [task["task"] for task in found] == ["first", "second"]
    first = found[0]
    assert int(first["lost"]) - int(first["gained"]) == 12  # 6 points of 200
    assert len(first["examples"]) == 10
    for example in first["examples"]:
        assert example["before"] == example["expected"] != example["now"]
        assert example["word"] == "became wrong"
        assert "of first: who won" in example["input"]
    assert int(first["left"]) == int(first["lost"]) + int(first["gained"]) - 10
    html = render(kept)
    assert f"<b>first</b>: {first['lost']} of 200 became wrong, {first['gained']} became right" in html


def test_answers_that_were_not_kept_are_named_as_missing(without: RunRecord) -> None:
    html = render(without)
    assert "The answers to the test examples were not kept in this run" in html
    assert "changed ones cannot be shown" in html
    assert "Most lost: first −6.0 points (90.0 when learned, 84.0 now), untested." in html
    assert "Keep third?" not in html


def test_sixty_tasks_stay_below_a_megabyte(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of changed answers there are as many as are shown, each as long."""
    names = [f"a task {number}" for number in range(60)]
    texts = dict.fromkeys(("input", "before", "now", "expected"), "x" * LONGEST)
    changed = {"task": "a task", "n": "200", "lost": "9", "gained": "9", "words": ("wrong", "right"), "left": "16"}
    changed["examples"] = [{"lost": True, "word": "became wrong", **texts}] * (MOST_IN_ALL // 60)
    monkeypatch.setattr(page_module, "flips", lambda run, tasks: [changed] * 59)
    monkeypatch.setattr("merganser.report.overview.last_check", lambda run, tasks: None)
    change = paired_change([1.0] * 9 + [0.0] * 9, [0.0] * 9 + [1.0] * 9)
    run = make_run(names, steps=240).compare_by(lambda against: dict.fromkeys(names, change))
    html = render(run, [make_run(names, steps=240, method="sequential", merging=False)])
    assert 850_000 < len(html.encode()) < 1_000_000
    data = json.loads(html.partition('id="run-data">')[2].partition("</script>")[0])
    assert len(data["tasks"][0]["loss"]["mean"]) == 24  # 10 of 240 steps in each
    assert len(data["merges"]) == 3 * 59  # the 1st, 10th and 16th of each task but the first


def test_many_tasks_show_the_largest_losses_and_fold_the_rest() -> None:
    run = make_run([f"t{number}" for number in range(20)], steps=2, merging=False)
    bells = dumbbells(run.courses(), {}, [])
    changes = [float(row["change"].replace("−", "-")) for row in bells["rows"][:-1]]
    assert changes == sorted(changes)
    assert bells["rows"][-1]["task"] == "t19"
    assert len(bells["folded"]) == 20
    marks = {f"watched-{number}": (None, 0.001) for number in range(4)}
    shown = dumbbells(watching(run, marks).courses(), {}, [])["rows"]
    assert [row["task"] for row in shown][-4:] == ["watched-0", "watched-1", "watched-2", "t19"]


def test_the_price_of_an_hour_and_the_reason_of_a_weight(kept: RunRecord) -> None:
    html = render(kept, price=3.6)
    # 60 seconds, of which (1 + 2 + .25 + .75) of 20 each were spent on merging.
    assert "At 3.60 per hour of the machine that is 0.06, of which 0.012 on merging." in html
    assert "The new change weighs" not in render(make_run(["a", "b"], method="ewc", steps=20))
    reasons = render(make_run(["a", "b"], steps=20))
    assert "the planned interval of 8 steps is at most 70, so the task still changes the weights a lot" in reasons
    assert "2 alarms are above 1, so earlier tasks are being forgotten" in reasons


def test_watched_tasks_on_the_page(tmp_path: Path) -> None:
    watched: dict[str, tuple[Group | None, float]] = {"arithmetic": ("general", 0.0), "careful": ("safety", 0.05)}
    run = read_run(to_disk(watching(make_run(["first", "second"], steps=2), watched), tmp_path / "run"))
    html = render(run)
    assert "Most lost: careful −10.0 points (80.0 before training, 70.0 now; likely" in html
    assert html.count('<small class="watched">watched: safety</small>') == 2  # dumbbell and matrix
    careful = next(row for row in dumbbells(run.courses(), {}, [])["rows"] if row["task"] == "careful")
    # It was never learned: no ring, and a tick where it was before any training.
    assert (careful["learned"], careful["before"], careful["now"]) == (None, "80.0", "70.0")
    assert "20 of 200 became wrong" in html
    assert [each.watched for each in run.courses()] == [False, False, True, True]
