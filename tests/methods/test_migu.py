"""MIGU: which rows of which matrices are updated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PretrainedConfig, TrainerCallback
from transformers.pytorch_utils import Conv1D

from merganser.methods.migu import Migu, MiguOptions, magnitudes, most_active
from tests.methods.plain import context, fire


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = PretrainedConfig()
        self.first = nn.Linear(4, 10)
        self.second = Conv1D(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def made(lora: bool) -> Any:
    torch.manual_seed(0)
    net = Net()
    if not lora:
        return net
    wrapped = get_peft_model(net, LoraConfig(r=2, target_modules=["first"], lora_dropout=0.0))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    return wrapped


def begun(module: nn.Module, share: float = 0.3) -> TrainerCallback:
    method = Migu(MiguOptions(share=share))
    (callback,) = method.callbacks(context(module, 2))
    fire(callback, "on_train_begin")
    return callback


def test_magnitudes_by_hand() -> None:
    output = torch.tensor([[[1.0, -3.0], [0.0, 2.0]]])
    assert magnitudes(output).tolist() == pytest.approx([(0.25 + 0) / 2, (0.75 + 1) / 2])
    assert magnitudes(torch.zeros(2, 3)).tolist() == [0, 0, 0]
    assert most_active(torch.tensor([0.1, 0.4, 0.2, 0.3]), 0.5).tolist() == [False, True, False, True]
    assert most_active(torch.tensor([0.1, 0.4]), 0.01).tolist() == [False, True]


@pytest.mark.parametrize("batches", [1, 2])
def test_whole_weights_keep_the_gradient_of_the_active_rows(batches: int) -> None:
    """Also where the gradients of several batches are added up for one step."""
    net = made(lora=False)
    callback = begun(net)
    inputs = torch.randn(4, 3, 4, generator=torch.Generator().manual_seed(1))
    activity = {"first": torch.zeros(10), "second": torch.zeros(6)}
    for x in inputs.chunk(batches):
        hidden = net.first(x).detach()
        for name, output in (("first", hidden), ("second", net.second(torch.tanh(hidden)).detach())):
            sizes = output.abs().reshape(-1, output.shape[-1])
            activity[name] += (sizes / sizes.sum(1, keepdim=True)).mean(0)
    callback.activity.clear()  # type: ignore[attr-defined]
    for x in inputs.chunk(batches):
        net(x).pow(2).sum().backward()
    plain = {name: parameter.grad.clone() for name, parameter in net.named_parameters()}
    net.eval()
    net(torch.randn(2, 4))  # what is measured in between does not count
    net.train()
    fire(callback, "on_pre_optimizer_step")
    for name, kept in (("first", 3), ("second", 2)):
        chosen = torch.zeros_like(activity[name], dtype=torch.bool)
        chosen[activity[name].argsort(descending=True)[:kept]] = True
        weight = getattr(net, name).weight.grad
        rows = weight if name == "first" else weight.T  # Conv1D: inputs x outputs
        expected = plain[f"{name}.weight"] if name == "first" else plain[f"{name}.weight"].T
        assert torch.equal(rows[chosen], expected[chosen])
        assert not rows[~chosen].any()
        assert torch.equal(getattr(net, name).bias.grad, plain[f"{name}.bias"] * chosen)


def test_an_adapter_is_masked_by_the_activity_of_its_layer() -> None:
    net = made(lora=True)
    callback = begun(net)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    layer = net.base_model.model.first
    with torch.no_grad():
        output = layer(x).abs()
    callback.activity.clear()  # type: ignore[attr-defined]
    net(x).pow(2).sum().backward()
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    before_a, before_b = a.grad.clone(), b.grad.clone()
    fire(callback, "on_pre_optimizer_step")
    chosen = (output / output.sum(1, keepdim=True)).mean(0).argsort(descending=True)[:3]
    mask = torch.zeros(10, 1)
    mask[chosen] = 1
    assert torch.equal(b.grad, before_b * mask)
    assert torch.equal(a.grad, before_a)


def test_the_first_task_is_masked_only_on_request() -> None:
    """All rows of B move in the first task, as in the authors' program; with ``mask_first`` 3 of 10."""
    net = made(lora=True)
    assert Migu(MiguOptions()).callbacks(context(net, 1)) == []
    (callback,) = Migu(MiguOptions(mask_first=True)).callbacks(context(net, 1))
    fire(callback, "on_train_begin")
    net(torch.randn(5, 4)).pow(2).sum().backward()
    rows = net.base_model.model.first.lora_B["default"].weight.grad
    assert int(rows.any(1).sum()) == 10
    fire(callback, "on_pre_optimizer_step")
    assert int(rows.any(1).sum()) == 3


def test_a_share_of_one_is_plain_training_and_the_hooks_go() -> None:
    net = made(lora=False)
    callback = begun(net, share=1.0)
    net(torch.randn(3, 4)).pow(2).sum().backward()
    before = net.first.weight.grad.clone()
    fire(callback, "on_pre_optimizer_step")
    assert torch.equal(net.first.weight.grad, before)
    fire(callback, "on_train_end")
    net(torch.randn(3, 4))
    assert callback.activity == {}  # type: ignore[attr-defined]
