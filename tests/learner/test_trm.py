"""TRM through the learner: the exact cases of its merge, on every kind of model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from merganser.learner import Learner
from merganser.weights import Weights
from tests.learner.test_learner import task
from tests.learner.test_mergers import options

TASKS = [task(name, mode="rank") for name in ("mood", "topic", "truth")]


def trm(kind: str = "matcher", lora: bool = True, **method: Any) -> dict[str, Any]:
    values = options("trm", kind)
    values["method"] = {"name": "trm", "steps": 3, "batch": 8, **method}
    if not lora:
        values["model"]["lora"] = None
        values["training"]["learning_rate"] = 0.002
    return values


def trained(folder: Path, values: dict[str, Any]) -> list[Weights]:
    """Weights deployed after one task and after two."""
    found = []
    with Learner.open(folder, **values) as learner:
        for each in TASKS[:2]:
            learner.learn(each)
            found.append(Weights.of(learner.session.backbone.module).snapshot())
    return found


@pytest.mark.parametrize(("lora", "first_too"), [(True, False), (False, True)])
def test_without_steps_it_is_the_interpolation(lora: bool, first_too: bool, tmp_path: Path) -> None:
    """From the first task on, or (the first one's weights are deployed as trained) from the second."""
    values = trm(lora=lora, space="factors", steps=0, ablation={"merge_first": first_too})
    first, merged = trained(tmp_path / "trm", values)
    coma = {"name": "coma", "alpha": 0.3, "merge_first": first_too}
    alone, interpolated = trained(tmp_path / "coma", {**values, "method": coma})
    plain, _ = trained(tmp_path / "plain", {**values, "method": {"name": "sequential"}})
    assert (first.minus(plain).l2() > 0) == first_too
    assert first.minus(alone).l2() <= 1e-6 * first.l2()
    # What rounding does to the first task's merge, training of the second one magnifies.
    assert merged.minus(interpolated).l2() <= (1e-3 if first_too else 1e-6) * merged.l2()
    assert merged.minus(first).l2() > 0


@pytest.mark.parametrize("kind", ["matcher", "seq2seq", "causal"])
@pytest.mark.parametrize("lora", [True, False])
def test_every_kind_of_model_with_and_without_factors(kind: str, lora: bool, tmp_path: Path) -> None:
    first, merged = trained(tmp_path / "run", trm(kind, lora))
    assert merged.is_finite()
    assert merged.minus(first).l2() > 0


@pytest.mark.parametrize("lora", [True, False])
def test_what_is_stored_does_not_grow_with_the_tasks(lora: bool, tmp_path: Path) -> None:
    with Learner.open(tmp_path / "run", **trm(lora=lora), runs={"keep_weights": "all"}) as learner:
        learner.learn_stream(TASKS)
        records = learner.record.tasks
    assert len({sum(record.method_bytes.values()) for record in records}) == 1
    assert all(record.method_bytes["memory"] == 0 for record in records)
    rows = sorted((tmp_path / "run" / "tasks").iterdir())[1:]
    weights = [sum(file.stat().st_size for file in row.glob("adapter/*.safetensors")) for row in rows]
    assert len(set(weights)) == 1
    assert not any((row / "memory.jsonl").read_text() for row in rows)
