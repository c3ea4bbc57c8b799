"""Files with the state of a method between tasks: weights as safetensors, numbers as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from merganser.errors import InputError
from merganser.files.atomic import write_tensors
from merganser.files.documents import parse_json, read_text

if TYPE_CHECKING:
    from torch import Tensor

    from merganser.merging.adapters import Factors
    from merganser.weights import Weights

Content = TypeVar("Content")


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
        raise _unreadable(path, error) from error


def read_json_state(path: Path, convert: Callable[[Any], Content]) -> Content:
    """Read a JSON document that a method wrote.

    Args:
        path: of the file.
        convert: makes the state of the document; an error of type, value or key means that the file is damaged.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        return convert(parse_json(read_text(path)))
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(
        f"The method's state in '{path}' cannot be read: {error}.", "Restore the run from a copy, or undo."
    )


def factor_tensors(factors: Mapping[str, Factors]) -> Weights:
    """Convert the factors of LoRA modules to named tensors that share their memory: ``module:a`` and ``module:b``."""
    import torch

    from merganser.weights import Weights

    return Weights(
        {
            f"{name}:{side}": torch.from_numpy(getattr(pair, side))
            for name, pair in factors.items()
            for side in ("a", "b")
        }
    )


def read_factors(path: Path) -> dict[str, Factors]:
    """Read factors that were written as :func:`factor_tensors`.

    Raises:
        InputError: the file is missing or damaged.
    """
    from merganser.merging.adapters import Factors

    tensors = read_weights(path)
    names = [name.removesuffix(":a") for name in tensors if name.endswith(":a")]
    return {name: Factors(tensors[f"{name}:a"].numpy(), tensors[f"{name}:b"].numpy()) for name in names}


def beside(weights: Weights, like: Weights) -> Weights:
    """Move weights to the order and the devices of ``like``.

    Raises:
        ValueError: names or shapes differ.
    """
    from merganser.weights import Weights

    pairs = zip(like.items(), like.aligned_tensors(weights), strict=True)
    return Weights({name: tensor.to(target.device) for (name, target), tensor in pairs})
