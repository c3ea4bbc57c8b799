"""Which cell is run next: none whose beginning another is just making."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from merganser.config import RunConfig
from merganser.learner.shared_parts import SharedParts, TrainingData
from merganser.study.cells import Cell, load_study
from merganser.study.schedule import Schedule, beginning
from merganser.training.options import MAY_CHANGE, TrainingOptions
from merganser.training.records import TaskRecords
from merganser.training.trainer import Outcome
from tests.learner import toys
from tests.study.conftest import write_study
from tests.study.test_shared_parts import Weights


def cells(folder: Path, **changes: Any) -> list[Cell]:
    return load_study(write_study(folder, **changes)).runs


def schedule(cells: list[Cell]) -> Schedule:
    names = [cell.name for cell in cells]
    first = {cell.name: beginning(cell, 2) for cell in cells}
    return Schedule(dict.fromkeys(names, 10.0), dict(zip(names, names, strict=True)), first)


def test_methods_that_begin_with_one_training_do_not_make_it_twice(tmp_path: Path) -> None:
    found = cells(tmp_path, methods=["sequential", "aim", "replay", "joint"])
    assert {cell.method: cell.config.training.asymmetric_loss for cell in found}["aim"]  # its default alone
    plan = schedule(found)
    plan.begin("sequential,s0")
    assert plan.next({}) == "joint,s0"
    plan.begin("joint,s0")
    assert plan.next({"sequential,s0": ("mood", 0.4)}) is None
    assert plan.next({"sequential,s0": ("topic", 0.6)}) == "aim,s0"


def finds(folder: Path, config: RunConfig) -> bool:
    """Whether a run with this configuration takes a training that is there, which it makes otherwise."""
    parts = SharedParts(folder, SimpleNamespace(config={}, versions={}))  # type: ignore[arg-type]
    data, records = TrainingData([{"input_ids": [1]}], None, 0), TaskRecords("mood", 1, lambda event: None)
    backbone: Any = Weights()
    parts.train(backbone, config, data, records, lambda: Outcome(3, {"": (4, 5)}, 0.1))
    return bool(parts.reused)


CHANGED = {
    "asymmetric_loss": True,
    "checkpoint_minutes": 7.0,
    "checkpoint_steps": 7,
    "report_steps": 7,
    "report_to": ["tensorboard"],
    "steps": 3,
    "batch": 5,
    "accumulation": 3,
    "learning_rate": 0.5,
    "weight_decay": 0.5,
    "clip": 0.5,
    "warmup": 0.5,
    "max_input": 9,
    "max_target": 9,
    "loss_mean": "batches",
    "group_by_length": False,
    "select_best": True,
}


@pytest.mark.parametrize("key", CHANGED)
def test_cells_wait_for_a_beginning_where_they_share_it_and_only_there(key: str, tmp_path: Path) -> None:
    training = toys.settings()["training"]
    assert training.get(key, TrainingOptions.model_fields[key].default) != CHANGED[key]
    first, second = (
        cells(tmp_path, methods=["sequential"], training={**training, "steps": 2, **changes})[0]
        for changes in ({}, {key: CHANGED[key]})
    )
    assert not finds(tmp_path / "shared", first.config)
    alike = beginning(first, 2) == beginning(second, 2)
    assert alike == finds(tmp_path / "shared", second.config)
    assert alike == (key in {*MAY_CHANGE, "asymmetric_loss"})
