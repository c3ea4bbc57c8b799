"""Versions of the libraries and the machine that a run was started with."""

from __future__ import annotations

import functools
import os
import platform
from importlib import metadata
from typing import TYPE_CHECKING

from merganser.devices import device_name

if TYPE_CHECKING:
    import torch

PACKAGES = ("merganser", "torch", "transformers", "peft", "accelerate", "datasets", "safetensors", "numpy")


def versions(device: torch.device | None = None) -> dict[str, str]:
    """Return versions of the libraries that influence numbers, the Python version and the machine.

    Args:
        device: that computes; the name of an accelerator is among what is returned (``gpu``).
    """
    libraries = {"python": platform.python_version()}
    libraries |= {package: _version_of(package) for package in PACKAGES}
    libraries["system"] = f"{platform.system()} {platform.machine()}"
    libraries["processor"] = _processor()
    libraries["cores"] = str(os.cpu_count())
    if device is not None and (name := device_name(device)) is not None:
        libraries["gpu"] = name
    return libraries


@functools.cache
def _version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            for line in stream:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux: the portable name has to do
    return platform.processor() or platform.machine()
