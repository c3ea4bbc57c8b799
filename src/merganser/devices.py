"""The device that computes, as accelerate chooses it: the only module that looks for accelerators.

``ACCELERATE_TORCH_DEVICE`` (``cuda:1``, ``mps``, ``cpu`` ...) and ``ACCELERATE_USE_CPU`` choose another one.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from merganser.errors import InputError, first_line

if TYPE_CHECKING:
    import torch


def model_device() -> torch.device:
    """Return the device of this process: of several accelerators of one kind, that of its local rank; else the CPU.

    Raises:
        InputError: ``ACCELERATE_TORCH_DEVICE`` names a device that is not there.
    """
    import torch
    from accelerate.utils import parse_flag_from_env

    chosen = os.environ.get("ACCELERATE_TORCH_DEVICE")
    if chosen:
        _check_device(chosen)
        return torch.device(chosen)
    if parse_flag_from_env("ACCELERATE_USE_CPU"):
        return torch.device("cpu")
    device = _default_device()
    rank = int(os.environ.get("LOCAL_RANK", "-1"))
    if device.type in ("cpu", "mps") or rank < 0:
        return device
    return torch.device(device.type, rank % torch.get_device_module(device).device_count())


@functools.cache
def _check_device(name: str) -> None:
    """Refuse a device on which no tensor can be made."""
    import torch

    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # each kind of device raises its own
        raise InputError(
            f"ACCELERATE_TORCH_DEVICE is '{name}', and PyTorch cannot compute there: {first_line(error).rstrip('.')}.",
            "Unset it, or set a device of this machine, such as cuda, cuda:1, mps, xpu or cpu.",
        ) from error


def _default_device() -> torch.device:
    """Return the kind of accelerator of this machine, or the CPU."""
    from accelerate import PartialState

    # Not through its constructor, which would join a process group.
    return PartialState.__new__(PartialState).default_device


def device_name(device: torch.device) -> str | None:
    """Return the name of an accelerator as its driver has it, such as NVIDIA H200; ``None``: a CPU, or not known."""
    import torch

    if device.type == "cpu":
        return None
    module = torch.get_device_module(device)
    return str(module.get_device_name(device)) if hasattr(module, "get_device_name") else None


def has_native_bf16(device: torch.device) -> bool:
    """Return whether an accelerator multiplies bfloat16 by itself; emulated, it is slower than fp32."""
    import torch
    from accelerate.utils import is_bf16_available

    if device.type == "cuda":  # accelerate counts emulation (before Ampere), too
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(is_bf16_available())


def pins_memory(device: torch.device) -> bool:
    """Return whether batches reach a device faster from page-locked memory."""
    return device.type not in ("cpu", "mps")


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    import torch

    torch.get_device_module(device).synchronize()


def reset_peak_memory(device: torch.device) -> None:
    """Begin to watch how much memory a device needs, where it counts that."""
    import torch

    module = torch.get_device_module(device)
    if hasattr(module, "reset_peak_memory_stats"):
        module.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int | None:
    """Return the most bytes that tensors held on a device since :func:`reset_peak_memory`; ``None``: not counted."""
    import torch

    module = torch.get_device_module(device)
    return int(module.max_memory_allocated(device)) if hasattr(module, "max_memory_allocated") else None


def join_process_group() -> None:
    """Join the process group of the launcher, with collectives on this process's device and on the CPU."""
    import torch

    device = model_device()
    backend = torch.distributed.Backend.default_device_backend_map[device.type]
    if device.type == "cpu":
        torch.distributed.init_process_group(backend)
    else:
        torch.get_device_module(device).set_device(device)
        torch.distributed.init_process_group(f"{device.type}:{backend},cpu:gloo")


def random_states() -> dict[str, torch.Tensor]:
    """Return the states of the accelerators' random generators (``cuda.0``, ``mps.0`` ...), without the CPU's."""
    import torch

    kind = _default_device().type
    module = torch.get_device_module(kind)
    if hasattr(module, "get_rng_state_all"):
        states = module.get_rng_state_all()
    else:
        states = [module.get_rng_state()] if hasattr(module, "get_rng_state") else []  # torch.cpu has neither
    return {f"{kind}.{number}": state for number, state in enumerate(states)}


def set_random_states(states: Mapping[str, torch.Tensor]) -> None:
    """Restore what :func:`random_states` returned; devices that are missing here, and other names, are skipped."""
    import torch

    for name in random_states().keys() & states.keys():
        kind, _, number = name.partition(".")
        module = torch.get_device_module(kind)
        if hasattr(module, "get_rng_state_all"):
            module.set_rng_state(states[name], int(number))
        else:
            module.set_rng_state(states[name])
