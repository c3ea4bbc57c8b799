"""O-LoRA: the penalty by hand, and what stays of earlier tasks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from merganser import Learner
from merganser.methods.olora import OLora, OLoraOptions
from merganser.models.base import Lengths
from merganser.models.loading import load_backbone
from merganser.models.options import LoraOptions, ModelOptions
from tests.learner import toys
from tests.learner.test_learner import sections, task
from tests.methods.plain import context


def test_the_penalty_is_the_overlap_with_all_earlier_rows() -> None:
    lora = LoraOptions(r=2, dropout=0.0)
    asked = ModelOptions(name=str(toys.model_folder("seq2seq")), kind="seq2seq", lora=lora, precision="fp32")
    backbone = load_backbone(asked, Lengths(16, 8), 0)
    method = OLora(OLoraOptions(weight=0.5))
    given = context(backbone.module, 1)
    assert method.callbacks(given) == []
    assert method.penalty(given) is None
    first = {name: value.detach().clone() for name, value in backbone.trainable().items() if ".lora_A." in name}
    for index in (2, 3):
        given = context(backbone.module, index, seed=index)
        object.__setattr__(given, "backbone", backbone)
        method.callbacks(given)
        if index == 2:
            second = {n: v.detach().clone() for n, v in backbone.trainable().items() if ".lora_A." in n}
    penalty = method.penalty(given)
    assert penalty is not None
    loss = penalty(backbone.module, 0, {}, {})
    expected = 0.0
    for name, new in backbone.trainable().items():
        if ".lora_A." in name:
            for old in (*first[name], *second[name]):
                expected += 0.5 * sum(abs(float(old @ row)) for row in new.detach())
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    loss.backward()
    assert all((p.grad is not None) == (".lora_A.default" in n) for n, p in backbone.module.named_parameters())


def test_earlier_tasks_stay_bit_for_bit_in_the_adapter_of_all(tmp_path: Path) -> None:
    given = sections(training={"steps": 2}, method="olora", evaluation={"future": False})
    with Learner.open(tmp_path / "run", **given) as learner:
        for name in ("mood", "topic", "truth"):
            learner.learn(task(name))
        asked = learner.predict(["great film"], "mood")
        sizes = [entry.method_bytes["weights"] for entry in learner.record.tasks]
    assert sizes[0] < sizes[1] < sizes[2]
    rows = [
        load_file(path / "adapter" / "adapter_model.safetensors")
        for path in sorted((tmp_path / "run" / "tasks").iterdir())
    ]
    for number in (1, 2):
        for name, tensor in rows[number].items():
            axis = 0 if ".lora_A." in name else 1
            assert tensor.shape[axis] == 4 * number
            assert torch.equal(rows[number + 1][name].narrow(axis, 0, 4 * number), tensor)
    with Learner.open(tmp_path / "run") as again:
        assert again.predict(["great film"], "mood") == asked
