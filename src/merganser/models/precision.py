"""The number format of a model's forward passes."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

import torch

from merganser.devices import has_native_bf16, model_device

CPUINFO = Path("/proc/cpuinfo")
NATIVE_FLAGS = ("avx512_bf16", "amx_bf16")


def resolve_precision(precision: Literal["auto", "fp32", "bf16"] = "auto") -> Literal["bf16", "fp32"]:
    """Return ``bf16`` or ``fp32`` for ``auto``; anything else is returned unchanged.

    ``auto`` resolves to bf16 on a device that multiplies bfloat16 natively; elsewhere bf16 is emulated
    and slower than fp32. Weights are always kept in fp32: bfloat16's 8 bits of precision would lose small steps.
    """
    if precision != "auto":
        return precision
    device = model_device()
    native = _cpu_has_bf16() if device.type == "cpu" else has_native_bf16(device)
    return "bf16" if native else "fp32"


def _cpu_has_bf16() -> bool:
    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(flag, False) for flag in NATIVE_FLAGS)
    if not CPUINFO.is_file():  # an older torch, not on Linux
        return False
    flags = next((line for line in CPUINFO.read_text(errors="replace").splitlines() if line.startswith("flags")), "")
    return any(flag in flags.split() for flag in NATIVE_FLAGS)


def autocast(device: torch.device, precision: Literal["bf16", "fp32"]) -> AbstractContextManager[None]:
    """Run forward passes inside in mixed precision; ``fp32`` also disables an outer autocast."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
