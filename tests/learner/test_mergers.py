"""Whole runs of the methods that merge after each task: every kind of model, what they keep; interrupted in
``test_resume.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from merganser import Learner
from merganser.events import Merged
from merganser.runs import RunDirectory
from merganser.runs.record import CostRecord
from merganser.runs.undo import undo_rows
from merganser.weights import Weights
from tests.learner import toys
from tests.learner.test_learner import Interrupted, sections, task
from tests.learner.toys import results

NAMES = ("magmax", "tunable_magmax", "coma", "cofima", "running_average", "opcm", "pm", "became")


def options(name: str, kind: str = "matcher", **changes: Any) -> dict[str, Any]:
    method = {"name": name}
    if name in ("cofima", "pm", "became"):
        method = {**method, "fisher_examples": 4, "fisher_batch": 2}  # type: ignore[dict-item]
    if name == "tunable_magmax":
        method["preference"] = "feature_similarity"
    values = sections(model={"name": str(toys.model_folder(kind)), "kind": kind}, training={"steps": 3}, **changes)
    # The toys' own method is another; its options are not to be mixed in.
    return {**values, "method": method}


BESIDE = ("memory", "weights", "pretrained weights")
"""Kept by the run, not in the method's own folder; tests/learner/test_storing.py measures all of it."""

TASKS = [task("mood", mode="rank"), task("topic", mode="rank")]


@pytest.mark.parametrize("name", NAMES)
def test_what_a_run_records_of_its_merges(name: str, tmp_path: Path) -> None:
    merged: list[Merged] = []
    with Learner.open(tmp_path / "whole", listener=lambda e: merged.append(e) if isinstance(e, Merged) else None,
                      **options(name)) as learner:  # fmt: skip
        learner.learn_stream(TASKS)
        records, merges = learner.record.tasks, learner.record.merges
    first = name in ("magmax", "tunable_magmax")  # they scale the first task's update, too
    expected = ["mood", "topic"] if first else ["topic"]
    assert [(m.task, m.cause, m.step) for m in merges] == [(each, "end", 3) for each in expected]
    assert [(m.task, m.weight_new) for m in merged] == [(m.task, m.weight_new) for m in merges]
    cost: CostRecord = records[-1].cost
    assert cost.merging_seconds > 0
    assert cost.inner_seconds > 0
    kept = {key: size for key, size in records[-1].method_bytes.items() if key not in BESIDE}
    assert (kept == {}) == (name in ("coma", "running_average"))
    files = sum(file.stat().st_size for file in (tmp_path / "whole" / "tasks" / "02-topic" / "method").iterdir())
    # The headers of the files come on top; the earlier tasks' own weights are in their rows.
    assert sum(size for key, size in kept.items() if not key.startswith("earlier")) <= files + 32


@pytest.mark.parametrize(
    ("name", "kind", "lora"),
    [
        ("became", "seq2seq", True),
        ("became", "causal", False),
        ("tunable_magmax", "seq2seq", True),
        ("tunable_magmax", "causal", True),
        ("opcm", "matcher", False),
        ("pm", "seq2seq", False),
        ("cofima", "causal", True),
    ],
)
def test_every_kind_of_model_with_and_without_factors(name: str, kind: str, lora: bool, tmp_path: Path) -> None:
    values = options(name, kind)
    values["training"]["steps"] = 2
    if not lora:
        values["model"]["lora"] = None
        values["training"]["learning_rate"] = 0.001
    with Learner.open(tmp_path / "run", **values) as learner:
        learner.learn_stream(TASKS)
        assert learner.record.merges
        weights = Weights.of(learner.session.backbone.module)
        assert weights.is_finite()
        assert weights.minus(learner.session.deployed(0)).l2() > 0


def test_opcm_deploys_the_best_update_of_the_adapters_rank(tmp_path: Path) -> None:
    values = options("opcm")
    values["training"]["steps"] = 6
    with Learner.open(tmp_path / "run", **values) as learner:
        learner.learn_stream(TASKS)
        method, weights = learner.session.method, Weights.of(learner.session.backbone.module)
        factors = method._state.factors  # type: ignore[attr-defined]
        assert factors
        for name, exact in factors.items():
            assert exact.rank == 8  # two tasks of rank 4
            product = weights[name.replace(".lora_A.", ".lora_B.")] @ weights[name]
            whole = torch.from_numpy(exact.update())
            left, spectrum, right = torch.linalg.svd(whole)
            best = left[:, :4] @ torch.diag(spectrum[:4]) @ right[:4]
            torch.testing.assert_close(product, best.float(), atol=1e-5, rtol=1e-4)


def test_a_task_that_broke_off_leaves_nothing_in_the_method(tmp_path: Path) -> None:
    with Learner.open(tmp_path / "plain", **options("magmax")) as learner:
        learner.learn_stream(TASKS)
    failing = [True]

    def listener(event: Any) -> None:
        # After the first task's merge, while it is scored: the method has noted it, the run has not.
        if failing[0] and isinstance(event, Merged):
            failing[0] = False
            raise Interrupted

    with Learner.open(tmp_path / "run", listener=listener, **options("magmax")) as learner:
        with pytest.raises(Interrupted):
            learner.learn_stream(TASKS)
        learner.learn_stream(TASKS)
    assert results(tmp_path / "run") == results(tmp_path / "plain")


def test_undone_tasks_are_forgotten_by_the_method(tmp_path: Path) -> None:
    with Learner.open(tmp_path / "run", **options("cofima")) as learner:
        learner.learn_stream(TASKS)
    before = results(tmp_path / "run")
    directory = RunDirectory.open(tmp_path / "run")
    with directory.lock:
        undo_rows(directory)
    with Learner.open(tmp_path / "run") as learner:
        learner.learn(TASKS[1])
    assert results(tmp_path / "run") == before
