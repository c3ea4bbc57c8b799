"""The device of the model and the number format of its forward passes."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

import torch

CPUINFO = Path("/proc/cpuinfo")
NATIVE_FLAGS = ("avx512_bf16", "amx_bf16")


def model_device() -> torch.device:
    """Return the CUDA device of this process, else the CPU."""
    return (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if torch.cuda.is_available()
        else torch.device("cpu")
    )


def resolve_precision(precision: Literal["auto", "fp32", "bf16"] = "auto") -> Literal["bf16", "fp32"]:
    """Return ``bf16`` or ``fp32`` for ``auto``; anything else is returned unchanged.

    ``auto`` resolves to bf16 on a CUDA device or a CPU that multiplies bfloat16 natively; elsewhere bf16 is emulated
    and slower than fp32. Weights are always kept in fp32: bfloat16's 8 bits of precision would lose small steps.
    """
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        # Emulated bfloat16 (before Ampere) counts as supported in torch, but is slow.
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if _cpu_has_bf16() else "fp32"


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
