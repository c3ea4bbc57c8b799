"""``merganser check``: the verdict, its exit code, and what it is about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from merganser.metrics.text import score_of
from tests.learner.toys import Command, copy_of_trained, read_json, without_checksums


def set_answers(run: Path, row: str, task: str, values: list[float]) -> None:
    """Give the row these scores of a task's examples, as if they had been measured."""
    folder = run / "tasks" / row
    lines: list[dict[str, Any]] = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    content = read_json(folder / "row.json")
    for line in lines:
        if line["task"] == task and line["row"] == content["row"]:
            line["scores"], line["answers"] = values, ["answer"] * len(values)
    (folder / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    content["scores"]["scores"][task] = score_of(values).model_dump()
    (folder / "row.json").write_text(json.dumps(content))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Mood: 400 of 400 right after it was learned, 360 after topic; topic: 900 of 1,000."""
    run = without_checksums(copy_of_trained(tmp_path))
    set_answers(run, "01-mood", "mood", [1.0] * 400)
    set_answers(run, "02-topic", "mood", [1.0] * 360 + [0.0] * 40)
    set_answers(run, "02-topic", "topic", [1.0] * 900 + [0.0] * 100)
    return run


def test_every_answer_of_a_run_is_kept(tmp_path: Path) -> None:
    run = copy_of_trained(tmp_path)
    kept = {}
    for row in sorted((run / "tasks").iterdir()):
        for line in map(json.loads, (row / "answers.jsonl").read_text().splitlines()):
            kept[line["row"], line["task"]] = line
    assert set(kept) == {(row, task) for row in range(3) for task in ("mood", "topic")}
    tests = [json.loads(line) for line in (run / "tasks" / "01-mood" / "test.jsonl").read_text().splitlines()]
    for (row, task), line in kept.items():
        score = read_json(run / "scores.json")["rows"][row]["scores"][task]
        assert score["value"] == pytest.approx(sum(line["scores"]) / len(line["scores"]))
        assert len(line["answers"]) == score["n"] == 8
        if task == "mood":
            expected = [float(answer == test["output"]) for answer, test in zip(line["answers"], tests, strict=True)]
            assert line["scores"] == expected


def test_a_loss_beyond_the_allowed_one(run: Path, merganser: Command) -> None:
    done = merganser("check", run)
    assert done.code == 3
    assert done.out.startswith("Do not keep: mood lost 10.0 points (100.0 to 90.0), more than the 2.0 allowed.")
    assert "40/0" in done.out
    assert max(map(len, done.out.splitlines()[1:-1])) <= 80
    found = json.loads(merganser("check", run, "--json").out)
    mood, topic = found["tasks"]
    assert (found["verdict"], mood["verdict"], topic["verdict"]) == ("do not keep", "do not keep", "keep")
    assert (mood["became_wrong"], mood["became_right"], mood["change"]) == (40, 0, pytest.approx(-0.1))
    assert mood["low"] < -0.1 < mood["high"] < -0.05
    assert mood["p"] == pytest.approx(2 * 0.5**40)
    assert mood["compared_with"] == "01-mood"


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (["--max-drop", "15"], 0, "Keep: most lost: mood −10.0 points, within the bound."),
        (["--max-drop-of", "mood=15"], 0, "Keep: "),
        (["--max-drop", "10"], 4, "Cannot be told: mood with 400 test examples, no number of examples would tell."),
        (["--max-drop", "11"], 4, "Cannot be told: mood with 400 test examples, about "),
        (["--max-drop", "15", "--min-new", "80"], 0, "Keep: "),
        (["--max-drop", "15", "--min-new", "95"], 3, "Do not keep: topic reaches 90.0, and 95.0 was asked for."),
        (["--max-drop", "15", "--min-new", "89.5"], 4, "Cannot be told: topic with 1,000 test examples, about "),
        (["--row", "topic", "--against", "best"], 3, "Do not keep: mood lost 10.0 points"),
    ],
)
def test_verdicts(options: list[str], code: int, sentence: str, run: Path, merganser: Command) -> None:
    done = merganser("check", run, *options)
    assert (done.code, done.out.splitlines()[0][: len(sentence)]) == (code, sentence)


def test_another_run(run: Path, merganser: Command, tmp_path: Path) -> None:
    """Against a run that kept mood: its last row is the one compared with, and topic is compared as well."""
    better = without_checksums(copy_of_trained(tmp_path / "better"))
    set_answers(better, "02-topic", "mood", [1.0] * 400)
    set_answers(better, "02-topic", "topic", [1.0] * 900 + [0.0] * 100)
    found = json.loads(merganser("check", run, "--against", better, "--json").out)
    assert {task["task"]: round(task["change"], 3) for task in found["tasks"]} == {"mood": -0.1, "topic": 0.0}
    tests = better / "tasks" / "01-mood" / "test.jsonl"
    tests.write_text(tests.read_text().replace("good", "other"))
    assert "The two runs have other test examples of 'mood'" in merganser("check", run, "--against", better).error


def test_markdown(run: Path, merganser: Command) -> None:
    done = merganser("check", run, "--markdown")
    assert done.code == 3
    lines = done.out.splitlines()
    assert lines[0].startswith("**Do not keep: mood lost 10.0 points")
    assert lines[4] == "| task | before | now | change | interval | p | noise | wrong/right | verdict |"
    assert lines[6].startswith("| mood | 100.0 | 90.0 | −10.0 |")
    # The deviation of 40 losses in 400 is .3; 1.96 * .3 / 20 = .0294.
    assert lines[6].endswith("| &lt;.001 | 2.9 | 40/0 | do not keep |")
    assert len(lines) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--row", "03-x"], "There is no row '03-x' in"),
        (["--row", "00-start"], "'00-start' is the row before any training"),
        (["--row", "mood"], "'01-mood' has no earlier task to compare. Learn a second task, or give --min-new."),
        (["--against", "nowhere"], "'nowhere' is no run to compare with. Give previous, best or the folder of a run."),
        (["--max-drop-of", "moody=3"], "There is no task 'moody' (--max-drop-of). Did you mean 'mood'?"),
        (["--max-drop-of", "topic=3"], "Task 'topic' is not compared (--max-drop-of). Compared are: mood."),
        (["--max-drop-of", "mood"], "Write TASK=POINTS, such as --max-drop-of safety=0."),
        (["--max-drop-of", "mood=200"], "Write TASK=POINTS"),
        (["--json", "--markdown"], "Both --json and --markdown were given."),
    ],
)
def test_wrong_input(options: list[str], message: str, run: Path, merganser: Command) -> None:
    done = merganser("check", run, *options)
    assert message in done.error
    assert done.code == 2


def test_answers_that_were_not_kept(run: Path, merganser: Command) -> None:
    for row in (run / "tasks").iterdir():
        content = read_json(row / "row.json")
        content["lines"]["answers"] = 0
        (row / "row.json").write_text(json.dumps(content))
        (row / "answers.jsonl").write_text("")
    error = merganser("check", run).error
    assert "'mood' in row '01-mood' were not kept. Runs with evaluation.keep_answers: true (the default)" in error
