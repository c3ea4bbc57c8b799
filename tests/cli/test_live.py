"""What a person sees while a run works."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import IO, Any

import pytest
from rich.console import Console

from merganser.cli.live import LiveView, Stream, rows_of, watching
from merganser.cli.progress_matrix import delta_table, row_line
from merganser.cli.time_left import TimeLeft
from merganser.demo import BaselineRuns
from merganser.errors import RunError
from merganser.events import Evaluating, Merged, Notice, RowDone, StepDone, TaskStarted
from merganser.report.formatting import score, shortened
from merganser.report.page import render
from merganser.runs import read_run
from merganser.runs.record import ScoresFile
from tests.learner import toys
from tests.report.conftest import make_run

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


def test_lines_of_merges_only_where_they_are_asked_for() -> None:
    output = io.StringIO()
    view = LiveView(Console(file=output, width=200), "Title", verbose=True)
    view(EVENTS[4])
    line = output.getvalue()
    assert [
        part for part in ("step 3", "early: ", "0.6", "0.4", "2 rehearsal steps", "next in 3") if part not in line
    ] == []


def test_tasks_without_a_test_file_are_not_scored() -> None:
    out = io.StringIO()
    view = LiveView(Console(file=out, width=80), "title")
    for event in (RowDone(()), RowDone(("a",)), RowDone(("b",), {"b": 0.5}), RowDone(("c",), {"b": 0.25})):
        view(event)
    assert out.getvalue().splitlines() == [
        "Before training: not scored (no test file)",
        "After a: not scored (no test file)",
        "After b (percent): b 50.0",
        "After c (percent): b 25.0 −25.0 lost, c not scored (no test file)",
    ]
    record = make_run(["a"], steps=3)
    rows = [row.model_copy(update={"scores": {}}) for row in record.scores.rows]
    record = record.model_copy(update={"scores": ScoresFile(tasks=["a"], metrics={}, rows=rows)})
    assert "Learned a, which has no test examples." in render(record)


def test_the_place_in_the_stream_the_time_left_and_another_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=80, height=24, force_terminal=True, color_system=None)
    view = LiveView(console, "Title", Stream({"a": 10, "b": 10, "c": 20}, 3, beside=("Sequential", tmp_path)))
    now = 0.0
    view.time = TimeLeft({"a": 10, "b": 10, "c": 20}, lambda: now)
    others = [((), {"a": 0.1}), (("a",), {"a": 0.9})]
    assert view.beside is not None
    monkeypatch.setattr(view.beside, "rows", lambda: others)
    view(RowDone((), {"a": 0.1}))
    view(TaskStarted("a", 1, 10, 0, 4))
    now = 100.0
    view(RowDone(("a",), {"a": 1.0}))
    view(TaskStarted("b", 2, 10, 2, 4))
    now = 130.0
    view(StepDone("b", 1, 4, 0.5))
    plain = Console(file=io.StringIO(), width=80)
    with plain.capture() as captured:
        plain.print(view)
    text = captured.get()
    # 10 examples took 100 seconds: 70 more for b, 200 for c.
    assert "Task 2 of 3: b (10 examples, 2 in memory), about 4 minutes left" in text
    assert "Sequential: task 2 of 3" in text
    assert "90.0" in text
    joint = LiveView(console, "Title", Stream({"a": 40}, 3, joint=True, beside=("Sequential", tmp_path)))
    assert joint.beside is not None
    assert joint.beside.place() == "Sequential: task 1 of 3"
    others += [(("b",), {}), (("c",), {})]
    assert view.beside.place() == "Sequential: done"


@pytest.mark.parametrize("count", [5, 15, 60])
def test_the_matrix_fits_the_terminal(count: int) -> None:
    names = [f"a-rather-long-name-{number}" if number % 4 == 0 else f"task{number}" for number in range(count)]
    rows = rows_of(make_run(names, steps=1).scores.rows)
    console = Console(file=io.StringIO(), width=80)
    with console.capture() as captured:
        console.print(delta_table(rows, 80, 8))
    lines = captured.get().splitlines()
    assert len(lines) == (10 if count > 5 else 8)
    assert max(map(len, lines)) <= 80
    text = captured.get()
    assert shortened(rows[-1][0][0], 14) in text  # learned last
    loss = rows[-1][1][names[0]] - rows[1][1][names[0]]
    assert f"{score(rows[-1][1][names[0]])} {score(loss, signed=True)}" in text
    assert f"{count - 1}/{count - 1}" in text
    line = row_line(rows)
    assert "lost" in line
    assert len(line) <= 120


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
    """The demonstration with a tiny model on tiny tasks: three runs, a comparison, a page, a question to ask."""
    from merganser.config import load_config
    from merganser.streams.loading import load_stream

    config = load_config(toys.write_stream(tmp_path / "in"))
    assert config.stream is not None
    tasks = load_stream(config.stream, tmp_path / "in").tasks
    monkeypatch.setattr("merganser.demo.demo_model", lambda: str(toys.model_folder()))
    monkeypatch.setattr("merganser.demo.demo_tasks", lambda seed, quick: tasks)
    monkeypatch.setattr("merganser.demo.subprocess.Popen", ForkedCommand)
    monkeypatch.setattr("merganser.demo.os.sched_getaffinity", lambda process: {0}, raising=False)
    done = merganser("demo", "--out", tmp_path / "demo", "--quick", "--seed", "4")
    assert done.code == 0, done.err
    assert "Waiting for sequential and replay to finish" in done.err
    methods = {name: read_run(tmp_path / "demo" / name).info.config["method"] for name in ("sequential", "replay")}
    assert (methods["replay"]["name"], methods["replay"]["share"]) == ("replay", 0.25)
    (headline,) = [part for part in done.out.split("\n\n") if "Overall performance (OP)" in part]
    assert "; sequential: " in " ".join(headline.split())
    assert "; replay: " in " ".join(headline.split())
    page = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert "Experience replay" in page
    assert (tmp_path / "demo" / "report.html").is_file()
    record = read_run(tmp_path / "demo" / "aim")
    assert record.info.command == f"merganser demo --out {tmp_path / 'demo'} --seed 4 --method aim --quick"
    assert record.info.seed == 4
    assert [task.name for task in record.tasks] == ["mood", "topic"]
    assert f"merganser ask {tmp_path / 'demo' / 'aim'}" in done.out
    assert merganser("ask", tmp_path / "demo" / "aim", "great film").code == 0
    (tmp_path / "demo" / "report.html").unlink()
    beside = ("--method", "sequential", "--quick", "--seed", "4", "--learn-only")  # as a demonstration starts it
    assert merganser("demo", "--out", tmp_path / "demo", *beside).code == 0
    assert not (tmp_path / "demo" / "report.html").exists()


class ForkedCommand:
    """In the place of ``subprocess.Popen``: the command without its imports, with what a test has replaced."""

    def __init__(self, command: list[str], stdout: IO[bytes], env: dict[str, str], **options: Any) -> None:
        from merganser.cli import app

        self.returncode: int | None = None
        self.number = os.fork()
        if self.number == 0:
            code = 1
            try:
                os.dup2(stdout.fileno(), 1)
                os.dup2(stdout.fileno(), 2)
                sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
                signal.alarm(120)
                app(command[3:], standalone_mode=False)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.number, 0)[1])
        return self.returncode

    def poll(self) -> int | None:
        return self.returncode


PROGRAM = """#!/bin/sh
case "$*" in
*"--method replay"*) echo started; echo "the disk is full"; exit 1;;
*wait*) exec sleep 60;;
esac
"""
"""What stands in the place of Python in the test below."""


def test_baselines_that_fail_or_are_not_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    monkeypatch.setattr("merganser.demo.sys.executable", str(program))
    monkeypatch.setattr("merganser.demo.os.sched_getaffinity", lambda process: {0}, raising=False)
    with (
        pytest.raises(RunError, match=r"^The replay run failed: the disk is full"),
        BaselineRuns(tmp_path / "out", ["sequential", "replay"], 0, quick=False) as beside,
    ):
        beside.wait()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), BaselineRuns(tmp_path / "wait", ["sequential"], 0, quick=True) as beside:
        raise KeyboardInterrupt
    assert time.monotonic() - start < 50
    assert [process.poll() for _, process, _ in beside._started] == [-signal.SIGTERM]
