"""Bad input and failed work: one line on standard error, exit code 2 or 1, and an unchanged run.

The messages themselves are in test_messages.py.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from merganser.runs import RunDirectory
from merganser.runs.record import FORMAT
from tests.learner import toys
from tests.learner.toys import Command, contents, write_config, write_rows, write_stream


def test_after_a_mistake_the_corrected_file_works_in_the_same_place(merganser: Command, tmp_path: Path) -> None:
    stream = write_stream(tmp_path / "in", ("mood", "topic"), method={"batch": 5})
    assert merganser("run", stream, "--out", tmp_path / "run").code == 2
    write_config(stream, toys.settings(training={"steps": 1}))
    assert merganser("run", stream, "--out", tmp_path / "run").code == 0


def learn(merganser: Command, run: Path, *more: str | Path, name: str = "truth", file: str = "truth.json") -> toys.Done:
    return merganser("learn", run, "--task", name, "--train", run.parent / file, *more)


def test_a_run_without_its_file(run: Path, merganser: Command) -> None:
    (run / "run.yaml").unlink()
    before = contents(run)
    done = merganser("run", run.parent / "stream.yaml", "--out", run)
    cause = f"'{run}' is a damaged run: it has tasks and no run.yaml."
    assert (done.code, done.error) == (2, f"{cause} Restore run.yaml from a copy, or choose a new folder.")
    (run / "run.yaml").write_text("foo: 1\n")
    done = merganser("ask", run, "a text")
    assert (done.code, done.error.endswith("Restore it from a copy.")) == (2, True)
    (run / "run.yaml").unlink()
    assert contents(run) == before


def test_a_folder_with_something_else_in_it(merganser: Command, tmp_path: Path) -> None:
    stream = write_stream(tmp_path / "in")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    before = contents(tmp_path / "thesis")
    done = merganser("run", stream, "--out", tmp_path / "thesis")
    assert (done.code, done.error) == (2, f"'{tmp_path / 'thesis'}' exists and is not a run. Choose a new folder.")
    file = merganser("run", stream, "--out", tmp_path / "thesis" / "chapter.txt")
    assert (file.code, "exists and is not a run" in file.error) == (2, True)
    below = merganser("run", stream, "--out", tmp_path / "thesis" / "chapter.txt" / "run")
    assert (below.code, "Cannot create" in below.error) == (2, True)
    assert contents(tmp_path / "thesis") == before


def test_a_run_in_use(run: Path, merganser: Command) -> None:
    holder = RunDirectory.open(run)
    before = contents(run)
    with holder.lock:
        for done in (learn(merganser, run), merganser("run", run.parent / "stream.yaml", "--out", run)):
            assert done.code == 2
            assert done.error == (
                f"The run '{run}' is in use by another process (number {os.getpid()}). "
                "Wait until it has finished, or choose another folder."
            )
        assert contents(run) == before
        # Reading does not wait for whoever writes.
        assert merganser("ask", run, "great film").code == 0
    assert learn(merganser, run).code == 0


def test_a_run_of_a_newer_version(run: Path, merganser: Command) -> None:
    info = yaml.safe_load((run / "run.yaml").read_text())
    info["format"] = FORMAT + 1
    info["a_key_of_the_future"] = True
    write_config(run / "run.yaml", info)
    before = contents(run)
    for done in (
        learn(merganser, run),
        merganser("run", run.parent / "stream.yaml", "--out", run),
        merganser("ask", run, "a text"),
        merganser("report", run),
    ):
        assert done.code == 2
        assert f"was written by a newer version (format {FORMAT + 1}; this version reads {FORMAT})" in done.error
        assert "pip install --upgrade merganser" in done.error
    assert contents(run) == before


@pytest.mark.parametrize("method", ["aim", "replay", "sequential"])
def test_a_loss_that_is_not_finite_stops_the_task(method: str, merganser: Command, tmp_path: Path) -> None:
    """A learning rate at which the weights overflow within the first steps; nothing is patched."""
    stream = write_stream(tmp_path / "in", training={"learning_rate": 1e30, "clip": 0, "warmup": 0})
    run = tmp_path / "run"
    done = merganser("run", stream, "--out", run, "--method", method)
    assert done.code == 1, done.err
    assert done.error.startswith("The training loss of task 'mood' became nan at step ")
    assert [path.name for path in (run / "tasks").iterdir()] == ["00-start"]
    before = contents(run)
    again = merganser("run", stream, "--out", run, "--method", method)
    assert again.error == done.error
    assert contents(run) == before


def test_weights_that_are_not_finite_after_the_last_step(merganser: Command, tmp_path: Path) -> None:
    """The loss is measured before a step; a single one can still spoil the weights."""
    stream = write_stream(tmp_path / "in", training={"learning_rate": 1e39, "warmup": 0, "steps": 1})
    done = merganser("run", stream, "--out", tmp_path / "run")
    assert done.code == 1, done.err
    assert done.error.startswith("The weights are not finite after the last step of task 'mood'.")
    assert [path.name for path in (tmp_path / "run" / "tasks").iterdir()] == ["00-start"]


def test_a_finite_run_survives_a_task_that_diverges(
    run: Path, merganser: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss that is not a number in the third step of a third task."""
    from transformers import Trainer

    before = contents(run)
    ordinary = Trainer.compute_loss

    def spoilt(self: Trainer, *arguments: Any, **options: Any) -> Any:
        loss, outputs = ordinary(self, *arguments, **options)  # with outputs, since old texts stand beside the batch
        return (loss * float("nan") if self.state.global_step == 2 else loss), outputs

    monkeypatch.setattr(Trainer, "compute_loss", spoilt)
    done = learn(merganser, run)
    assert done.code == 1
    assert done.error.startswith("The training loss of task 'truth' became nan at step 3.")
    assert "Try a lower training.learning_rate" in done.error
    assert contents(run) == before
    monkeypatch.undo()
    monkeypatch.chdir(run.parent)
    assert learn(merganser, run).code == 0


def test_a_full_disk(run: Path, merganser: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """No space left in the middle of a row; tests/learner/test_faults.py fails every call."""
    before = contents(run)
    flush = os.fsync
    hit = []

    def full(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        if "03-truth" in name and "signals.jsonl" in name:
            hit.append(name)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    done = learn(merganser, run)
    assert hit
    assert done.code == 1, done.err
    assert "The disk is full while writing" in done.error
    assert "Free some space" in done.error
    # What was trained is kept in the checkpoint, to go on from when there is space.
    assert {name: each for name, each in contents(run).items() if not name.startswith("checkpoint")} == before


def test_debug_shows_the_traceback_and_keeps_the_exit_code(run: Path, merganser: Command) -> None:
    plain = merganser("ask", run, "a text", "--task", "moods")
    assert (plain.code, plain.error) == (
        2,
        "There is no task 'moods'. Did you mean 'mood'? Learned tasks: mood, topic.",
    )
    told = merganser("ask", run, "a text", "--task", "moods", "--debug")
    assert told.code == 2
    assert "Traceback (most recent call last)" in told.err
    assert told.err.rstrip().endswith(f"error: {plain.error}")


def test_a_fault_of_the_program_says_so(run: Path, merganser: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from merganser.learner import Learner

    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(Learner, "predict", broken)
    done = merganser("ask", run, "a text")
    assert done.code == 1
    assert done.error.startswith(
        "ZeroDivisionError: division by zero. This is a bug in Merganser. Run again with --debug and please report it."
    )
    told = merganser("--debug", "ask", run, "a text")
    assert (told.code, "Traceback" in told.err) == (1, True)


@pytest.mark.parametrize(
    ("file", "damage", "cause"),
    [
        ("tasks/01-mood/row.json", lambda text: text[:100], "row.json' is damaged:"),
        ("tasks/01-mood/row.json", lambda text: text.replace('"row"', '"raw"', 1), "row.json' is damaged:"),
        ("tasks/01-mood/row.json", None, "row.json' is damaged: it is missing."),
        ("tasks/02-topic/memory.jsonl", lambda text: text[:-20], "memory.jsonl' is damaged: line 4 is cut off."),
        ("tasks/01-mood/memory.jsonl", lambda text: "", "is damaged: it has 0 lines, and row.json records 4."),
        (
            "tasks/02-topic/memory.jsonl",
            lambda text: text.split("\n", 1)[1],
            "it has 3 lines, and row.json records 4.",
        ),
        ("tasks/01-mood/test.jsonl", lambda text: "", "test.jsonl' is damaged: it has 0 lines, and row.json records "),
        ("tasks/01-mood/memory.jsonl", None, "memory.jsonl' is damaged: it is missing."),
        ("tasks/01-mood/memory.jsonl", lambda text: text.replace('"input"', '"in"', 1), "damaged: line 1: "),
        ("tasks/02-topic/test.jsonl", lambda text: "nonsense\n" + text, "test.jsonl' is damaged: line 1: "),
        ("tasks/01-mood", None, "are numbered [0, 2]; one is missing."),
        (
            "tasks/02-topic/adapter/adapter_model.safetensors",
            None,
            "adapter_model.safetensors' is damaged: it is missing.",
        ),
        ("run.yaml", lambda text: text[: len(text) // 2] + "\n}{", "run.yaml' is damaged: not YAML: "),
        ("tasks", None, "tasks' is damaged: it is missing."),
    ],
)
def test_a_damaged_run_names_the_file(
    file: str, damage: Callable[[str], str] | None, cause: str, run: Path, merganser: Command
) -> None:
    path = run / file
    if damage is not None:
        path.write_text(damage(path.read_text()))
    elif path.is_dir():
        toys.shutil.rmtree(path)
    else:
        path.unlink()
    before = contents(run)
    done = learn(merganser, run)
    assert done.code == 2, done.err
    assert cause in done.error
    assert contents(run) == before


def test_usage_errors(merganser: Command) -> None:
    for arguments in (("run", "--no-such-option"), ("frobnicate",), ("run",), ("learn", "x", "--task")):
        done = merganser(*arguments)
        assert done.code == 2, arguments
        assert "Traceback" not in done.err
        assert "Error" in done.err
    assert "No such option" in merganser("run", "--no-such-option").err


def test_line_ends_of_other_systems_in_texts_do_not_damage_a_run(run: Path, merganser: Command) -> None:
    """U+2028, U+0085 and carriage returns inside texts are part of them, in the memory and in the test texts."""
    odd = [{**row, "input": f"{row['input']}\u2028and\u0085so\rforth"} for row in toys.rows("truth", 12)]
    write_rows(run.parent / "odd.json", odd)
    done = learn(merganser, run, "--test", run.parent / "odd.json", file="odd.json")
    assert done.code == 0, done.err
    measured = json.loads(merganser("evaluate", run, "--json").out)
    assert {name: score["value"] for name, score in measured.items()} == toys.values_of(run)[-1]
    kept = [json.loads(line)["input"] for line in (run / "tasks/03-truth/memory.jsonl").read_bytes().split(b"\n")[:-1]]
    assert set(kept) <= {row["input"] for row in odd}
