from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from merganser import devices
from merganser.errors import InputError
from merganser.training.determinism import isolated_random, random_state, set_random_state


@pytest.fixture
def mps(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Let accelerate find an Apple GPU, with a generator that is a counter."""
    generator = {"state": torch.tensor([1])}
    module = SimpleNamespace(
        get_rng_state=lambda: generator["state"], set_rng_state=lambda state: generator.update(state=state)
    )
    monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "0")  # accelerate sets it
    monkeypatch.setattr("accelerate.state.is_mps_available", lambda: True)
    monkeypatch.setattr(torch, "get_device_module", lambda device=None: module)
    return generator


def test_the_device_is_that_of_accelerate(mps: dict[str, Any]) -> None:
    assert devices.model_device() == torch.device("mps")
    assert not devices.pins_memory(torch.device("mps"))


def test_the_environment_chooses_another(mps: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert devices.model_device() == torch.device("cpu")
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "meta:1")
    assert devices.model_device() == torch.device("meta", 1)
    assert devices.pins_memory(devices.model_device())


@pytest.mark.parametrize("name", ["cuda:99", "mps:7", "gpu"])
def test_a_device_that_is_not_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", name)
    with pytest.raises(InputError, match=f"ACCELERATE_TORCH_DEVICE is '{name}'"):
        devices.model_device()


def test_peak_memory_where_a_device_counts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    devices.synchronize(cpu)
    devices.reset_peak_memory(cpu)
    assert devices.peak_memory(cpu) is None
    calls: list[torch.device] = []
    counting = SimpleNamespace(reset_peak_memory_stats=calls.append, max_memory_allocated=lambda device: 7)
    monkeypatch.setattr(torch, "get_device_module", lambda device: counting)
    devices.reset_peak_memory(torch.device("xpu"))
    assert (calls, devices.peak_memory(torch.device("xpu"))) == ([torch.device("xpu")], 7)


def test_every_process_has_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_default_device", lambda: torch.device("xpu"))
    monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace(device_count=lambda: 4))
    assert devices.model_device() == torch.device("xpu")
    monkeypatch.setenv("LOCAL_RANK", "6")
    assert devices.model_device() == torch.device("xpu", 2)


def test_random_states_of_one_generator_and_of_several(mps: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    values, tensors = random_state()
    assert set(tensors) == {"torch", "mps.0"}
    with isolated_random(3):
        mps["state"] = torch.tensor([2])
    assert mps["state"].item() == 1
    mps["state"] = torch.tensor([5])
    set_random_state(values, {**tensors, "cuda.0": torch.tensor([9])})  # of another machine
    assert mps["state"].item() == 1

    states = [torch.tensor([10]), torch.tensor([20])]
    several = SimpleNamespace(get_rng_state_all=lambda: list(states), set_rng_state=lambda s, n: states.insert(n, s))
    monkeypatch.setattr(torch, "get_device_module", lambda device=None: several)
    assert {name: int(state) for name, state in devices.random_states().items()} == {"mps.0": 10, "mps.1": 20}
    devices.set_random_states({"mps.1": torch.tensor([7]), "mps.9": torch.tensor([8])})
    assert [int(state) for state in states] == [10, 7, 20]


def test_bf16_is_native_where_it_is_not_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    from merganser.models.precision import resolve_precision

    monkeypatch.setattr(devices, "_check_device", lambda name: None)
    for emulated_only, expected in ((True, "fp32"), (False, "bf16")):
        monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cuda:0")
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation, e=emulated_only: including_emulation or not e
        )
        assert resolve_precision() == expected


@pytest.mark.parametrize(("kind", "backend"), [("cpu", "gloo"), ("cuda", "cuda:nccl,cpu:gloo")])
def test_collectives_run_on_the_device_and_the_processor(
    kind: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined: list[Any] = []
    module = SimpleNamespace(set_device=joined.append)
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", kind)
    monkeypatch.setattr(devices, "_check_device", lambda name: None)
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    monkeypatch.setattr(torch.distributed, "init_process_group", joined.append)
    devices.join_process_group()
    assert joined == ([] if kind == "cpu" else [torch.device(kind)]) + [backend]


def test_an_accelerator_has_a_name(monkeypatch: pytest.MonkeyPatch, mps: dict[str, Any]) -> None:
    assert devices.device_name(torch.device("cpu")) is None
    assert devices.device_name(torch.device("mps")) is None  # it has none to ask for
    monkeypatch.setattr(torch, "get_device_module", lambda device=None: torch.cuda)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Some GPU of {device}")
    assert devices.device_name(torch.device("cuda", 1)) == "Some GPU of cuda:1"
