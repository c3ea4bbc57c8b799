"""The screen at the end of a command, in 80 columns."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from merganser.cli.screen import show_outcome
from merganser.metrics.paired import PairedChange, paired_change
from merganser.metrics.text import score_of
from merganser.report.formatting import score, size
from merganser.runs.record import Against, RunRecord, ScoresFile
from merganser.streams.watch_options import Group
from tests.cli.test_check import set_answers
from tests.learner.toys import Command, copy_of_trained, without_checksums
from tests.report.answered import watching
from tests.report.conftest import TOPICS, make_run


def screen(record: RunRecord, *baselines: RunRecord, learned: Sequence[str] = (), verbose: bool = False) -> str:
    console = Console(file=io.StringIO(), width=80, markup=False, emoji=False)
    with console.capture() as captured:
        show_outcome(
            console,
            record,
            baselines=baselines,
            learned=learned,
            page=Path("runs/example/report.html"),
            verbose=verbose,
        )
    return captured.get()


def answers(right: int, n: int = 200) -> list[float]:
    return [1.0] * right + [0.0] * (n - right)


def with_answers(run: RunRecord) -> RunRecord:
    """As if answers with these scores had been kept: as many as possible still right."""
    rows = run.scores.rows

    def compare(against: Against) -> dict[str, PairedChange]:
        return {
            task: paired_change(
                answers(round(200 * rows[number if against == "learned" else -2].scores[task].value)),
                answers(round(200 * rows[-1].scores[task].value)),
            )
            for number, row in enumerate(rows[:-1])
            for task in (*row.learned, *(each.name for each in run.scores.watched if number == 0))
        }

    return run.compare_by(compare)


def test_a_row_per_task_beside_a_baseline() -> None:
    record = with_answers(make_run(TOPICS))
    plain = make_run(TOPICS, method="sequential", merging=False, forgetting=0.15)
    text = screen(record, plain)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "Learned 5 tasks, the last grimm: 90.0 %. Most lost: newsgroups −12.0 points "
    assert lines[2:4] == ["Keep grimm? merganser check runs/example", "Undo grimm: merganser undo runs/example"]
    found = record.courses()[0]
    assert found.interval
    (line,) = [line for line in lines if line.startswith("newsgroups")]
    assert " ".join(line.split()) == f"newsgroups 10.0 90.0 78.0 −12.0 {found.interval} lost 30.0"
    # By hand: aim (.78+.78+.78+.78+.90)/5 = .804; sequential (.30+.42+.54+.66+.90)/5 = .564.
    joined = " ".join(text.split())
    assert "Overall performance (OP), mean of all tasks now: 80.4 ± 1.1 %; sequential: 56.4 ± 1.1 %." in joined
    assert "Backward transfer (BWT), mean change of earlier tasks: −7.5 ± 0.4; sequential: −37.5 ± 0.4." in joined
    assert text.count("80.4") == text.count("−7.5 ") == 1
    everything = screen(record, plain, verbose=True)
    assert size(sum(record.tasks[-1].method_bytes.values())) in everything
    assert "after reuters" in everything
    assert "after reuters" not in text
    # A method is named as on the page, also one that is not installed.
    assert "a-method-of-yours: scores after each task" in screen(
        make_run(["a"], method="a-method-of-yours"), verbose=True
    )


def test_two_baselines_fit_into_a_line_and_of_more_the_first_two_are_shown() -> None:
    record = with_answers(make_run(TOPICS))
    plain = make_run(TOPICS, method="sequential", merging=False, forgetting=0.15)
    replay, ewc = (make_run(TOPICS, method=name, merging=False, forgetting=0.05) for name in ("replay", "ewc"))
    text = screen(record, plain, replay, ewc)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    (line,) = [line for line in lines if line.startswith("newsgroups")]
    assert line.split()[-3:] == ["lost", "30.0", "70.0"]
    assert "sequential: 56.4 ± 1.1 %; replay: " in " ".join(text.split())
    assert "ewc" not in text


def test_the_screen_in_the_guide() -> None:
    """Of 60 headlines half were right, then all, then 50; of 200 claims 41 and then 183."""
    right, sizes = {"headlines": [30, 60, 50], "claims": [41, 41, 183]}, {"headlines": 60, "claims": 200}
    run = make_run(list(right), path="runs/support")
    rows = [
        row.model_copy(
            update={"scores": {name: score_of(answers(right[name][number], size)) for name, size in sizes.items()}}
        )
        for number, row in enumerate(run.scores.rows)
    ]
    run = run.model_copy(update={"scores": run.scores.model_copy(update={"rows": rows})})
    change = paired_change(answers(60, 60), answers(50, 60))
    text = screen(run.compare_by(lambda against: {"headlines": change}), learned=["claims"])
    guide = (Path(__file__).parents[2] / "docs/walks/engineer.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```text\n(Learned claims.*?)```", guide, re.S)
    lines = [line.rstrip() for line in text.splitlines()]
    assert lines[: shown.count("\n")] == shown.splitlines()


def test_one_task_is_judged_by_what_it_cost() -> None:
    """Its own row took three points of 200 answers, less than shows; newsgroups had lost the rest before."""
    text = " ".join(screen(with_answers(make_run(TOPICS)), learned=["grimm"]).split())
    assert text.startswith(
        "Learned grimm: 90.0 %. No loss is beyond chance; "
        "the largest: newsgroups −3.0 points (81.0 before it, 78.0 now)."
    )


@pytest.mark.parametrize("count", [15, 60])
def test_many_tasks_in_80_columns(count: int) -> None:
    names = [f"classification-of-things-{number}" if number % 4 == 0 else f"task{number}" for number in range(count)]
    text = screen(make_run(names, steps=1))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert [name for name in names if not any(line.split()[:1] == [name] for line in lines)] == []
    assert "No interval: the answers to the test examples were not kept (evaluation.keep_answers)." in " ".join(
        text.split()
    )
    assert "lower" in text
    assert "lost to" not in text


WATCHED: dict[str, tuple[Group | None, float]] = {
    "arithmetic": ("general", 0.0),
    "careful-with-secrets": ("safety", 0.01),
}


@pytest.mark.parametrize("count", [15, 60])
def test_watched_tasks_are_rows_with_their_mark(count: int) -> None:
    record = with_answers(watching(make_run([f"task{number}" for number in range(count)], forgetting=0.0), WATCHED))
    text = screen(record)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    rows = {line.partition(" *")[0]: line.split() for line in lines if " *  " in line}
    assert list(rows) == list(WATCHED)
    # Never learned: no score right after; the change is since before any training.
    interval = record.courses()[-1].interval
    lost, now = f"−{count}.0", f"{80 - count}.0"
    assert " ".join(rows["careful-with-secrets"]) == f"careful-with-secrets * 80.0 {now} {lost} {interval} lost"
    assert " ".join(rows["arithmetic"])[:24] == "arithmetic * 80.0 80.0 0"
    joined = " ".join(text.split())
    assert f"Learned {count} tasks, the last task{count - 1}: " in joined
    assert f"Most lost: careful-with-secrets {lost} points (80.0 before training, {now} now)." in joined
    assert "*: watched, never learned; change: since before any training" in joined
    # What the last row took of it, if the sentence is about that.
    of_row = " ".join(screen(record, learned=[f"task{count - 1}"]).split())
    assert f"careful-with-secrets −1.0 points ({81 - count}.0 before it, {now} now)" in of_row


def test_tasks_without_tests() -> None:
    record = make_run(["a"], steps=3)
    rows = [row.model_copy(update={"scores": {}}) for row in record.scores.rows]
    text = screen(record.model_copy(update={"scores": ScoresFile(tasks=["a"], metrics={}, rows=rows)}))
    assert text.startswith("Learned a, which is not scored (no test file).")
    assert "no test" in text
    assert "OP" not in text


def test_the_report_of_a_run_prints_the_screen(tmp_path: Path, merganser: Command) -> None:
    run = without_checksums(copy_of_trained(tmp_path / "work"))
    set_answers(run, "01-mood", "mood", [1.0] * 60)
    set_answers(run, "02-topic", "mood", [1.0] * 50 + [0.0] * 10)
    set_answers(run, "02-topic", "topic", [1.0] * 45 + [0.0] * 15)
    done = merganser("report", run)
    assert done.code == 0, done.err
    assert "Most lost: mood −16.7 points (100.0 when learned, 83.3 now)." in " ".join(done.out.split())
    assert done.out.rstrip().endswith(f"Wrote {run / 'report.html'}")
    assert score(-1 / 6, signed=True) in done.out
