"""Methods of the table in whole runs: every kind of model, several models; interrupted in ``test_resume.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from merganser import Learner
from merganser.errors import InputError
from merganser.events import Event, Notice
from merganser.methods import METHODS
from tests.learner import toys
from tests.learner.test_learner import Interrupted, sections, task
from tests.learner.toys import values_of

CASES = [
    # These read the modules, the outputs or the losses of the model ...
    *((name, kind) for name in ("migu", "lwf", "ewc") for kind in ("seq2seq", "causal")),
    # ... and these compute with weights alone.
    *(("pam", "seq2seq"), ("tasl", "causal"), ("slao", "seq2seq"), ("kmerge", "causal"), ("olora", "seq2seq")),
]


def options_of(name: str, kind: str = "matcher", lora: bool = True, **method: Any) -> dict[str, Any]:
    """Three steps of a method on a tiny model."""
    given = sections(
        model={"name": str(toys.model_folder(kind)), "kind": kind},
        training={"steps": 3, "learning_rate": 0.02 if lora else 1e-3},
        evaluation={"future": False},
    )
    if not lora:
        given["model"]["lora"] = None
    given["method"] = {"name": name, **method}
    return given


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_it_learns_on_models_that_write(name: str, kind: str, tmp_path: Path) -> None:
    with Learner.open(tmp_path / "run", **options_of(name, kind)) as learner:
        learner.learn(task("mood", mode="rank"))
        learner.learn(task("topic", mode="rank"))
        asked = learner.predict(["great film"], "mood")
        told = [(merge.task, merge.cause) for merge in learner.record.merges]
    assert told in ([], [("topic", "end")])
    with Learner.open(tmp_path / "run", read_only=True) as again:
        assert again.predict(["great film"], "mood") == asked


def test_kmerge_answers_each_task_by_the_model_that_holds_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    tasks = [task("mood"), task("topic"), task("truth")]
    with Learner.open(run, **options_of("kmerge", models=2)) as learner:
        for each in tasks:
            learner.learn(each)
        slots = learner.session.method.slots  # type: ignore[attr-defined]
        assert sorted(map(len, slots)) == [1, 2]
        alone = next(rows[0] for rows in slots if len(rows) == 1)
        shared = next(rows for rows in slots if len(rows) == 2)
        assert shared[-1] == 3
        rows = values_of(run)
        kept, changed = tasks[alone - 1].name, tasks[shared[0] - 1].name
        assert rows[3][kept] == rows[alone][kept]
        assert {name: score.value for name, score in learner.evaluate().items()} == rows[3]
        assert learner.session.answered_by() == {kept: alone, changed: 3, "truth": 3}
        size = len((run / "tasks" / "03-truth" / "adapter" / "adapter_model.safetensors").read_bytes())
        assert [entry.method_bytes["weights"] for entry in learner.record.tasks] == [size, 2 * size, 2 * size]
        with pytest.raises(InputError, match="This method keeps several models"):
            learner.export(tmp_path / "out")
        (unnamed,) = learner.predict(["great film"])
        assert unnamed.text == learner.predict(["great film"], unnamed.task)[0].text
        asked = learner.predict(["great film", "weak film"], kept)
        learner.export(tmp_path / "out", task=changed)
    with Learner.open(run, read_only=True) as again:
        assert again.predict(["great film", "weak film"], kept) == asked
    exported = (tmp_path / "out" / "adapter_model.safetensors").read_bytes()
    assert exported == (run / "tasks" / "03-truth" / "adapter" / "adapter_model.safetensors").read_bytes()
    labels = toys.read_json(tmp_path / "out" / "labels.json")
    assert set(labels["tasks"]) == {changed, "truth"}


def test_what_a_method_noted_of_a_task_that_broke_off_is_forgotten(tmp_path: Path) -> None:
    failing = [True]

    def listener(event: object) -> None:
        if failing[0] and getattr(event, "learned", None) == ("mood",):
            failing[0] = False
            raise Interrupted

    with Learner.open(tmp_path / "run", listener=listener, **options_of("kmerge", models=1)) as learner:
        with pytest.raises(Interrupted):
            learner.learn(task("mood"))  # the row is complete; only the news of it broke off
        learner.learn(task("topic"))
        assert learner.session.method.slots == [[1, 2]]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["single", "kmerge", "sequential"])
def test_a_method_that_knows_the_task_says_so(name: str, tmp_path: Path) -> None:
    given = options_of(name)
    given["model"]["candidates"] = "seen"
    told: list[Event] = []
    with Learner.open(tmp_path / "run", listener=told.append, **given) as learner:
        learner.learn_stream([task("mood")])
    notices = [event.text for event in told if isinstance(event, Notice)]
    assert any("receives the task of each text" in text for text in notices) == METHODS[name].per_task_models
