"""Tasks of preferences in a run: learned beside other tasks, rehearsed, scored, resumed and asked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from merganser import AnswerSpec, Example, Learner, Task
from merganser.config import check_config
from merganser.errors import InputError
from merganser.events import Event, Notice, StepDone
from merganser.models.pairs import measure_pairs
from merganser.streams.dpo import DpoOptions
from merganser.streams.loading import load_task
from merganser.streams.task_options import TaskOptions
from tests import tiny
from tests.learner import toys
from tests.learner.interrupted import Stop
from tests.learner.toys import Command, read_json, results

BETTER = {"good": "bad", "bad": "good"}


def pairs(number: int, seed: int = 0) -> list[Example]:
    """Whether a film is good, said politely and curtly."""
    return [
        Example(row["input"], f"it is {row['output']}", rejected=BETTER[row["output"]])
        for row in toys.rows("mood", number, seed)
    ]


def tasks(kind: str = "causal") -> list[Task]:
    """A task with labels, one of preferences, and one with labels again."""
    spec = AnswerSpec(dpo=DpoOptions(beta=0.5))
    made = [
        Task(
            name,
            *([Example(row["input"], row["output"]) for row in toys.rows(name, *size)] for size in ((8, 0), (2, 2))),
            test=[Example(row["input"], row["output"]) for row in toys.rows(name, 4, 1)],
            spec=AnswerSpec(toys.LABELS[name], metric="accuracy"),
        )
        for name in ("topic", "truth")
    ]
    return [made[0], Task("polite", pairs(8), pairs(2, 2), pairs(5, 1), spec), made[1]]


def sections(kind: str = "causal", **changes: Any) -> dict[str, Any]:
    model = {"name": str(toys.model_folder(kind)), "kind": kind, "lora": {"r": 4, "dropout": 0.1}}
    training = {"steps": 4, "checkpoint_steps": 1, "checkpoint_minutes": None, **changes.pop("training", {})}
    method = {"name": "aim", "interval": 2, "cold_start": 1, "rehearsal_steps": 2, "probe_set": "fixed"}
    values = toys.settings(model=model, training=training, memory={"number": 4}, evaluation={"future": False})
    values["method"] = changes.get("method", method)
    del values["stream"]
    return values


def learn(run: Path, given: list[Task], stop: Callable[[Event], bool] = lambda event: False, **more: Any) -> None:
    def listener(event: Event) -> None:
        if stop(event):
            raise Stop

    try:
        with Learner.open(run, listener=listener, **sections(**more)) as learner:
            learner.learn_stream(given)
    except Stop:
        pass


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of the three tasks by aim, never interrupted."""
    run = tmp_path_factory.mktemp("preferences") / "run"
    learn(run, tasks())
    return run


def test_memory_and_test_set_hold_pairs(whole: Path) -> None:
    (folder,) = whole.glob("tasks/*-polite")
    kept = [json.loads(line) for line in (folder / "memory.jsonl").read_text().splitlines()]
    assert len(kept) == 4
    known = {(pair.input, pair.output, pair.rejected) for pair in pairs(8)}
    assert {(line["input"], line["output"], line["rejected"]) for line in kept} <= known
    others = (whole / "tasks").glob("*-t*/memory.jsonl")
    assert not any("rejected" in path.read_text() for path in others)
    record = read_json(folder / "row.json")["tasks"][0]
    assert record["spec"]["dpo"] == {"beta": 0.5, "loss": "sigmoid"}
    assert record["memory"]["bytes"] == sum(len(x["input"] + x["output"] + x["rejected"]) for x in kept)
    # The next task rehearses words and pairs together, each by its own loss.
    assert read_json(next(whole.glob("tasks/*-truth/row.json")))["tasks"][0]["cost"]["examples_rehearsed"] > 0


def test_the_score_is_how_often_the_chosen_answer_is_likelier(whole: Path) -> None:
    with Learner.open(whole, read_only=True) as learner:
        backbone, (test, spec) = learner.session.backbone, (pairs(5, 1), tasks()[1].spec)
        right = sum(
            backbone._log_likelihoods(backbone._encode([pair.input]), pair.answers)[0].diff().item() < 0
            for pair in test
        )
        score = learner.evaluate()["polite"]
        assert (score.value, score.n) == (right / 5, 5)
        assert score.stderr == pytest.approx((score.value * (1 - score.value) / 4) ** 0.5)
        assert score == learner.scores.rows[-1].scores["polite"]
        features = backbone.features(test, spec)
        assert torch.allclose(measure_pairs(backbone, features, 2), measure_pairs(backbone, features, 5), atol=1e-4)


@pytest.mark.parametrize(("task", "step"), [("polite", 2), ("truth", 3)])
def test_interrupted_it_ends_in_the_same_bits(task: str, step: int, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    number = {"polite": 2, "truth": 3}[task]
    for folder in (run / "tasks").iterdir():
        if int(folder.name[:2]) >= number:
            shutil.rmtree(folder)
    learn(run, tasks(), lambda event: isinstance(event, StepDone) and (event.task, event.step) == (task, step))
    assert len(list((run / "tasks").iterdir())) == number
    learn(run, tasks())
    assert results(run) == results(whole)


def test_asked_like_any_other(whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    merganser = Command(monkeypatch, capsys)
    assert merganser("ask", whole, "the film was great", "--task", "polite").code == 0


@pytest.mark.parametrize("method", ["replay", "ewc", "became", "cofima", "pm"])
def test_other_methods_learn_pairs(method: str, tmp_path: Path) -> None:
    given = [replaced(task) for task in tasks()[:2]]
    changes = {"fisher": "true"} if method in ("ewc", "cofima") else {}
    kind = "seq2seq" if method == "replay" else "causal"
    with Learner.open(
        tmp_path / "run", **sections(kind, method={"name": method, **changes}, training={"steps": 1})
    ) as learner:
        learner.learn(given[1])
        learner.learn(given[0])
        assert set(learner.scores.rows[-1].scores) == {"polite", "topic"}


def test_a_first_task_of_pairs_is_no_promise_to_other_runs() -> None:
    """Their training is not shared, since its loss reads the answers of the weights before it."""
    config = check_config(sections(method={"name": "sequential"}), "options")
    labels, preferences, _ = tasks()
    starts = [Learner.plan(config, given).plain_start for given in ([labels, preferences], [preferences, labels])]
    assert starts == [True, False]


def replaced(task: Task) -> Task:
    """A task of two examples, for methods whose work after a task grows with it."""
    return Task(task.name, task.train[:2], test=task.test[:1], spec=task.spec)


def test_best_weights_by_the_loss_on_development_pairs(tmp_path: Path) -> None:
    training = {"steps": 2, "select_best": True, "select_by": "loss", "select_every": 1}
    with Learner.open(tmp_path / "run", **sections(training=training, method="sequential")) as learner:
        learner.learn(tasks()[1])
        record = learner.record.tasks[0]
    assert record.selected_step in (1, 2)
    assert all(0 < loss < 2 for loss in record.dev_scores.values())


@pytest.mark.parametrize(
    ("kind", "method", "message"),
    [
        ("matcher", "replay", "preferences are learned by a model that writes"),
        ("causal", "lwf", "LwF cannot learn 'polite', a task of preferences"),
        ("causal", "trm", "Trajectory Regularized Merging cannot learn 'polite'"),
        ("causal", "joint", "'polite', a task of preferences, has another loss than 'truth'"),
    ],
)
def test_refused_before_any_work(kind: str, method: str, message: str, tmp_path: Path) -> None:
    with (
        Learner.open(tmp_path / "run", **sections(kind, method=method)) as learner,
        pytest.raises(InputError, match=message),
    ):
        learner.learn_stream(tasks())


def test_both_answers_of_a_pair_are_counted_where_they_are_cut(tmp_path: Path) -> None:
    long = "a weak story and a poor end of the film"
    given = [Example("good?", "yes", rejected=f"{long} and"), Example("bad?", f"{long} is", rejected=long), *pairs(1)]
    task = Task("cut", given, spec=tasks()[1].spec)
    notices: list[str] = []
    with Learner.open(
        tmp_path / "run",
        listener=lambda event: notices.append(event.text) if isinstance(event, Notice) else None,
        **sections(method="sequential", training={"steps": 1}),
    ) as learner:
        learner.learn(task)
        assert learner.record.tasks[0].truncated == {"train_answers": 3}
    assert "Task 'cut': 3 of 6 training answers are cut after 8 tokens (training.max_target)." in notices
    assert any("1 of 3 pairs have answers of the same tokens" in notice for notice in notices)


def test_conversations_as_pairs(tmp_path: Path) -> None:
    """From a file of messages to a memory that is read back, through the chat template of the model."""
    folder = tiny.tiny_llama(tmp_path / "chat", chat=True, pad=True)

    def said(*texts: str) -> list[dict[str, str]]:
        return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]

    rows = [{"chosen": said(f"film {i}?", "good"), "rejected": said(f"film {i}?", "a poor end")} for i in range(6)]
    toys.write_rows(tmp_path / "pairs.json", rows)
    task = load_task(TaskOptions(name="chats", train="pairs.json", test="pairs.json", limit_test=3), tmp_path)
    values = sections(method="replay", training={"steps": 2, "max_input": 64})
    values["model"]["name"] = str(folder)
    with Learner.open(tmp_path / "run", **values) as learner:
        learner.learn(task)
        learner.learn(tasks()[0])  # rehearses them
        kept = [example for name, example in learner.session.memory() if name == "chats"]
        assert len(kept) == 4
        assert all(pair in task.train for pair in kept)
        (feature,) = learner.session.backbone.features(kept[:1], task.spec)
        decode = learner.session.backbone.tokenizer.decode
        assert (
            decode(feature["rejected"]["input_ids"]) == f"<|user|>{kept[0].input}<|end|><|assistant|>a poor end<|end|>"
        )
        assert learner.scores.rows[-1].scores["chats"].n == 3
