"""The plugin of Axolotl, called as Axolotl's manager of plugins calls one; Axolotl itself is not installed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Trainer

from merganser import processes
from merganser.errors import InputError
from tests.training.test_aim import NEW, OLD, Regression, arguments


class BasePlugin:
    """As documented: hooks that do nothing, of which a plugin overrides some."""

    def register(self, cfg: Any) -> None: ...

    def get_input_args(self) -> str | None: ...

    def add_callbacks_pre_trainer(self, cfg: Any, model: Any) -> list[Any]:
        return []

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[Any]:
        return []


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An instance, loaded by its path with Axolotl's interface in place."""
    name = "merganser.integrations.axolotl"
    base = ModuleType("axolotl.integrations.base")
    base.BasePlugin = BasePlugin  # type: ignore[attr-defined]
    for module in ("axolotl", "axolotl.integrations", "axolotl.integrations.base"):
        monkeypatch.setitem(sys.modules, module, base)
    monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module(name).AimMergingPlugin()
    sys.modules.pop(name, None)  # without the interface it has another base class


def dataset(examples: list[dict[str, Any]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list([{"x": row["x"].tolist(), "y": float(row["y"])} for row in examples])


def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {key: torch.tensor([item[key] for item in items]) for key in ("x", "y")}


def test_two_tasks_in_a_row(plugin: Any, tmp_path: Path) -> None:
    assert isinstance(plugin, BasePlugin)
    assert plugin.add_callbacks_pre_trainer(SimpleNamespace(), None) == []
    module, _, arguments_class = plugin.get_input_args().rpartition(".")
    section = getattr(importlib.import_module(module), arguments_class)
    first = {"keep": {"folder": str(tmp_path / "memory" / "first"), "number": 8}}
    assert section(aim_merging=first, learning_rate=1e-3).aim_merging == first
    trainer = Trainer(Regression(), arguments(tmp_path), train_dataset=dataset(OLD), data_collator=collate)
    assert plugin.add_callbacks_post_trainer(SimpleNamespace(aim_merging=first, seed=3), trainer) == []
    settings = {"interval": 4, "cold_start": 1, "batch": 4, "threshold_factor": 1.02}
    second = SimpleNamespace(aim_merging={"memory": str(tmp_path / "memory" / "first"), "settings": settings}, rl=None)
    trainer = Trainer(Regression(), arguments(tmp_path), train_dataset=dataset(NEW), data_collator=collate)
    (aim,) = plugin.add_callbacks_post_trainer(second, trainer)
    trainer.add_callback(aim)
    trainer.train()
    assert len(aim.memory) == 8
    assert aim.merges
    second.rl = "dpo"
    (aim,) = plugin.add_callbacks_post_trainer(second, trainer)
    assert aim.loss == trainer.compute_loss


def test_one_process_of_several_writes(plugin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "on_main", lambda work: None)  # the first process has done it
    section = {"keep": {"folder": str(tmp_path)}}
    trainer = SimpleNamespace(train_dataset=None)
    assert plugin.add_callbacks_post_trainer(SimpleNamespace(aim_merging=section), trainer) == []


def test_what_is_wrong_is_named(plugin: Any, tmp_path: Path) -> None:
    def add(section: Any) -> Any:
        trainer = SimpleNamespace(train_dataset=iter(()))
        return plugin.add_callbacks_post_trainer(SimpleNamespace(aim_merging=section), trainer)

    with pytest.raises(InputError, match="finds no section 'aim_merging'"):
        add(None)
    with pytest.raises(InputError, match=r"aim_merging\.memroy"):
        add({"memroy": "a"})
    with pytest.raises(InputError, match="'nowhere' holds no data set"):
        add({"memory": "nowhere"})
    with pytest.raises(InputError, match="exists"):
        add({"keep": {"folder": str(tmp_path)}})
    with pytest.raises(InputError, match="is a stream"):
        add({"keep": {"folder": str(tmp_path / "new")}})
