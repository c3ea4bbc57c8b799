"""Which arithmetic the forward passes use."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

CPUINFO = Path("/proc/cpuinfo")
NATIVE_FLAGS = ("avx512_bf16", "amx_bf16")


def resolve_precision(precision: Literal["auto", "fp32", "bf16"] = "auto") -> Literal["bf16", "fp32"]:
    """``bf16`` or ``fp32`` for ``auto``; anything else is returned as it is.

    bf16 is chosen on a CUDA device or a processor that multiplies bfloat16 natively; elsewhere it is emulated and
    slower than fp32. Weights are always kept in fp32: small steps would be lost in bfloat16's 8 bits of precision.
    """
    if precision != "auto":
        return precision
    import torch

    if torch.cuda.is_available():
        # Emulated bfloat16 (before Ampere) counts as supported in torch, but is slow.
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if _processor_has_bf16() else "fp32"


def _processor_has_bf16() -> bool:
    import torch

    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(flag, False) for flag in NATIVE_FLAGS)
    if not CPUINFO.is_file():  # an older torch, not on Linux
        return False
    flags = next((line for line in CPUINFO.read_text(errors="replace").splitlines() if line.startswith("flags")), "")
    return any(flag in flags.split() for flag in NATIVE_FLAGS)


def autocast(device: torch.device, precision: Literal["bf16", "fp32"]) -> AbstractContextManager[None]:
    """Mixed precision for the forward passes inside; in fp32 it also switches an outer autocast off."""
    import torch

    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
