"""Randomness that depends on a seed and on nothing else."""

from __future__ import annotations

import contextlib
import random
import zlib
from collections.abc import Iterator

import numpy as np
import torch


def derive_seed(seed: int, *path: str | int) -> int:
    """A 32-bit seed for one purpose, from the run's seed and the purpose's name: ``derive_seed(7, "task", 3)``.

    Independent of Python's hash randomisation, of the number of processes and of what was drawn before.
    """
    words = [seed & 0xFFFFFFFF] + [zlib.crc32(str(part).encode()) for part in path]
    return int(np.random.SeedSequence(words).generate_state(1)[0])


@contextlib.contextmanager
def isolated_random(seed: int) -> Iterator[None]:
    """Seed Python's, numpy's and torch's global generators inside the block and put them back after it."""
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
