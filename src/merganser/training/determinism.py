"""Randomness that depends on a seed and on nothing else."""

from __future__ import annotations

import contextlib
import random
import zlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser import devices

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
    device_states = devices.random_states()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
            devices.set_random_states(device_states)


def random_state() -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the states of Python's, numpy's and torch's global generators, as plain JSON values and tensors."""
    import torch

    version, words, gauss = random.getstate()
    kind, key, position, has_gauss, cached = np.random.get_state(legacy=True)
    values = {
        "python": [version, list(words), gauss],
        "numpy": [kind, np.asarray(key).tolist(), int(position), int(has_gauss), float(cached)],
    }
    return values, {"torch": torch.get_rng_state(), **devices.random_states()}


def set_random_state(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Restore what :func:`random_state` returned; devices that are missing now are skipped."""
    import torch

    version, words, gauss = values["python"]
    random.setstate((version, tuple(words), gauss))
    kind, key, position, has_gauss, cached = values["numpy"]
    np.random.set_state((kind, np.array(key, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(tensors["torch"])
    devices.set_random_states(tensors)
