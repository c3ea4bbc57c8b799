"""``merganser undo``: the run is as it was before its last task."""

from __future__ import annotations

from pathlib import Path

from tests.learner.toys import Command, contents, results, write_stream


def test_undo_takes_back_the_last_task_and_it_can_be_learned_again(merganser: Command, tmp_path: Path) -> None:
    stream = write_stream(tmp_path / "in")
    run = tmp_path / "run"
    assert merganser("run", stream, "--out", run).code == 0
    learned = results(run)
    shorter = tmp_path / "shorter"
    assert merganser("run", write_stream(tmp_path / "one", ("mood",)), "--out", shorter).code == 0

    done = merganser("undo", run)
    assert done.code == 0, done.err
    assert done.out.strip() == "Removed 'topic'. Learned tasks: mood."
    assert [path.name for path in sorted((run / "tasks").iterdir())] == ["00-start", "01-mood"]
    assert (run / "ledger.jsonl").read_text() == ""
    weights = "model/adapter_model.safetensors"
    assert (run / weights).read_bytes() == (shorter / weights).read_bytes()
    assert not list(run.rglob("*.partial"))

    assert merganser("run", stream, "--out", run).code == 0
    assert results(run) == learned


def test_there_must_be_something_to_take_back(merganser: Command, tmp_path: Path) -> None:
    stream = write_stream(tmp_path / "in", ("mood",))
    run = tmp_path / "run"
    assert merganser("run", stream, "--out", run).code == 0
    assert merganser("undo", run).out.strip() == "Removed 'mood'. No task is left."
    before = contents(run)
    again = merganser("undo", run)
    assert again.code == 2
    assert "No task was learned" in again.error
    assert contents(run) == before
    assert merganser("undo", tmp_path / "nowhere").code == 2
