"""Rows that vocabularies of different sizes have in common: the first ones of every embedding and output layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from merganser.checkpoints.source import Checkpoint
from merganser.checkpoints.vocabularies.tied_names import vocabulary_names
from merganser.files.safetensors_file import ITEM_SIZE, Tensor


def common_rows(reference: Checkpoint, checkpoints: Sequence[Checkpoint]) -> dict[str, int]:
    """Count the common rows of every vocabulary matrix or bias whose models have different numbers of them.

    Args:
        reference: whose names count.
        checkpoints: all that are merged.

    Returns:
        Name -> the smallest number of rows; without tensors that differ in another dimension.
    """
    listed = [set(vocabulary_names(checkpoint.tensors)) for checkpoint in checkpoints]
    rows = {}
    for name, tensor in reference.tensors.items():
        if not all(name in names for names in listed):
            continue
        shapes = [checkpoint.tensors[name].shape for checkpoint in checkpoints]
        axis = _axis(tensor.shape)
        others = {(len(shape), shape[:axis], shape[axis + 1 :]) for shape in shapes if len(shape) > axis}
        if len(set(shapes)) > 1 and len(others) == 1 and all(_axis(shape) == axis for shape in shapes):
            rows[name] = min(shape[axis] for shape in shapes)
    return rows


def cut(checkpoint: Checkpoint, rows: Mapping[str, int]) -> Checkpoint:
    """Shorten the tensors of a checkpoint to their common rows."""
    tensors = {
        name: replace(tensor, shape=_with_rows(tensor.shape, rows[name]))
        if name in rows and number_of_rows(tensor) >= rows[name]
        else tensor
        for name, tensor in checkpoint.tensors.items()
    }
    return replace(checkpoint, tensors=tensors)


def rest(tensor: Tensor, rows: int) -> Tensor | None:
    """Return the rows of a tensor after the common ones; ``None`` if there are none."""
    left = tensor.shape[_axis(tensor.shape)] - rows
    if left == 0:
        return None
    begin = math.prod(_with_rows(tensor.shape, rows)) * ITEM_SIZE[tensor.dtype]
    return replace(tensor, shape=_with_rows(tensor.shape, left), offset=tensor.offset + begin)


def number_of_rows(tensor: Tensor) -> int:
    """Return the entries along the dimension of the tokens: the first, or the second of a bias of shape ``1 x n``."""
    return tensor.shape[_axis(tensor.shape)]


def _axis(shape: tuple[int, ...]) -> int:
    return 1 if len(shape) == 2 and shape[0] == 1 else 0


def _with_rows(shape: tuple[int, ...], rows: int) -> tuple[int, ...]:
    axis = _axis(shape)
    return (*shape[:axis], rows, *shape[axis + 1 :])
