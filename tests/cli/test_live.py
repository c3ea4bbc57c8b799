"""What a person sees while a run works."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from merganser.cli.live import LiveView, score_table, show_result, watching
from merganser.events import Evaluating, Merged, Notice, RowDone, StepDone, TaskStarted
from merganser.report import formatting
from merganser.runs import read_run
from tests.learner import toys

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
    assert output.getvalue().splitlines() == [
        "Continuing [a] run.",
        "before training (percent): mood 25.0, topic 50.0",
        "Learning task 2: topic (12 examples, 4 in memory, 6 steps)",
        "  merge at step 3 (early: enough alarms before the planned step): "
        "0.6 new + 0.4 old after 2 rehearsal steps; next in 3",
        "after topic (percent): mood 12.5, topic 100.0",
    ]


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
    assert "before training" in seen[1]
    assert "Task 2: topic (12 examples, 4 in memory)" in seen[2]
    assert "Task topic: loss 0.693, loss on the memory 0.250, a merge planned every 2 steps" in seen[3]
    assert "learning topic" in seen[3]
    assert "3/6" in seen[3]
    assert "merge at step 3 (early" in seen[4]
    assert "answering mood" in seen[5]
    assert "3/16" in seen[5]
    assert "after topic" in seen[6]
    assert "100.0" in seen[6]


def test_a_table_with_gaps() -> None:
    console = Console(file=io.StringIO(), width=80)
    with console.capture() as captured:
        console.print(score_table([((), {"a": 0.5}), (("b",), {"a": 0.25, "b": 1.0})]))
    lines = [line.replace("│", " ").split() for line in captured.get().splitlines()]
    assert ["before", "training", "50.0", "–"] in lines
    assert ["after", "b", "25.0", "100.0"] in lines


def test_a_result_beside_a_baseline(tmp_path: Path, merganser: toys.Command) -> None:
    run = toys.copy_of_trained(tmp_path / "work")
    assert merganser("run", run.parent / "stream.yaml", "--out", tmp_path / "plain", "--method", "sequential").code == 0
    record, plain = read_run(run), read_run(tmp_path / "plain")
    console = Console(file=io.StringIO(), width=100)
    with console.capture() as captured:
        show_result(console, record, plain)
    text = captured.get()
    assert "Sequential fine-tuning: scores in percent" in text
    assert "AimMerging: scores in percent" in text
    for each, name in ((record, "AimMerging"), (plain, "Sequential fine-tuning")):
        kept = each.tasks[-1].method_bytes
        said = " ".join(text.split())
        parts = ", ".join(f"{part} {formatting.size(count)}" for part, count in kept.items())
        first = sum(each.tasks[0].method_bytes.values())
        whole = f"{formatting.size(sum(kept.values()))} in all, {formatting.size(first)} after the first task."
        assert f"{name} stores {parts}: {whole}" in said
    for metric in ("OP", "BWT"):
        values = {each.scores.summary[i].value for each in (record, plain) for i in range(len(each.scores.summary))
                  if each.scores.summary[i].name == metric}  # fmt: skip
        line = next(line for line in text.splitlines() if line.replace("│", "").split()[:1] == [f"{metric},"])
        for value in values:
            assert value is not None
            assert formatting.score(value) in line


def test_the_demo_says_what_it_needs(merganser: toys.Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("merganser.demo.MODEL_PACKAGE", "a_package_that_is_not_there")
    done = merganser("demo", "--out", tmp_path / "demo")
    assert done.code == 2
    assert "The demonstration's model is not installed" in done.error
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
