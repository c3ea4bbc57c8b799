"""Randomness that depends on a seed and on nothing else."""

from __future__ import annotations

import contextlib
import random
import zlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


def derive_seed(seed: int, *path: str | int) -> int:
    """Return a 32-bit seed for one purpose, from the run's seed and the purpose's name: ``derive_seed(7, "task", 3)``.

    It is independent of Python's hash randomisation, of the number of processes and of earlier random draws.
    """
    words = [seed & 0xFFFFFFFF] + [zlib.crc32(str(part).encode()) for part in path]
    return int(np.random.SeedSequence(words).generate_state(1)[0])


@contextlib.contextmanager
def isolated_random(seed: int) -> Iterator[None]:
    """Seed Python's, numpy's and torch's global generators inside the block and restore them after it."""
    import torch

    python_state = random.getstate()
    numpy_state = np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def random_state() -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the states of Python's, numpy's and torch's global generators, as plain JSON values and tensors."""
    import torch

    version, words, gauss = random.getstate()
    kind, key, position, has_gauss, cached = np.random.get_state(legacy=True)
    values = {
        "python": [version, list(words), gauss],
        "numpy": [kind, np.asarray(key).tolist(), int(position), int(has_gauss), float(cached)],
    }
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"cuda.{device}": state for device, state in enumerate(torch.cuda.get_rng_state_all())}
    return values, tensors


def set_random_state(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Restore what :func:`random_state` returned; devices that are missing now are skipped."""
    import torch

    version, words, gauss = values["python"]
    random.setstate((version, tuple(words), gauss))
    kind, key, position, has_gauss, cached = values["numpy"]
    np.random.set_state((kind, np.array(key, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(tensors["torch"])
    for device in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        if f"cuda.{device}" in tensors:
            torch.cuda.set_rng_state(tensors[f"cuda.{device}"], device)
