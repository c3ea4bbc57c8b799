"""``merganser learn --check``: a task that fails is not kept, and its answers can be seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.learner import toys
from tests.learner.toys import Command, contents, read_json


def learn(merganser: Command, run: Path, *more: str | Path) -> toys.Done:
    data = ("--train", run.parent / "truth.json", "--test", run.parent / "truth-test.json")
    return merganser("learn", run, "--task", "truth", *data, "--check", *more)


def test_a_task_is_kept_only_if_the_check_says_so(run: Path, merganser: Command) -> None:
    before = contents(run)
    done = learn(merganser, run, "--min-new", "100", "--json")
    assert done.code == 3, done.err
    result = json.loads(done.out)
    assert (result["kept"], result["check"]["verdict"]) == (False, "do not keep")
    assert contents(run) == before
    refused = run.parent / "run-refused" / "03-truth"
    assert result["refused"] == str(refused)
    assert read_json(refused / "check.json") == result["check"]
    assert {path.name for path in refused.iterdir()} >= {"row.json", "answers.jsonl", "changed.jsonl"}
    for line in map(json.loads, (refused / "changed.jsonl").read_text().splitlines()):
        assert line["score_before"] != line["score_now"]
        assert (line["now"] == line["expected"]) == (line["score_now"] == 1)

    done = learn(merganser, run, "--max-drop", "1")
    assert done.code == 4, done.err
    assert done.out.lstrip().startswith("Cannot be told: ")
    assert f"Not kept: {run} is as it was." in done.out
    assert "run-refused/03-truth-2/changed.jsonl" in done.out.replace("\n", "")
    assert contents(run) == before
    assert merganser("verify", run).code == 0

    done = learn(merganser, run, "--max-drop", "100", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert (result["kept"], result["refused"], result["check"]["row"]) == (True, None, "03-truth")
    assert [task["task"] for task in result["tasks"]] == ["mood", "topic", "truth"]


def test_a_new_run_that_is_refused_is_not_there(merganser: Command, tmp_path: Path) -> None:
    """The first task of a run is compared on watched tasks, which the configuration names without others."""
    watch = {"watch": [{"name": "safety", "test": "topic-test.json"}]}
    stream = toys.write_stream(tmp_path / "in", training={"steps": 1})
    toys.write_config(stream, {**toys.settings(training={"steps": 1}), "stream": watch})
    run = tmp_path / "new"
    task = ("--task", "mood", "--train", tmp_path / "in" / "mood.json", "--test", tmp_path / "in" / "mood-test.json")
    done = merganser("learn", run, *task, "--config", stream, "--check", "--min-new", "100")
    assert done.code == 3, done.err
    assert "safety *" in done.out
    assert not run.exists()
    assert (tmp_path / "new-refused" / "01-mood" / "watch.jsonl").exists() is False  # it was in row 0
    assert "tasks to watch and none to learn" in merganser("run", stream, "--out", run).error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-drop-of", "moody=0"], "There is no task 'moody' (--max-drop-of). Did you mean 'mood'?"),
        (["--max-drop-of", "mood"], "Write TASK=POINTS, such as --max-drop-of safety=0."),
    ],
)
def test_bounds_are_refused_before_work(options: list[str], message: str, run: Path, merganser: Command) -> None:
    done = learn(merganser, run, *options)
    assert message in done.error
    assert "Learning task" not in done.err


def test_bounds_without_a_check(run: Path, merganser: Command) -> None:
    error = merganser("learn", run, "--task", "t", "--train", run.parent / "truth.json", "--max-drop", "1").error
    assert error == "Bounds were given, and nothing is checked. Give --check too."
