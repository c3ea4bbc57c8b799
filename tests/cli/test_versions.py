"""``merganser history``, ``tag``, ``diff``, ``undo --keep``, and ``--row`` of the commands that take it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.cli.test_check import set_answers
from tests.learner.toys import Command, contents, copy_of_trained, read_json, without_checksums


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is only read."""
    return copy_of_trained(tmp_path_factory.mktemp("versions"))


def test_a_line_per_row(run: Path, merganser: Command) -> None:
    set_answers(without_checksums(run), "01-mood", "mood", [1.0] * 400)
    set_answers(run, "02-topic", "mood", [1.0] * 360 + [0.0] * 40)
    set_answers(run, "02-topic", "topic", [1.0] * 900 + [0.0] * 100)
    assert merganser("tag", run, "bad").out == "Tagged '02-topic' as 'bad'.\n"
    done = merganser("history", run)
    assert done.code == 0
    head, start, mood, topic = done.out.splitlines()
    assert head.split() == ["row", "when", "(UTC)", "new", "worst", "loss", "size", "merges", "check", "tags"]
    assert start.split()[0] == "00-start"
    assert mood.split()[3:5] == ["100.0", "–"]
    assert topic.split()[3:6] == ["90.0", "mood", "−10.0"]
    assert topic.split()[-4:] == ["do", "not", "keep", "bad"]
    kept = merganser("history", run, "--max-drop-of", "mood=15", "--json").out
    last = json.loads(kept)["rows"][-1]
    assert (last["tasks"], last["check"], last["tags"], last["weights"]) == (["topic"], "keep", ["bad"], True)
    assert (last["worst"], last["worst_change"]) == ("mood", pytest.approx(-0.1))
    assert last["bytes"] == sum(path.stat().st_size for path in (run / "tasks/02-topic").rglob("*") if path.is_file())


def test_scores_that_were_taken_later_are_compared(run: Path, merganser: Command) -> None:
    """As of a task that was added, or is watched, only from the last row on."""
    set_answers(without_checksums(run), "01-mood", "mood", [1.0] * 8)
    set_answers(run, "02-topic", "mood", [1.0] * 6 + [0.0] * 2)
    expected = [merganser("diff", run, "00-start", "topic").out, merganser("history", run).out]
    assert "mood −25.0" in expected[1]
    files = [run / "tasks" / name / "row.json" for name in ("00-start", "01-mood", "02-topic")]
    first, second, last = map(read_json, files)
    last["earlier"] = {
        "0": {"topic": first["scores"]["scores"].pop("topic")},
        "1": {"mood": second["scores"]["scores"].pop("mood")},
    }
    for file, content in zip(files, (first, second, last), strict=True):
        file.write_text(json.dumps(content))
    found = [merganser("diff", run, "00-start", "topic").out, merganser("history", run).out]
    assert found[0] == expected[0]
    assert "mood −25.0" in found[1]


def test_undo_keeps_and_goes_back(run: Path, merganser: Command) -> None:
    assert merganser("tag", run, "good").code == 0
    before = contents(run)
    done = merganser("undo", run, "--to", "mood", "--keep")
    assert done.out.splitlines() == [
        "Removed 'topic'. Learned tasks: mood.",
        "Tags of what was removed, kept with it: good.",
        f"Kept as 'topic-undone'; to go back: merganser undo {run} --to topic-undone.",
    ]
    assert "Kept by undo: 'topic-undone' (02-topic, after 01-mood; " in merganser("history", run).out
    graph = merganser("history", run, "--graph").out.splitlines()
    assert graph[0] == "  * 02-topic  kept by undo as topic-undone (good)"
    assert [line.split("  ")[0] for line in graph[1:]] == [" /", "* 01-mood", "* 00-start"]
    assert json.loads(merganser("history", run, "--json").out)["kept_by_undo"][0]["tags"] == ["good"]
    back = merganser("undo", run, "--to", "topic-undone")
    assert back.out.splitlines() == ["Put back 'topic'. Learned tasks: mood, topic.", "Its tags are back: good."]
    after = contents(run)
    differing = {name for name in {*before, *after} - {"report.html", "undone"} if before.get(name) != after.get(name)}
    assert differing == set()
    assert merganser("undo", run, "--keep").code == 0
    assert merganser("undo", run, "--discard", "topic-undone").out == "Deleted 'topic-undone': 02-topic.\n"
    assert merganser("undo", run, "--discard", "topic-undone").code == 2


def test_a_tag_with_its_row_is_named_when_it_goes(run: Path, merganser: Command) -> None:
    merganser("tag", run, "good")
    assert "Tags of what was removed, gone with it: good." in merganser("undo", run).out
    merganser("tag", run, "first", "--row", "mood")
    assert merganser("tag", run, "first", "--delete").out == "Deleted the tag 'first' of '01-mood'.\n"


def test_what_is_different_between_two_rows(trained: Path, merganser: Command) -> None:
    done = merganser("diff", trained, "00-start", "topic", "--examples", "2")
    assert (done.code, done.err) == (0, "")
    found = json.loads(merganser("diff", trained, "00-start", "topic", "--json").out)
    assert (found["before"], found["after"], found["weights_removed"]) == ("00-start", "02-topic", [])
    tests = [json.loads(line) for line in (trained / "tasks/01-mood/test.jsonl").read_text().splitlines()]
    for task, values in zip(("mood", "topic"), found["tasks"], strict=True):
        scores = [read_json(trained / "scores.json")["rows"][row]["scores"][task]["value"] for row in (0, 2)]
        assert (values["task"], values["before"], values["after"]) == (task, *scores)
        assert len(values["flips"]) == values["became_wrong"] + values["became_right"]
        assert (values["became_right"] - values["became_wrong"]) / 8 == pytest.approx(values["change"])
    for flip in found["tasks"][0]["flips"]:
        test = tests[flip["number"] - 1]
        assert (flip["text"], flip["expected"]) == (test["input"], test["output"])
        assert flip["before"] != flip["after"] == test["output"] or flip["change"] < 0
    shown = [line for line in done.out.splitlines() if line.startswith(("  better: ", "  worse: "))]
    assert len(shown) == sum(min(2, len(values["flips"])) for values in found["tasks"]) > 0


def test_preferences_that_changed(run: Path, merganser: Command) -> None:
    """Of pairs no answer is written, only which one the model prefers."""
    without_checksums(run)
    for row, scores in (("01-mood", [1.0] * 8), ("02-topic", [0.0] + [1.0] * 7)):
        set_answers(run, row, "mood", scores)
        file = run / "tasks" / row / "answers.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps({**line, "answers": []}) + "\n" for line in lines))
    done = merganser("diff", run, "mood", "topic", "--examples", "1")
    assert "  worse: preferred this answer became preferred the rejected one, expected 'good'" in done.out
    (flip,) = json.loads(merganser("diff", run, "mood", "topic", "--json").out)["tasks"][0]["flips"]
    assert (flip["before"], flip["after"], flip["change"]) == (None, None, -1.0)


def test_the_distance_of_an_adapter_is_that_of_its_updates(trained: Path, merganser: Command) -> None:
    found = json.loads(merganser("diff", trained, "mood", "topic", "--json").out)
    everything, *blocks = found["weights"]
    config = read_json(trained / "tasks/01-mood/adapter/adapter_config.json")
    squares: dict[str, float] = {}
    files = [
        load_file(trained / "tasks" / row / "adapter/adapter_model.safetensors") for row in ("01-mood", "02-topic")
    ]
    for name in files[0]:
        if "lora_A" in name:
            update = [file[name.replace("lora_A", "lora_B")].astype(float) @ file[name].astype(float) for file in files]
            change = config["lora_alpha"] / config["r"] * (update[1] - update[0])
            block = name.partition("layer.")[2].split(".")[0]
            squares[block] = squares.get(block, 0.0) + float(np.vdot(change, change))
    assert [each["distance"] ** 2 for each in blocks] == pytest.approx(list(squares.values()))
    assert blocks[0]["part"].endswith("encoder.layer.0")
    assert everything["distance"] ** 2 == pytest.approx(sum(squares.values()))
    assert everything["relative"] == pytest.approx(everything["distance"] / everything["before"])


def test_answers_and_exports_of_an_earlier_row(run: Path, merganser: Command) -> None:
    merganser("tag", run, "first", "--row", "mood")
    for row in ("mood", "first"):
        assert merganser("export", run, run.parent / row, "--row", row).code == 0
        weights = run.parent / row / "adapter_model.safetensors"
        assert weights.read_bytes() == (run / "tasks/01-mood/adapter/adapter_model.safetensors").read_bytes()
        asked = merganser("ask", run, "great film", "--row", row)
        assert asked.out.strip() in ("good", "bad")
    assert "There is no task 'topic'" in merganser("ask", run, "a", "--row", "first", "--task", "topic").error
    assert merganser("check", run, "--row", "first", "--min-new", "10").code in (0, 4)
    export = run.parent / "first"
    assert "is an export, which has one row" in merganser("ask", export, "great film", "--row", "first").error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["diff", "mood", "tropic"], "There is no row 'tropic' in "),
        (["ask", "a text", "--row", "start"], "'00-start' is the row before any training"),
        (["history", "--graph", "--json"], "Both --graph and --json were given."),
        (["tag", "x", "--row", "mood", "--delete"], "--delete and --row were both given."),
        (["tag", "mood"], "'mood' names a row already"),
        (["history", "--max-drop-of", "moody=3"], "There is no task 'moody' (--max-drop-of). Did you mean 'mood'?"),
        (["undo", "--keep", "--discard", "x"], "--discard goes with no other option."),
    ],
)
def test_wrong_input(arguments: list[str], message: str, trained: Path, merganser: Command) -> None:
    command, *rest = arguments
    done = merganser(command, trained, *rest)
    assert (done.code, message in done.error) == (2, True)
