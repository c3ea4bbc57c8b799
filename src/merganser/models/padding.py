"""Rows of token ids as padded tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch

MULTIPLE = 8
"""Batches are padded to a multiple of this width: kernels are compiled per width, and are fast at such widths."""


def pad(rows: Sequence[Sequence[int]], value: int, left: bool = False, limit: int | None = None) -> torch.Tensor:
    """Return integer rows as one contiguous LongTensor (rows x width), filled with ``value``.

    The width is that of the longest row, with a ``limit`` rounded up to a multiple of :data:`MULTIPLE` but not above
    the limit.
    """
    width = max(len(row) for row in rows)
    if limit is not None:
        width = max(width, min(limit, -(-width // MULTIPLE) * MULTIPLE))
    filled = [
        [value] * (width - len(row)) + list(row) if left else list(row) + [value] * (width - len(row)) for row in rows
    ]
    return torch.tensor(filled, dtype=torch.long)


def attention_mask(rows: Sequence[Sequence[int]], left: bool = False, limit: int | None = None) -> torch.Tensor:
    """Return 1 where :func:`pad` keeps a token, 0 where it fills (LongTensor, rows x width)."""
    return pad([[1] * len(row) for row in rows], 0, left, limit)
