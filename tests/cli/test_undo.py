"""``merganser undo``: the run is as it was before its last task."""

from __future__ import annotations

from pathlib import Path

import pytest

from merganser.errors import InputError
from tests.learner.toys import Command, contents, flip_bit, results, without_checksums, write_stream


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


@pytest.mark.parametrize("damaged", ["row.json", "merges.jsonl", "adapter/adapter_model.safetensors"])
def test_a_damaged_last_task_can_be_taken_back(damaged: str, run: Path, merganser: Command) -> None:
    flip_bit(run / "tasks" / "02-topic" / damaged, 0.3)
    assert merganser("learn", run, "--task", "truth", "--train", run.parent / "truth.json").code == 2
    done = merganser("undo", run)
    assert done.code == 0, done.err
    name = "02-topic" if damaged == "row.json" else "topic"
    assert done.out.strip() == f"Removed '{name}'. Learned tasks: mood."
    assert (run / "model" / "ROW").read_text() == "01-mood\n"
    assert merganser("verify", run).code == 0


@pytest.mark.parametrize(
    ("damaged", "recorded"),
    [("row.json", True), ("test.jsonl", True), ("test.jsonl", False), ("adapter/adapter_model.safetensors", False)],
)
def test_the_row_to_go_back_to_is_checked_first(damaged: str, recorded: bool, run: Path, merganser: Command) -> None:
    if not recorded:
        without_checksums(run)
    file = run / "tasks" / "01-mood" / damaged
    file.write_bytes(file.read_bytes()[:-5])
    before = contents(run)
    done = merganser("undo", run)
    assert done.code == 2
    assert f"'{file}' is damaged: " in done.error or f"{file} is not a whole safetensors file" in done.error
    assert contents(run) == before


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


@pytest.mark.parametrize("damaged", ["row.json", "memory.jsonl"])
def test_the_remedy_for_a_damaged_earlier_task_works(damaged: str, run: Path, merganser: Command) -> None:
    """As ``verify`` prints it: all tasks from the damaged one on are removed at once."""
    flip_bit(run / "tasks" / "01-mood" / damaged, 0.3)
    found = merganser("verify", run)
    assert found.code == 1
    command = f"merganser undo {run} --to 00-start"
    assert f"go back to '00-start': {command}." in found.out
    done = merganser(*command.split()[1:])
    assert done.code == 0, done.err
    assert done.out.strip() == f"Removed '{'01-mood' if damaged == 'row.json' else 'mood'}', 'topic'. No task is left."
    assert [folder.name for folder in (run / "tasks").iterdir()] == ["00-start"]
    assert merganser("verify", run).code == 0


def test_what_was_removed_is_said_before_the_page_fails(
    run: Path, merganser: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its page reads the answers of earlier rows, which may be damaged; the same command would remove another task."""

    def fail(*given: object) -> None:
        raise InputError("The answers are damaged.", "Restore them.")

    monkeypatch.setattr("merganser.report.write_report", fail)
    done = merganser("undo", run)
    assert (done.code, done.error) == (2, "The answers are damaged. Restore them.")
    assert done.out == "Removed 'topic'. Learned tasks: mood.\n"


@pytest.mark.parametrize(
    ("to", "error"), [("topics", "There is no row 'topics' in"), ("02-topic", "'02-topic' is the last row of")]
)
def test_a_row_to_go_back_to_that_is_none(to: str, error: str, run: Path, merganser: Command) -> None:
    before = contents(run)
    done = merganser("undo", run, "--to", to)
    assert (done.code, error in done.error) == (2, True)
    assert contents(run) == before


def test_nothing_is_removed_while_run_yaml_is_damaged(run: Path, merganser: Command) -> None:
    flip_bit(run / "run.yaml", b"system: ")
    before = contents(run)
    done = merganser("undo", run)
    assert done.code == 2
    assert f"'{run / 'run.yaml'}' is damaged: " in done.error
    assert contents(run) == before
    (run / "run.yaml").unlink()
    for command in ("verify", "undo"):
        assert "is damaged: it has tasks and no run.yaml" in merganser(command, run).error
