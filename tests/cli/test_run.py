"""``merganser run``: every method on tiny tasks, continuing, refusing, seeds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.learner import toys
from tests.learner.toys import Command, contents, read_json, results, values_of, write_rows, write_stream


@pytest.mark.parametrize("method", ["sequential", "replay", "aim"])
def test_a_method_learns_three_tasks(method: str, merganser: Command, tmp_path: Path) -> None:
    stream = write_stream(
        tmp_path / "in", ("mood", "topic", "truth"), **({} if method == "aim" else {"method": method})
    )
    done = merganser("run", stream, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert "Learned 3 tasks, the last truth: " in done.out
    scores = read_json(tmp_path / "run" / "scores.json")
    assert scores["tasks"] == ["mood", "topic", "truth"]
    assert [row["learned"] for row in scores["rows"]] == [[], ["mood"], ["topic"], ["truth"]]
    assert all(set(row["scores"]) == {"mood", "topic", "truth"} for row in scores["rows"])
    assert all(score["n"] == 8 for row in scores["rows"] for score in row["scores"].values())
    last = values_of(tmp_path / "run")[-1]
    summary = {metric["name"]: metric["value"] for metric in scores["summary"]}
    assert summary["OP"] == pytest.approx(sum(last.values()) / 3)
    folders = sorted(path.name for path in (tmp_path / "run" / "tasks").iterdir())
    assert folders == ["00-start", "01-mood", "02-topic", "03-truth"]
    kept = [len((tmp_path / "run" / "tasks" / f / "memory.jsonl").read_text().splitlines()) for f in folders[1:]]
    assert kept == ([0, 0, 0] if method == "sequential" else [4, 4, 4])
    ledger = [json.loads(line) for line in (tmp_path / "run" / "ledger.jsonl").read_text().splitlines()]
    assert {merge["task"] for merge in ledger} == ({"topic", "truth"} if method == "aim" else set())
    costs = [read_json(tmp_path / "run" / "tasks" / f / "row.json")["tasks"][0]["cost"] for f in folders[1:]]
    assert [cost["examples_trained"] for cost in costs] == [24, 24, 24]  # 6 steps of 4
    rehearsed = [cost["examples_rehearsed"] for cost in costs]
    if method == "replay":
        assert rehearsed == [0, 24, 24]
    elif method == "aim":
        assert rehearsed == [0, 12, 12]  # half as many beside
        assert {merge["rehearsal_steps"] for merge in ledger} == {0}
    else:
        assert rehearsed == [0, 0, 0]
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "<html" in page
    assert page.count('class="chart curve"') == 3
    weights = {
        f: (tmp_path / "run" / "tasks" / f / "adapter" / "adapter_model.safetensors").read_bytes() for f in folders
    }
    assert len(set(weights.values())) == 4
    assert (tmp_path / "run" / "model" / "adapter_model.safetensors").read_bytes() == weights["03-truth"]


def test_single_keeps_one_model_per_task(merganser: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    stream = write_stream(tmp_path / "in", ("mood", "topic"), method="single")
    assert merganser("run", stream, "--out", run).code == 0
    start, first, second = values_of(run)
    assert first["topic"] == start["topic"]
    assert second["mood"] == first["mood"]
    before = contents(run)
    asked = merganser("ask", run, "great film")
    assert asked.code == 0
    assert asked.err.startswith("Answered as a text of task '")
    answers = [
        merganser("ask", run, row["input"], "--task", "mood").out.strip() for row in toys.rows("mood", 8, seed=1)
    ]
    right = sum(a == row["output"] for a, row in zip(answers, toys.rows("mood", 8, seed=1), strict=True))
    assert right / 8 == second["mood"]
    refused = merganser("export", run, tmp_path / "out")
    assert refused.code == 2
    assert "Name a task: mood, topic." in refused.error
    assert merganser("export", run, tmp_path / "out", "--task", "mood").code == 0
    stored = (run / "tasks" / "01-mood" / "adapter" / "adapter_model.safetensors").read_bytes()
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == stored
    measured = json.loads(merganser("evaluate", run, "--json").out)
    assert {name: score["value"] for name, score in measured.items()} == second
    assert contents(run) == before


def test_joint_learns_all_in_one_row_and_again_with_a_later_task(merganser: Command, tmp_path: Path) -> None:
    run, data = tmp_path / "run", tmp_path / "in"
    stream = write_stream(data, ("mood", "topic"), method="joint")
    assert merganser("run", stream, "--out", run).code == 0
    rows = read_json(run / "scores.json")["rows"]
    assert [row["learned"] for row in rows] == [[], ["mood", "topic"]]
    assert [path.name for path in sorted((run / "tasks").iterdir())] == ["00-start", "01-mood+1"]
    kept = (run / "tasks" / "01-mood+1" / "memory.jsonl").read_text().splitlines()
    assert len(kept) == 24  # all of both
    done = merganser(
        "learn", run, "--task", "truth", "--train", data / "truth.json", "--test", data / "truth-test.json"
    )
    assert done.code == 0, done.err
    assert "36 examples" in done.err  # learned together with everything before
    assert [row["learned"] for row in read_json(run / "scores.json")["rows"]] == [[], ["mood", "topic"], ["truth"]]


def test_the_same_command_on_a_finished_run_says_so(run: Path, merganser: Command) -> None:
    before = contents(run)
    done = merganser("run", run.parent / "stream.yaml", "--out", run)
    assert done.code == 0
    assert f"Continuing '{run}' after 2 learned task(s): mood, topic." in done.err
    assert "Every task of the stream is learned already." in done.err
    after = contents(run)
    assert after.pop("report.html")
    assert after == before


def test_another_configuration_is_refused_with_the_differences(run: Path, merganser: Command) -> None:
    before = contents(run)
    changed = toys.write_config(
        run.parent / "other.yaml", toys.settings(training={"batch": 8}, memory={"number": 2}, seed=3)
    )
    done = merganser("run", changed, "--out", run)
    assert done.code == 2
    assert "training.batch: 4 in the run, 8 requested" in done.error
    assert "memory.number: 4 in the run, 2 requested" in done.error
    assert "seed: 1 in the run, 3 requested" in done.error
    other = merganser("run", run.parent / "stream.yaml", "--out", run, "--method", "sequential")
    assert other.code == 2
    assert "method.name: 'aim' in the run, 'sequential' requested" in other.error
    assert contents(run) == before


def test_changed_data_of_a_learned_task_are_refused(run: Path, merganser: Command) -> None:
    before = contents(run)
    changed = toys.rows("mood", 12)
    changed[3]["input"] += " indeed"
    write_rows(run.parent / "mood.json", changed)
    done = merganser("run", run.parent / "stream.yaml", "--out", run)
    assert done.code == 2
    assert "The data of task 'mood' are not those this run learned" in done.error
    assert contents(run) == before


def test_a_longer_stream_goes_on_where_the_shorter_ended(run: Path, merganser: Command, tmp_path: Path) -> None:
    longer = toys.write_config(run.parent / "longer.yaml", toys.settings(("mood", "topic", "truth")))
    earlier = values_of(run)
    done = merganser("run", longer, "--out", run)
    assert done.code == 0, done.err
    assert "Learning task 3 of 3: truth" in done.err
    assert "Learning task 1" not in done.err
    rows = values_of(run)
    assert [{name: row[name] for name in ("mood", "topic")} for row in rows[:3]] == earlier
    # The row before training and the row before the new task know how the new task scored then.
    assert [sorted(row) for row in rows] == [["mood", "topic", "truth"], ["mood", "topic"]] + 2 * [
        ["mood", "topic", "truth"]
    ]
    assert merganser("run", longer, "--out", tmp_path / "at-once").code == 0
    at_once = results(tmp_path / "at-once")
    weights = "tasks/03-truth/adapter/adapter_model.safetensors"
    assert (run / weights).read_bytes() == at_once[weights]


def test_seed_decides_everything(merganser: Command, tmp_path: Path, run: Path) -> None:
    stream = run.parent / "stream.yaml"
    assert merganser("run", stream, "--out", tmp_path / "again").code == 0
    assert results(tmp_path / "again") == results(run)
    assert merganser("run", stream, "--out", tmp_path / "other", "--seed", "2").code == 0
    same, other = results(run), results(tmp_path / "other")
    assert same.keys() == other.keys()
    assert all(same[name] != other[name] for name in same if name.endswith(("safetensors", "signals.jsonl")))
    assert read_json(run / "scores.json")["tasks"] == read_json(tmp_path / "other" / "scores.json")["tasks"]


def test_method_and_seed_of_the_command_are_recorded(merganser: Command, tmp_path: Path) -> None:
    stream = write_stream(tmp_path / "in", ("mood",))
    assert merganser("run", stream, "--out", tmp_path / "run", "--method", "replay", "--seed", "5").code == 0
    info = toys.yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())
    assert info["config"]["method"]["name"] == "replay"
    assert info["seed"] == info["config"]["seed"] == 5
    assert info["command"] == f"merganser run {stream} --out {tmp_path / 'run'} --method replay --seed 5"
    assert info["config"]["resolved"]["lora_targets"] == ["query", "value"]
    assert {"torch", "transformers", "peft", "merganser", "processor"} <= set(info["versions"])


def test_forward_transfer_and_its_cache(merganser: Command, tmp_path: Path) -> None:
    run = tmp_path / "aim"
    stream = write_stream(tmp_path / "in", ("mood", "topic"))
    first = merganser("run", stream, "--out", run, "--fwt")
    assert first.code == 0, first.err
    assert "Learning task 2 of 2: topic (alone)" in first.err
    scores = read_json(run / "scores.json")
    alone = {name: score["value"] for name, score in scores["references"].items()}
    assert sorted(alone) == ["mood", "topic"]
    rows = values_of(run)
    summary = {metric["name"]: metric["value"] for metric in scores["summary"]}
    gain = ((rows[1]["mood"] - alone["mood"]) + (rows[2]["topic"] - alone["topic"])) / 2
    assert summary["FWT (single-task)"] == pytest.approx(gain)
    # The first task starts from the pretrained model in either case.
    assert alone["mood"] == rows[1]["mood"]

    other = merganser("run", stream, "--out", tmp_path / "plain", "--fwt", "--method", "sequential")
    assert other.code == 0
    assert "(alone)" not in other.err
    assert "Single-task score of 'mood' found in the cache." in other.err
    assert "Single-task score of 'topic' found in the cache." in other.err
    assert read_json(tmp_path / "plain" / "scores.json")["references"] == scores["references"]
    # They are scores of the method `single` on the same stream.
    assert merganser("run", stream, "--out", tmp_path / "single", "--method", "single").code == 0
    assert values_of(tmp_path / "single")[-1] == alone

    before = contents(run)
    again = merganser("run", stream, "--out", run, "--fwt")
    assert again.code == 0
    assert "(alone)" not in again.err
    assert contents(run) == before


def test_all_labels_seen_are_candidates(merganser: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    stream = write_stream(tmp_path / "in", model={"candidates": "seen"}, method="sequential")
    assert merganser("run", stream, "--out", run).code == 0
    texts = tmp_path / "texts"
    texts.write_text("\n".join(row["input"] for row in toys.rows("mood", 8, seed=1)))
    answers = [
        json.loads(line)["answer"]
        for line in merganser(
            "ask", run, "--json", "--task", "mood", *[row["input"] for row in toys.rows("mood", 8, seed=1)]
        ).out.splitlines()
    ]
    right = sum(a == row["output"] for a, row in zip(answers, toys.rows("mood", 8, seed=1), strict=True))
    assert right / 8 == values_of(run)[-1]["mood"]
    assert set(answers) - {"good", "bad"}, "with labels of the later task as candidates, some answers are taken by them"
    plain = write_stream(tmp_path / "in2", method="sequential")
    assert merganser("run", plain, "--out", tmp_path / "own").code == 0
    assert values_of(tmp_path / "own")[-1]["mood"] >= values_of(run)[-1]["mood"]
    measured = json.loads(merganser("evaluate", run, "--json").out)
    assert {name: score["value"] for name, score in measured.items()} == values_of(run)[-1]


@pytest.mark.parametrize("kind", ["seq2seq", "causal"])
def test_models_that_write_their_answer(kind: str, merganser: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    stream = write_stream(
        tmp_path / "in",
        model={"name": str(toys.model_folder(kind)), "kind": kind},
        training={"steps": 3},
    )
    values = toys.yaml.safe_load(stream.read_text())
    values["stream"]["tasks"][1]["answer"] = "rank"
    toys.write_config(stream, values)
    assert merganser("run", stream, "--out", run).code == 0
    assert [row["learned"] for row in read_json(run / "scores.json")["rows"]] == [[], ["mood"], ["topic"]]
    ranked = merganser("ask", run, "--task", "topic", "the team won")
    assert ranked.out.strip() in ("sport", "business")
    measured = json.loads(merganser("evaluate", run, "--json").out)
    assert {name: score["value"] for name, score in measured.items()} == values_of(run)[-1]


def test_a_run_that_learned_nothing_starts_over(merganser: Command, tmp_path: Path) -> None:
    """A first task that diverges can be tried again in the same folder with a lower learning rate."""
    bad = write_stream(tmp_path, training={"learning_rate": 1e30, "clip": 0})
    out = tmp_path / "run"
    assert merganser("run", str(bad), "--out", str(out)).code == 1
    good = write_stream(tmp_path)
    (out / "thesis").write_text("mine")
    before = contents(out)
    refused = merganser("run", str(good), "--out", str(out))
    assert (refused.code, "but thesis in it is not of the run" in refused.error) == (2, True)
    assert contents(out) == before
    (out / "thesis").unlink()
    done = merganser("run", str(good), "--out", str(out))
    assert done.code == 0
    assert "had learned nothing yet; it starts over" in done.err
    fresh = tmp_path / "fresh"
    assert merganser("run", str(good), "--out", str(fresh)).code == 0
    assert results(out) == results(fresh)


def test_the_result_as_json(merganser: Command, tmp_path: Path) -> None:
    """One document on standard output, with what is in ``scores.json``; progress is on standard error."""
    run = toys.copy_of_trained(tmp_path)
    done = merganser("run", tmp_path / "stream.yaml", "--out", run, "--json")
    assert (done.code, "learned already" in done.err) == (0, True)
    result = json.loads(done.out)
    mood, topic = result["tasks"]
    rows = values_of(run)
    assert (mood["before"], mood["learned"], mood["now"]) == (rows[0]["mood"], rows[1]["mood"], rows[2]["mood"])
    assert mood["change"] == rows[2]["mood"] - rows[1]["mood"]
    assert (topic["row"], topic["change"], topic["examples"], topic["metric"]) == (2, 0.0, 8, "accuracy")
    assert (result["method"], result["seed"], result["page"]) == ("aim", 1, str(run / "report.html"))
    assert result["metrics"] == read_json(run / "scores.json")["summary"]
    assert set(result["stored_bytes"]) == {"memory", "weights"}
