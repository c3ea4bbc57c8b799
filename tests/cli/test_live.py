"""What a person sees while a run works."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from merganser.cli.live import LiveView, score_table, show_result, watching
from merganser.events import Evaluating, Merged, Notice, RowDone, StepDone, TaskStarted
from merganser.report.formatting import score, size
from merganser.report.page import render
from merganser.runs import read_run
from merganser.runs.record import ScoresFile
from tests.learner import toys
from tests.report.conftest import TOPICS, make_run

EVENTS = (
    Notice("Continuing [a] run."),
    RowDone((), {"mood": 0.25, "topic": 0.5}),
    TaskStarted("topic", 2, 12, 4, 6),
    StepDone("topic", 3, 6, 0.6931, probe=0.25, interval=2),
    Merged("topic", 3, "early", 0.6, 0.4, 2, 2, 3),
    Evaluating("mood", 3, 16),
    RowDone(("topic",), {"mood": 0.125, "topic": 1.0}),
)


def test_lines_where_there_is_no_terminal() -> None:
    output = io.StringIO()
    with watching("Title", Console(file=output, width=200)) as listener:
        for event in EVENTS:
            listener(event)
    lines = output.getvalue().splitlines()
    facts = (
        ["[a]"],
        ["mood 25.0", "topic 50.0"],
        ["task 2: topic", "12", "4", "6"],
        ["step 3", "early", "0.6", "0.4", "2 rehearsal steps", "next in 3"],
        ["topic", "mood 12.5", "topic 100.0"],
    )
    assert len(lines) == len(facts)
    for line, parts in zip(lines, facts, strict=True):
        assert [part for part in parts if part not in line] == []


def test_a_view_that_renews_itself_in_a_terminal() -> None:
    console = Console(file=io.StringIO(), width=110, force_terminal=True, color_system=None)
    view = LiveView(console, "Title")
    assert view.live is not None
    seen = []
    for event in EVENTS:
        view(event)
        plain = Console(file=io.StringIO(), width=110)
        with plain.capture() as captured:
            plain.print(view)
        seen.append(captured.get())
    facts = (
        [],
        ["25.0", "50.0"],
        ["topic", "12", "4"],
        ["topic", "0.693", "0.250", "2 steps", "3/6"],
        ["step 3", "early"],
        ["mood", "3/16"],
        ["12.5", "100.0"],
    )
    for view_now, parts in zip(seen, facts, strict=True):
        assert [part for part in parts if part not in view_now] == []


def test_a_table_with_gaps() -> None:
    console = Console(file=io.StringIO(), width=80)
    with console.capture() as captured:
        console.print(score_table([((), {"a": 0.5}), (("b",), {"a": 0.25, "b": 1.0})]))
    lines = [line.replace("│", " ").split() for line in captured.get().splitlines()]
    assert ["before", "training", "50.0", "–"] in lines
    assert ["after", "b", "25.0", "100.0"] in lines


def test_tasks_without_a_test_file_are_not_scored() -> None:
    """Instead of an empty list, in the lines of a run and in its result; and on the page."""
    out = io.StringIO()
    view = LiveView(Console(file=out, width=80), "title")
    for event in (RowDone(()), RowDone(("a",)), RowDone(("b",), {"b": 0.5}), RowDone(("c",), {"b": 0.25})):
        view(event)
    assert out.getvalue().splitlines() == [
        "before training: not scored (no test file)",
        "after a: not scored (no test file)",
        "after b (percent): b 50.0",
        "after c (percent): b 25.0, c not scored (no test file)",
    ]
    record = make_run(["a"], steps=3)
    rows = [row.model_copy(update={"scores": {}}) for row in record.scores.rows]
    record = record.model_copy(update={"scores": ScoresFile(tasks=["a"], metrics={}, rows=rows)})
    console = Console(file=io.StringIO(), width=80)
    with console.capture() as captured:
        show_result(console, record)
    assert "a: not scored (no test file)" in captured.get()
    assert "Metrics" not in captured.get()
    assert "not scored<br>(no test file)" in render(record)


def test_a_result_beside_a_baseline() -> None:
    record = make_run(TOPICS)
    plain = make_run(TOPICS, method="sequential", merging=False, forgetting=0.15)
    console = Console(file=io.StringIO(), width=100)
    with console.capture() as captured:
        show_result(console, record, plain)
    text = captured.get()
    lines = [line.replace("│", " ").split() for line in text.splitlines()]
    for run in (record, plain):
        assert ["after", "grimm", *(score(s.value) for s in run.scores.rows[-1].scores.values())] in lines
        assert size(sum(run.tasks[-1].method_bytes.values())) in text
    # OP by hand: aim (.78+.78+.78+.78+.90)/5 = .804; sequential (.30+.42+.54+.66+.90)/5 = .564.
    (line,) = [" ".join(line) for line in lines if line[:1] == ["OP,"]]
    assert re.search(r"56\.4 .*80\.4 ", line)
    assert [line for line in lines if line[:1] == ["FWT,"]] == []


def test_the_demo_without_its_model_names_the_command_that_fetches_it(
    merganser: toys.Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("merganser.demo.MODEL_PACKAGE", "a_package_that_is_not_there")
    done = merganser("demo", "--out", tmp_path / "demo")
    assert done.code == 2
    assert "make demo" in done.error
    assert not (tmp_path / "demo").exists()
    unknown = merganser("demo", "--method", "aimm")
    assert unknown.code == 2


def test_the_demo_end_to_end_at_toy_size(
    merganser: toys.Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The demonstration with a tiny model on tiny tasks: two runs, a comparison, a page, a question to ask."""
    from merganser.config import load_config
    from merganser.streams.loading import load_stream

    config = load_config(toys.write_stream(tmp_path / "in"))
    assert config.stream is not None
    tasks = load_stream(config.stream, tmp_path / "in").tasks
    monkeypatch.setattr("merganser.demo.demo_model", lambda: str(toys.model_folder()))
    monkeypatch.setattr("merganser.demo.demo_tasks", lambda seed, quick: tasks)
    done = merganser("demo", "--out", tmp_path / "demo", "--no-baseline", "--quick", "--seed", "4")
    assert done.code == 0, done.err
    assert (tmp_path / "demo" / "report.html").is_file()
    record = read_run(tmp_path / "demo" / "aim")
    assert record.info.command == f"merganser demo --out {tmp_path / 'demo'} --seed 4 --method aim --quick"
    assert record.info.seed == 4
    assert [task.name for task in record.tasks] == ["mood", "topic"]
    assert f"merganser ask {tmp_path / 'demo' / 'aim'}" in done.out
    assert merganser("ask", tmp_path / "demo" / "aim", "great film").code == 0
