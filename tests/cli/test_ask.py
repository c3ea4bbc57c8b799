"""``merganser ask``, ``evaluate`` and ``export`` on a finished run."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from merganser import AnswerSpec, Example, Learner, Task
from merganser.errors import InputError
from tests.learner import toys
from tests.learner.toys import Command, contents, read_json, values_of


def test_one_text_and_several(run: Path, merganser: Command) -> None:
    before = contents(run)
    single = merganser("ask", run, "the team won the match", "--task", "topic")
    assert single.code == 0
    assert single.out.strip() in ("sport", "business")
    several = merganser("ask", run, "--task", "topic", "the team won the match", "the bank cut its rates")
    lines = [line.split("\t") for line in several.out.splitlines()]
    assert [line[1] for line in lines] == ["the team won the match", "the bank cut its rates"]
    assert lines[0][0] == single.out.strip()
    assert contents(run) == before


def test_answers_are_those_that_were_scored(run: Path, merganser: Command) -> None:
    for task in ("mood", "topic"):
        rows = toys.rows(task, 8, seed=1)
        done = merganser("ask", run, "--json", "--task", task, *[row["input"] for row in rows])
        answers = [json.loads(line) for line in done.out.splitlines()]
        assert [answer["text"] for answer in answers] == [row["input"] for row in rows]
        assert all(set(answer) == {"text", "answer", "score"} and 0.5 <= answer["score"] <= 1 for answer in answers)
        right = sum(answer["answer"] == row["output"] for answer, row in zip(answers, rows, strict=True))
        assert right / 8 == values_of(run)[-1][task]


def test_without_a_task_all_labels_are_candidates(run: Path, merganser: Command) -> None:
    texts = [row["input"] for task in ("mood", "topic") for row in toys.rows(task, 8, seed=1)]

    def answers(*options: str) -> list[tuple[str, float]]:
        lines = merganser("ask", run, "--json", *options, *texts).out.splitlines()
        return [(answer["answer"], answer["score"]) for answer in map(json.loads, lines)]

    both = zip(answers("--task", "mood"), answers("--task", "topic"), answers(), strict=True)
    for mood, topic, (answer, score) in both:
        # The likeliest of all is the likeliest of its own task, and four share what two shared.
        assert answer in (mood[0], topic[0])
        assert score < dict([mood, topic])[answer]


TEXTS = ("the team won the match", "great film with a strong story", "two and two is five")


def learned_tasks(run: Path, kind: str, specs: dict[str, AnswerSpec], method: str = "sequential") -> Learner:
    """A learner that has learned a few texts of each task."""
    model = {"name": str(toys.model_folder(kind)), "kind": kind}
    values = toys.settings(model=model, method=method, training={"steps": 1})
    del values["stream"]
    learner = Learner.open(run, **values)
    for name, spec in specs.items():
        labels = spec.labels or ("a free answer",)
        learner.learn(Task(name, [Example(f"{name} {i}", labels[i % len(labels)]) for i in range(8)], spec=spec))
    return learner


FEW = AnswerSpec(("good", "bad"), metric="accuracy", mode="rank")
MANY = AnswerSpec(("sport", "business", "right", "wrong", "film"), metric="accuracy", mode="rank")
FREE = AnswerSpec(metric="rouge_l", prompt="Say: {input}")


@pytest.mark.parametrize(
    ("kind", "method", "specs"),
    [
        ("matcher", "sequential", {"few": FEW, "many": replace(MANY, prompt="News: {input}")}),
        ("matcher", "single", {"few": FEW, "many": MANY}),  # a model per task
        ("seq2seq", "sequential", {"many": MANY, "free": FREE}),
    ],
)
def test_tasks_that_are_asked_differently_are_all_asked_and_the_most_likely_answers(
    kind: str, method: str, specs: dict[str, AnswerSpec], merganser: Command, tmp_path: Path
) -> None:
    fields = {"pairs": AnswerSpec(("same", "other"), metric="accuracy", prompt="{first} and {second}")}
    with learned_tasks(tmp_path / "run", kind, {**specs, **fields}, method) as learner:
        answers = learner.predict(TEXTS)
        by_task = {name: learner.predict(TEXTS, task=name) for name in specs}
        with pytest.raises(InputError, match="2 fields"):
            learner.predict(TEXTS, task="pairs")
    for number, answer in enumerate(answers):
        # By hand: how much of the way from guessing to certainty.
        above = {}
        for name, spec in specs.items():
            chance = 1 / len(spec.labels) if spec.labels else 0.0
            above[name] = (by_task[name][number].score - chance) / (1 - chance)
        best = max(above, key=lambda name: above[name])
        assert (answer.text, answer.score) == (by_task[best][number].text, by_task[best][number].score)
        assert answer.task == best
        assert f"task='{best}')" in repr(answer)
        assert by_task[best][number].task == ""
    if method == "single" or kind != "matcher":
        return  # the command is the same
    done = merganser("ask", tmp_path / "run", "--json", *TEXTS)
    assert [json.loads(line)["task"] for line in done.out.splitlines()] == [answer.task for answer in answers]
    done = merganser("ask", tmp_path / "run", *TEXTS)
    assert [line.split("\t") for line in done.out.splitlines()] == [
        [answer.text, text, answer.task] for answer, text in zip(answers, TEXTS, strict=True)
    ]
    done = merganser("ask", tmp_path / "run", TEXTS[0])
    assert done.out == f"{answers[0].text}\n"
    assert f"Answered as a text of task '{answers[0].task}'" in done.err
    assert "--task names another" in done.err


def test_texts_from_standard_input(run: Path, merganser: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("the team won\n\n  the bank cut its rates \n"))
    done = merganser("ask", run, "--task", "topic")
    assert [line.split("\t")[1] for line in done.out.splitlines()] == ["the team won", "the bank cut its rates"]
    assert done.err == ""
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n \n"))
    nothing = merganser("ask", run)
    assert (nothing.code, nothing.error) == (
        2,
        "There is no text to answer. Give texts, or one per line on standard input.",
    )


def test_texts_that_are_no_valid_unicode(run: Path, merganser: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments have lone surrogates in place of bytes that are not UTF-8; standard input is read as bytes."""
    before = contents(run)
    byte = "is no valid Unicode: it holds the byte 0xff, which is not UTF-8"
    for command, message in (
        (("ask", run, "--task", "topic", "fine", "\udcff"), f"Text 2 {byte}"),
        (("ask", run, "a text", "--task", "t\udcff"), "There is no task 't"),
        (("learn", run, "--task", "t\udcff", "--train", "x.json"), "cannot name a folder"),
        (("learn", run, "--task", "t", "--train", run.parent / "truth.json", "--prompt", "{input}\udcff"), "prompt"),
        (("learn", run, "--task", "t", "--train", run.parent / "truth.json", "--labels", "a,\udcff"), "labels"),
        (
            ("learn", run, "--task", "t", "--train", "\udcff.json"),
            "train: '\\udcff.json' is no valid Unicode. Write it",
        ),
    ):
        done = merganser(*command)
        assert (done.code, message in done.error, "This is a bug" in done.error) == (2, True, False), done.error
    for data, message in (
        (b"the team\ncaf\xe9\n", "Standard input, line 2: it holds the byte 0xe9, which is not UTF-8."),
        ("the team".encode("utf-16")[:-1], "Standard input: byte 17 is not UTF-16"),
    ):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        done = merganser("ask", run, "--task", "topic")
        assert (done.code, message in done.error) == (2, True), done.error
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("the café\n\nteam\r\n".encode("utf-16")), "ascii"))
    done = merganser("ask", run, "--task", "topic")
    assert [line.split("\t")[1] for line in done.out.splitlines()] == ["the café", "team"]
    assert contents(run) == before


def test_nothing_learned_yet(merganser: Command, tmp_path: Path) -> None:
    """A task diverged: row 0 is there, nothing else."""
    stream = toys.write_stream(tmp_path / "in", training={"learning_rate": 1e39, "warmup": 0, "steps": 1})
    assert merganser("run", stream, "--out", tmp_path / "run").code == 1
    for command in (("ask", tmp_path / "run", "a text"), ("evaluate", tmp_path / "run")):
        done = merganser(*command)
        assert done.code == 2
        assert done.error == f"Nothing was learned yet in '{tmp_path / 'run'}'. Learn a task first."
    assert merganser("export", tmp_path / "run", tmp_path / "out").code == 2
    assert not (tmp_path / "out").exists()


def test_evaluate_gives_the_last_row(run: Path, merganser: Command) -> None:
    before = contents(run)
    done = merganser("evaluate", run, "--json")
    last = read_json(run / "scores.json")["rows"][-1]["scores"]
    assert json.loads(done.out) == {name: {"metric": "accuracy", **score} for name, score in last.items()}
    table = merganser("evaluate", run)
    assert table.code == 0
    for score in last.values():
        assert f"{100 * score['value']:.1f}" in table.out
    assert "OP" in table.out
    assert contents(run) == before


def test_evaluate_without_test_texts(merganser: Command, tmp_path: Path) -> None:
    stream = toys.write_stream(tmp_path / "in", ("mood",), training={"steps": 1})
    values = toys.yaml.safe_load(stream.read_text())
    del values["stream"]["tasks"][0]["test"]
    toys.write_config(stream, values)
    assert merganser("run", stream, "--out", tmp_path / "run").code == 0
    done = merganser("evaluate", tmp_path / "run")
    assert done.code == 2
    assert "no learned task has a test set" in done.error


def test_an_exported_matcher_answers_with_plain_libraries(run: Path, merganser: Command, tmp_path: Path) -> None:
    """Adapter and whole model, loaded without Merganser, choose the labels that `ask` chooses."""
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoTokenizer

    before = contents(run)
    texts = [row["input"] for row in toys.rows("topic", 8, seed=1)]
    asked = [json.loads(line) for line in merganser("ask", run, "--json", "--task", "topic", *texts).out.splitlines()]
    done = merganser("export", run, tmp_path / "adapter")
    assert done.out.startswith(f"Wrote {tmp_path / 'adapter'} (a PEFT adapter);")
    assert merganser("export", run, tmp_path / "whole", "--merged").code == 0
    assert contents(run) == before

    def answers(model: torch.nn.Module, folder: Path) -> list[tuple[str, float]]:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        names = read_json(folder / "labels.json")["tasks"]["topic"]["labels"]
        vectors = load_file(folder / "label_vectors.safetensors")["topic"]
        model.eval()
        found = []
        for text in texts:
            ids = tokenizer(text, return_tensors="pt")
            with torch.no_grad():
                hidden = model(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]).last_hidden_state
            unit = torch.nn.functional.normalize(hidden.mean(1), dim=-1)
            shares = torch.softmax(unit @ vectors.T / 0.05, dim=-1)[0]
            found.append((names[int(shares.argmax())], float(shares.max())))
        return found

    adapted = PeftModel.from_pretrained(AutoModel.from_pretrained(toys.model_folder()), tmp_path / "adapter")
    whole = AutoModel.from_pretrained(tmp_path / "whole")
    for model, folder in ((adapted, tmp_path / "adapter"), (whole, tmp_path / "whole")):
        there = answers(model, folder)
        assert [name for name, _ in there] == [answer["answer"] for answer in asked]
        assert [score for _, score in there] == pytest.approx([answer["score"] for answer in asked], abs=1e-4)


@pytest.mark.parametrize("kind", ["seq2seq", "causal"])
def test_an_exported_writer_writes_the_same(kind: str, merganser: Command, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    loader = AutoModelForSeq2SeqLM if kind == "seq2seq" else AutoModelForCausalLM
    folder = toys.model_folder(kind)
    stream = toys.write_stream(
        tmp_path / "in", ("topic",), model={"name": str(folder), "kind": kind}, training={"steps": 30}
    )
    assert merganser("run", stream, "--out", tmp_path / "run").code == 0
    texts = [row["input"] for row in toys.rows("topic", 4, seed=1)]
    asked = [
        json.loads(line)["answer"] for line in merganser("ask", tmp_path / "run", "--json", *texts).out.splitlines()
    ]
    assert any(asked)
    assert merganser("export", tmp_path / "run", tmp_path / "adapter").code == 0
    assert merganser("export", tmp_path / "run", tmp_path / "whole", "--merged").code == 0
    adapted = PeftModel.from_pretrained(loader.from_pretrained(folder), tmp_path / "adapter")
    for model in (adapted, loader.from_pretrained(tmp_path / "whole")):
        model.eval()
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "whole")
        written = []
        for text in texts:
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                out = model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=8,
                    do_sample=False,
                    pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
                )[0]
            written.append(
                tokenizer.decode(out if kind == "seq2seq" else out[ids.shape[1] :], skip_special_tokens=True)
            )
        assert [text.strip() for text in written] == asked


def test_export_refuses_what_it_cannot_write(run: Path, merganser: Command, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    there = merganser("export", run, tmp_path / "there")
    assert (there.code, there.error.startswith(f"'{tmp_path / 'there'}' exists. Choose a new folder")) == (2, True)
    (tmp_path / "file").write_text("")
    below = merganser("export", run, tmp_path / "file" / "out")
    assert (below.code, "Cannot create" in below.error) == (2, True)
    alone = merganser("export", run, tmp_path / "out", "--task", "mood")
    assert (alone.code, alone.error) == (
        2,
        "One model answers all tasks, so there is none of 'mood' alone. Leave --task out.",
    )
    other = merganser("export", run, tmp_path / "out", "--dtype", "half")
    assert (other.code, other.error) == (
        2,
        "There is no type 'half' to export. Choose one of float32, float16, bfloat16.",
    )
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("*.partial"))


def test_an_export_is_asked_as_its_run(run: Path, merganser: Command) -> None:
    assert merganser("export", run, run.parent / "out").code == 0
    base = ("--model", toys.model_folder())
    asked = [merganser("ask", place, *base, "--json", *TEXTS) for place in (run, run.parent / "out")]
    assert asked[0].code == asked[1].code == 0
    assert asked[0].out == asked[1].out
    assert "no task 'absent'" in merganser("ask", run.parent / "out", *base, "--task", "absent", "a").error


def test_what_is_neither_here_nor_may_be_asked_of_the_hub(merganser: Command) -> None:
    refused = merganser("ask", "nobody/nothing@topic", "a text")
    assert refused.code == 2
    assert "There is no run in 'nobody/nothing@topic'. 'nobody/nothing' at 'topic' cannot be read" in refused.error
    assert "HF_HUB_OFFLINE" in refused.error
    Path("nobody").mkdir()
    assert "hub" not in merganser("ask", "nobody/nothing", "a text").error
