"""Versions of the libraries and the machine that a run was started with."""

from __future__ import annotations

import functools
import os
import platform
from importlib import metadata

PACKAGES = ("merganser", "torch", "transformers", "peft", "accelerate", "datasets", "safetensors", "numpy")


def versions() -> dict[str, str]:
    """Return versions of the libraries that influence numbers, the Python version and the processor."""
    libraries = {"python": platform.python_version()}
    libraries |= {package: _version_of(package) for package in PACKAGES}
    libraries["system"] = f"{platform.system()} {platform.machine()}"
    libraries["processor"] = _processor()
    libraries["cores"] = str(os.cpu_count())
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
