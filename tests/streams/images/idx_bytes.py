"""Arrays in the IDX format."""

from __future__ import annotations

import numpy as np


def idx(array: np.ndarray) -> bytes:
    """An array of unsigned bytes in the IDX format."""
    shape = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + shape + array.astype(np.uint8).tobytes()
