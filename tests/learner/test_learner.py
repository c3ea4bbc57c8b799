"""The learner from Python: open, learn, be interrupted, ask."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from merganser import Example, Learner, Task
from merganser.errors import InputError, RunError
from merganser.events import Event, Merged, Notice, RowDone, StepDone, TaskStarted
from merganser.files.atomic import make_folder
from merganser.methods import TaskContext
from merganser.methods.aim import Aim
from merganser.runs import directory
from merganser.streams.answers import AnswerSpec
from tests.learner import toys
from tests.learner.toys import contents, results, values_of


def task(name: str, train: list[Example] | None = None, **spec: Any) -> Task:
    """One of the toy tasks, with other training examples or answered otherwise where these are given."""
    splits = {
        split: [Example(row["input"], row["output"], "") for row in toys.rows(name, number, seed)]
        for split, number, seed in (("train", 12, 0), ("test", 8, 1))
    }
    values: dict[str, Any] = {"labels": tuple(sorted(toys.LABELS[name])), "metric": "accuracy"}
    if train is not None:
        splits["train"] = train
    return Task(name=name, spec=AnswerSpec(**{**values, **spec}), **splits)


def sections(**changes: Any) -> dict[str, Any]:
    values = toys.settings(**changes)
    del values["stream"]
    return values


def test_the_five_lines(tmp_path: Path) -> None:
    events: list[Event] = []
    with Learner.open(tmp_path / "run", listener=events.append, **sections()) as learner:
        row = learner.learn(task("mood"))
        assert row.learned == ["mood"]
        learner.learn(task("topic"))
        assert learner.learned == ["mood", "topic"]
        entry = learner.scores.score(2, "topic")
        assert entry is not None
        answers = learner.predict([example.input for example in task("topic").test], "topic")
    right = sum(a.text == e.output for a, e in zip(answers, task("topic").test, strict=True))
    assert right / 8 == values_of(tmp_path / "run")[-1]["topic"]
    started = [event for event in events if isinstance(event, TaskStarted)]
    assert [(e.task, e.index, e.examples, e.memory_examples, e.steps) for e in started] == [
        ("mood", 1, 12, 0, 6),
        ("topic", 2, 12, 4, 6),
    ]
    steps = [event for event in events if isinstance(event, StepDone)]
    assert [(e.task, e.step, e.steps) for e in steps] == [(t, s, 6) for t in ("mood", "topic") for s in range(1, 7)]
    assert all((e.probe is not None) == (e.task == "topic" and e.interval is not None) for e in steps)
    assert [e.learned for e in events if isinstance(e, RowDone)] == [(), ("mood",), ("topic",)]
    merges = [event for event in events if isinstance(event, Merged)]
    assert [(m.step, m.cause) for m in merges] == [(m.step, m.cause) for m in learner.record.merges]
    assert merges


def test_what_is_probed_is_spread_over_tasks_and_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[object] = []
    real = Aim.callbacks

    def noting(self: Aim, context: TaskContext) -> list[Any]:
        groups.append(sorted(context.memory_groups))
        return real(self, context)

    monkeypatch.setattr(Aim, "callbacks", noting)
    method = {"probe_set": "fixed", "probe_every": 2}
    with Learner.open(tmp_path / "run", **sections(method=method, training={"steps": 3})) as learner:
        learner.learn(task("mood"))
        learner.learn(task("topic"))
        probes = [signal.probe is not None for signal in learner.record.signals["topic"]]
    assert groups == [[], [("mood", "bad")] * 2 + [("mood", "good")] * 2]
    assert probes == [False, True, False]


class Interrupted(Exception):
    """Stands for whatever ends the work from outside."""


def at_step(name: str, step: int) -> Callable[[Event], None]:
    def listener(event: Event) -> None:
        if isinstance(event, StepDone) and (event.task, event.step) == (name, step):
            raise Interrupted

    return listener


@pytest.mark.parametrize("row", ["00-start", "01-mood"])
def test_interrupted_right_after_the_folder_of_a_row_was_made(
    row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def making(folder: Path) -> None:
        make_folder(folder)
        if folder.name == f"{row}.partial":
            raise KeyboardInterrupt

    run = tmp_path / "run"
    monkeypatch.setattr(directory, "make_folder", making)
    with Learner.open(run, **sections()) as learner:
        with pytest.raises(KeyboardInterrupt):
            learner.learn(task("mood"))
        assert not list(run.rglob("*.partial"))
        monkeypatch.undo()
        learner.learn(task("mood"))
    assert sorted(path.name for path in (run / "tasks").iterdir()) == ["00-start", "01-mood"]


@pytest.mark.parametrize(
    ("method", "kind"),
    [("single", "matcher"), ("joint", "matcher"), ("aim", "seq2seq"), ("replay", "causal")],
)
def test_an_interrupted_run_ends_in_the_same_bytes(method: str, kind: str, tmp_path: Path) -> None:
    options = sections(
        model={"name": str(toys.model_folder(kind)), "kind": kind},
        training={"steps": 3},
        **({} if method == "aim" else {"method": method}),
    )
    if kind == "matcher":
        options["model"]["candidates"] = "seen"
    tasks = [task("mood", mode="rank"), task("topic", mode="rank")]
    with Learner.open(tmp_path / "whole", **options) as learner:
        learner.learn_stream(tasks)
    broken = tmp_path / "broken"
    stop = ("mood", 2) if method == "joint" else ("topic", 2)
    with pytest.raises(Interrupted), Learner.open(broken, listener=at_step(*stop), **options) as learner:
        learner.learn_stream(tasks)
    assert not list(broken.rglob("*.partial"))
    assert [path.name for path in sorted((broken / "tasks").iterdir())] == (
        ["00-start"] if method == "joint" else ["00-start", "01-mood"]
    )
    notices: list[str] = []
    with Learner.open(broken, listener=lambda e: notices.append(e.text) if isinstance(e, Notice) else None) as learner:
        learner.learn_stream(tasks)
    continuing = [text for text in notices if "receives the task of each text" not in text]
    assert continuing == ([] if method == "joint" else [f"Continuing '{broken}' after 1 learned task(s): mood."])
    assert results(broken) == results(tmp_path / "whole")


def test_after_an_error_the_open_learner_is_where_it_was(tmp_path: Path) -> None:
    """The same object goes on: weights, method and scores are those of the last complete row."""
    with Learner.open(tmp_path / "plain", **sections()) as learner:
        learner.learn(task("mood"))
        learner.learn(task("topic"))
    failing = [True]

    def listener(event: Event) -> None:
        if failing[0] and isinstance(event, StepDone) and (event.task, event.step) == ("topic", 4):
            failing[0] = False
            raise Interrupted

    with Learner.open(tmp_path / "run", listener=listener, **sections()) as learner:
        learner.learn(task("mood"))
        before = contents(tmp_path / "run")
        asked = learner.predict(["great film", "weak film"])
        with pytest.raises(Interrupted):
            learner.learn(task("topic"))
        assert contents(tmp_path / "run") == before
        assert learner.predict(["great film", "weak film"]) == asked
        learner.learn(task("topic"))
    assert results(tmp_path / "run") == results(tmp_path / "plain")


def test_scores_do_not_depend_on_labels_met_before(tmp_path: Path) -> None:
    """A matcher that embedded other labels first gives the same bytes: rounding follows the batch alone."""
    with Learner.open(tmp_path / "run", **sections()) as learner:
        backbone = learner.session.backbone
        texts = [example.input for example in task("mood").test]
        spec = AnswerSpec(("bad", "good"))
        first = backbone.answer(texts, spec, 3)
        backbone.answer(texts[:2], AnswerSpec(tuple(f"{i} more" for i in range(37))), 8)
        assert backbone.answer(texts, spec, 3) == first
        example = [Example(text, "good") for text in texts]
        for wider in (spec, AnswerSpec(("bad", "good", "sport"))):
            batch = backbone.collate(backbone.features(example, spec)[:2] + backbone.features(example, wider)[2:])
            with torch.no_grad():
                logits = backbone.module.eval()(**batch)["logits"]
            expected = torch.stack(
                [torch.nn.functional.pad(row, (0, logits.shape[1] - 2), value=-torch.inf)
                 for row in (backbone.module.embed(batch["input_ids"], batch["attention_mask"])
                             @ backbone.label_vectors(spec).T / 0.05).detach()]
            )  # fmt: skip
            torch.testing.assert_close(logits[:2, :2], expected[:2, :2])
            torch.testing.assert_close(logits[:, :2], expected[:, :2])


def test_what_learn_refuses(tmp_path: Path) -> None:
    run = toys.copy_of_trained(tmp_path / "work")
    before = contents(run)
    with Learner.open(run) as learner:
        for given, message in (
            ((), "No task was given"),
            ((task("truth"), task("mood")), "AimMerging learns one task at a time, and 2 were given"),
            ((task("mood"),), "Task 'mood' was learned already"),
            ((task("truth", train=[]),), "has no training texts"),
            ((task("truth", train=[Example(" ", "right", "")]),), "train text 1: the input is empty"),
            ((task("truth", labels=("right",)),), "the answer is not one of the labels (right)"),
        ):
            with pytest.raises(InputError) as raised:
                learner.learn(*given)
            assert message in str(raised.value)
        with pytest.raises(InputError, match="Task 'truth' occurs twice"):
            learner.learn_stream([task("mood"), task("truth"), task("truth")])
    with Learner.open(run, read_only=True) as reader, pytest.raises(InputError, match="opened for reading only"):
        reader.learn(task("truth"))
    assert contents(run) == before


def test_opening(tmp_path: Path) -> None:
    run = toys.copy_of_trained(tmp_path / "work")
    before = contents(run)
    with Learner.open(run, method={"name": "aim", "interval": 2, "cold_start": 1}, seed=1) as learner:
        assert learner.learned == ["mood", "topic"]
    with pytest.raises(InputError, match="was started differently: seed: 1 in the run, 2 requested"):
        Learner.open(run, seed=2)
    with pytest.raises(InputError, match="options: sead: unknown key"):
        Learner.open(run, sead=2)
    with pytest.raises(InputError, match="There is no run in"):
        Learner.open(tmp_path / "absent")
    with pytest.raises(InputError, match="There is no run in"):
        Learner.open(tmp_path / "absent", read_only=True, **sections())
    assert not (tmp_path / "absent").exists()
    with Learner.open(run), pytest.raises(InputError, match="in use"):
        Learner.open(run)
    # A refusal lets go of the lock.
    (run / "tasks" / "01-mood" / "row.json").write_text("{}")
    with pytest.raises(InputError, match="damaged"):
        Learner.open(run)
    (run / "tasks" / "01-mood" / "row.json").write_bytes(before["tasks/01-mood/row.json"] or b"")
    with Learner.open(run):
        pass
    assert contents(run) == before


def test_a_start_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError), Learner.open(tmp_path / "run", **sections()) as learner:
        learner.learn(task("mood", train=[]))
    assert not (tmp_path / "run").exists()
    with (
        pytest.raises(RunError),
        Learner.open(tmp_path / "run", **sections(training={"learning_rate": 1e30, "clip": 0, "warmup": 0})) as learner,
    ):
        learner.learn(task("mood"))
    assert [path.name for path in (tmp_path / "run" / "tasks").iterdir()] == ["00-start"]


def test_whole_weights_instead_of_adapters(tmp_path: Path) -> None:
    options = sections(training={"steps": 2, "learning_rate": 1e-3})
    options["model"]["lora"] = None
    with Learner.open(tmp_path / "run", **options) as learner:
        learner.learn(task("mood"))
        learner.learn(task("topic"))
        asked = learner.predict(["great film"], "mood")
    with Learner.open(tmp_path / "run", read_only=True) as again:
        assert again.predict(["great film"], "mood") == asked
        with pytest.raises(InputError, match="A matcher chooses a label for one text"):
            again.predict([[{"role": "user", "content": "a text"}]])
        assert {name: s.value for name, s in again.evaluate().items()} == values_of(tmp_path / "run")[-1]


def test_free_text_and_labels_are_asked_one_after_the_other(tmp_path: Path) -> None:
    options = sections(
        model={"name": str(toys.model_folder("seq2seq")), "kind": "seq2seq"}, training={"steps": 1}, method="sequential"
    )
    with Learner.open(tmp_path / "run", **options) as learner:
        learner.learn(task("mood", labels=None, metric="rouge_l"))
        learner.learn(task("topic"))
        (answer,) = learner.predict(["a text"])
        assert answer.text == learner.predict(["a text"], answer.task)[0].text
        with pytest.raises(InputError, match="There is no task 'topics'"):
            learner.predict(["a text"], "topics")


def test_references_need_a_run_that_has_begun(tmp_path: Path) -> None:
    with Learner.open(tmp_path / "run", **sections()) as learner:
        with pytest.raises(InputError, match="Nothing was learned yet"):
            learner.measure_references([task("mood")])
        learner.learn(task("mood"))
        before = learner.predict(["great film"])
        found = learner.measure_references([task("mood")])
        assert found["mood"].value == values_of(tmp_path / "run")[1]["mood"]  # learned alone, it is learned the same
        assert learner.predict(["great film"]) == before
        assert learner.measure_references([task("mood")]) == found


def test_a_memory_that_would_keep_nothing_is_found_before_training(tmp_path: Path) -> None:
    told: list[Event] = []
    small = Task(
        "tiny", [Example("a text", "good"), Example("another", "bad")], spec=AnswerSpec(("good", "bad"), mode="rank")
    )
    given = {**sections(), "memory": {"share": 0.02}}
    with (
        pytest.raises(InputError, match="keeps none of 2 training texts"),
        Learner.open(tmp_path / "run", listener=told.append, **given) as learner,
    ):
        learner.learn(small)
    assert not any(isinstance(event, TaskStarted) for event in told)
