"""A method's state between tasks, on disk: safetensors, one file per set of weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from merganser.errors import InputError
from merganser.files.atomic import write_tensors

if TYPE_CHECKING:
    from torch import Tensor

    from merganser.weights import Weights


def write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write named tensors as one safetensors file."""
    write_tensors(path, weights)


def read_weights(path: Path) -> Weights:
    """Read what :func:`write_weights` wrote, onto the CPU.

    Raises:
        InputError: the file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from merganser.weights import Weights

    try:
        return Weights(load_file(path))
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"What the method keeps in '{path}' cannot be read: {error}.", "Restore the run from a copy, or undo."
        ) from error


def beside(weights: Weights, like: Weights) -> Weights:
    """Move weights to the order and the devices of ``like``.

    Raises:
        ValueError: names or shapes differ.
    """
    from merganser.weights import Weights

    pairs = zip(like.items(), like.aligned_tensors(weights), strict=True)
    return Weights({name: tensor.to(target.device) for (name, target), tensor in pairs})
