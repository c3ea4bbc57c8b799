"""``merganser learn``: one more task for a run, here or elsewhere."""

from __future__ import annotations

import html
import json
import shutil
from pathlib import Path

import pytest

from tests import tiny
from tests.learner import toys
from tests.learner.toys import Command, contents, read_json, values_of


def add(merganser: Command, run: Path, *more: str | Path, data: Path | None = None) -> toys.Done:
    data = data or run.parent
    return merganser(
        "learn", run, "--task", "truth", "--train", data / "truth.json", "--test", data / "truth-test.json", *more
    )


def test_a_later_task_is_known_to_the_rows_that_matter(run: Path, merganser: Command) -> None:
    earlier = values_of(run)
    done = add(merganser, run, "--json")
    assert done.code == 0, done.err
    rows = values_of(run)
    result = json.loads(done.out)
    assert [task["task"] for task in result["tasks"]] == ["mood", "topic", "truth"]
    assert [row["scores"] for row in result["matrix"]] == rows
    assert "Learning task 3: truth" in done.err
    assert [sorted(row) for row in rows] == [
        ["mood", "topic", "truth"],
        ["mood", "topic"],
        ["mood", "topic", "truth"],
        ["mood", "topic", "truth"],
    ]
    assert [{task: row[task] for task in ("mood", "topic")} for row in rows[:3]] == earlier
    summary = {metric["name"]: metric["value"] for metric in read_json(run / "scores.json")["summary"]}
    before_learning = [(rows[1]["topic"], rows[0]["topic"]), (rows[2]["truth"], rows[0]["truth"])]
    assert summary["FWT (GEM)"] == pytest.approx(sum(a - b for a, b in before_learning) / 2)
    record = read_json(run / "tasks" / "03-truth" / "row.json")["tasks"][0]
    assert (record["name"], record["index"], record["row"]) == ("truth", 3, 3)
    assert (record["train_examples"], record["test_examples"]) == (12, 8)
    assert record["memory"]["examples"] == 4
    assert record["method_bytes"]["memory"] == sum(
        len(line["input"].encode()) + len(line["output"].encode())
        for folder in (run / "tasks").iterdir()
        if (folder / "memory.jsonl").exists()
        for line in map(json.loads, (folder / "memory.jsonl").read_text().splitlines())
    )


def test_the_row_before_is_scored_with_its_own_weights(run: Path, merganser: Command, tmp_path: Path) -> None:
    """The new column at the row before equals what `ask` said of the new task's texts before it was learned."""
    rows = toys.rows("truth", 8, seed=1)
    labels = {"right", "wrong"}
    from merganser.learner import Learner
    from merganser.streams.answers import AnswerSpec

    with Learner.open(run, read_only=True) as learner:
        spec = AnswerSpec(tuple(sorted(labels)))
        answers = learner.session.backbone.answer([row["input"] for row in rows], spec, 64)
    expected = sum(a.text == row["output"] for a, row in zip(answers, rows, strict=True)) / 8
    assert add(merganser, run).code == 0
    assert values_of(run)[2]["truth"] == expected


def test_a_task_without_test_texts(run: Path, merganser: Command) -> None:
    done = merganser("learn", run, "--task", "truth", "--train", run.parent / "truth.json")
    assert done.code == 0, done.err
    assert all("truth" not in row for row in values_of(run))
    assert read_json(run / "scores.json")["rows"][-1]["learned"] == ["truth"]
    assert merganser("ask", run, "--task", "truth", "two and two is four").out.strip() in ("right", "wrong")


def test_skipped_rows_and_one_file_as_both_are_printed_recorded_and_shown(
    run: Path, merganser: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    lines = [f"{row['input']};{row['output']}" for row in toys.rows("truth", 12)]
    lines[3:3] = ["two and two;", "one;cell;too many", "two;"]
    Path("claims.csv").write_text("input;output\n" + "\n".join(lines) + "\n")
    command = ("learn", run, "--task", "claims", "--train", "claims.csv", "--test", "claims.csv")
    refused = merganser(*command)
    kinds = (
        "2 × field 'output' is empty (first: line 5); "
        "1 × not as many cells as the 2 column names (first: line 6, 3 cells)"
    )
    assert (refused.code, f"claims.csv: 3 of 15 lines cannot be used: {kinds}" in refused.error) == (2, True)
    done = merganser(*command, "--on-bad-rows", "skip")
    assert done.code == 0, done.err
    remarks = [
        f"claims.csv: 3 of 15 lines skipped: {kinds}",
        "train and test are the same file: its test score says how well it was memorised, "
        "not how it does on anything new",
    ]
    printed = " ".join((done.out + done.err).split())
    assert [printed.count(f"Task 'claims': {remark}.") for remark in remarks] == [1, 1]
    assert read_json(run / "tasks" / "03-claims" / "row.json")["tasks"][0]["remarks"] == remarks
    assert merganser("report", run, "--out", "page.html").code == 0
    page = html.unescape(Path("page.html").read_text())
    assert [page.count(f"claims: {remark}.") for remark in remarks] == [1, 1]


def test_fields_prompt_and_labels(run: Path, merganser: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other column names, a prompt, named labels, another metric; files relative to where the command is given."""
    folder = run.parent / "data"
    folder.mkdir()
    monkeypatch.chdir(folder)
    lines = [f"{row['input']},{'yes' if row['output'] == 'right' else 'no'}" for row in toys.rows("truth", 12)]
    Path("claims.csv").write_text("body,verdict\n" + "\n".join(lines) + "\n")
    done = merganser(
        *("learn", run, "--task", "claims", "--train", "claims.csv", "--test", "claims.csv"),
        *("--input", "body", "--output", "verdict", "--labels", "no, yes", "--prompt", "Claim: {input}"),
        *("--metric", "exact_match"),
    )
    assert done.code == 0, done.err
    record = read_json(run / "tasks" / "03-claims" / "row.json")["tasks"][0]["spec"]
    assert (record["labels"], record["prompt"], record["metric"]) == (["no", "yes"], "Claim: {input}", "exact_match")
    kept = json.loads((run / "tasks" / "03-claims" / "test.jsonl").read_text().splitlines()[0])
    assert kept["input"].startswith("Claim: ")
    assert merganser("ask", run, "--task", "claims", "two and two").out.strip() in ("no", "yes")
    mixed = merganser("ask", run, "two and two")
    assert mixed.code == 0
    assert "the most likely of mood, topic, claims; --task names another." in mixed.err


def test_a_mix_needs_its_share(run: Path, merganser: Command) -> None:
    done = merganser("learn", run, "--task", "t", "--train", "truth.json", "--mix", "general.jsonl")
    assert (done.code, done.error.partition(".")[0]) == (2, "--mix and --mix-share go together")


def test_another_machine(merganser: Command, tmp_path: Path) -> None:
    """The run is copied, the model lies elsewhere, the old training files are gone: it goes on from the copy."""
    here, there = tmp_path / "here", tmp_path / "there"
    stream = toys.write_stream(here, model={"name": "encoder"})
    shutil.copytree(toys.model_folder(), here / "encoder")
    assert merganser("run", stream, "--out", here / "run").code == 0
    assert str(here / "encoder") in (here / "run" / "run.yaml").read_text()  # found beside the file that names it
    there.mkdir()
    (here / "run").rename(there / "run")
    (here / "encoder").rename(there / "encoder-moved")
    data = toys.write_stream(tmp_path / "data").parent
    shutil.rmtree(here)
    before = contents(there / "run")

    lost = add(merganser, there / "run", data=data)
    assert lost.code == 2
    assert f"{here / 'encoder'} does not exist" in lost.error
    assert contents(there / "run") == before

    other = tiny.tiny_bert(tmp_path / "other-model", seed=7)
    for command in (("ask", there / "run", "a text"), ("evaluate", there / "run")):
        refused = merganser(*command, "--model", other)
        assert refused.code == 2
        assert f"The model '{other}' (" in refused.error
        assert f") is not the one that '{there / 'run'}' was started with: '" in refused.error
    refused = add(merganser, there / "run", "--model", other, data=data)
    assert refused.code == 2
    assert contents(there / "run") == before

    moved = ("--model", there / "encoder-moved")
    assert merganser("ask", there / "run", "great film", "--task", "mood", *moved).code == 0
    measured = json.loads(merganser("evaluate", there / "run", "--json", *moved).out)
    assert {name: score["value"] for name, score in measured.items()} == values_of(there / "run")[-1]
    done = add(merganser, there / "run", *moved, data=data)
    assert done.code == 0, done.err
    assert "Continuing" in done.err
    assert [row["learned"] for row in read_json(there / "run" / "scores.json")["rows"]][-1] == ["truth"]


def test_the_same_bytes_as_the_whole_stream_at_once(merganser: Command, tmp_path: Path) -> None:
    """Three calls of `learn` leave the weights that one `run` leaves."""
    config = toys.settings()
    del config["stream"]
    data = toys.write_stream(tmp_path / "in", ("mood", "topic", "truth"), evaluation={"future": False})
    file = toys.write_config(tmp_path / "model.yaml", config | {"evaluation": {"future": False}})
    for task in ("mood", "topic", "truth"):
        files = ("--train", tmp_path / "in" / f"{task}.json", "--test", tmp_path / "in" / f"{task}-test.json")
        done = merganser("learn", tmp_path / "one-by-one", "--task", task, *files, "--config", file)
        assert done.code == 0, done.err
    assert merganser("run", data, "--out", tmp_path / "at-once").code == 0
    assert toys.results(tmp_path / "one-by-one") == toys.results(tmp_path / "at-once")
    rows = values_of(tmp_path / "at-once")
    assert [sorted(row) for row in rows] == [
        ["mood", "topic", "truth"],
        ["mood", "topic"],
        ["mood", "topic", "truth"],
        ["mood", "topic", "truth"],
    ]


def test_config_of_a_new_run_only(run: Path, merganser: Command) -> None:
    before = contents(run)
    other = toys.write_config(run.parent / "other.yaml", toys.settings(training={"batch": 2}))
    differs = add(merganser, run, "--config", other)
    assert (differs.code, "training.batch: 4 in the run, 2 requested" in differs.error) == (2, True)
    both = add(merganser, run, "--config", other, "--model", toys.model_folder())
    assert (both.code, "--model and --config were both given" in both.error) == (2, True)
    assert contents(run) == before
    nothing = merganser("learn", run.parent / "new", "--task", "a", "--train", run.parent / "mood.json")
    assert nothing.code == 2
    assert nothing.error.endswith("Start one with `merganser run`, or give --config FILE.yaml.")
    assert not (run.parent / "new").exists()
