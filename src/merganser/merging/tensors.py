"""Inputs and results of every rule: arithmetic in float32 or wider, rounded once at the end.

Rules work on numpy arrays. Torch tensors are viewed as arrays where possible, and the result is converted to a torch
tensor of the first model's type, on its device; torch is imported only for torch tensors.

Most rules read a tensor slice by slice through :class:`Inputs`: from memory here, from files in a merge of
checkpoints. Sums over a tensor are computed over blocks of :data:`BLOCK` elements in double precision and added in
order, so that they depend neither on the length of a slice nor on the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from merganser.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Array = Any
"""A numpy array or a torch tensor."""

Function = TypeVar("Function")

BLOCK = 65_536
"""Elements per partial sum, and per slice of the numpy path: small enough for the cache of one core."""


class Inputs(Protocol):
    """The inputs of one tensor of a merge, readable in slices any number of times.

    Attributes:
        name: the tensor's name; random masks depend on it.
        shape: of the tensor; ``size`` is the number of its elements.
        models: number of models, without the base.
        work: type of the arithmetic, ``float32`` or ``float64``.
    """

    name: str
    shape: tuple[int, ...]
    size: int
    models: int
    work: np.dtype[Any]

    def read(self, start: int, stop: int) -> tuple[list[NDArray[Any]], NDArray[Any] | None]:
        """Read elements ``start`` to ``stop`` of every model and of the base (``None`` without one), in the work type.

        The arrays may be reused by the next call.
        """
        ...


class ArrayInputs:
    """:class:`Inputs` over arrays in memory."""

    def __init__(self, models: Sequence[NDArray[Any]], base: NDArray[Any] | None, name: str = "") -> None:
        self.name = name
        self.shape = tuple(models[0].shape)
        self.size = int(models[0].size)
        self.models = len(models)
        self.work = np.dtype(np.float64) if models[0].dtype == np.float64 else np.dtype(np.float32)
        self._models = [model.reshape(-1) for model in models]
        self._base = None if base is None else base.reshape(-1)

    def read(self, start: int, stop: int) -> tuple[list[NDArray[Any]], NDArray[Any] | None]:
        """Return views of the arrays, see :meth:`Inputs.read`."""
        base = None if self._base is None else self._base[start:stop]
        return [model[start:stop] for model in self._models], base


def iterate_blocks(inputs: Inputs) -> Iterator[tuple[int, list[NDArray[Any]], NDArray[Any] | None]]:
    """Iterate over slices of :data:`BLOCK` elements: start index, models, base."""
    for start in range(0, inputs.size, BLOCK):
        models, base = inputs.read(start, min(start + BLOCK, inputs.size))
        yield start, models, base


def to_work(value: Array) -> NDArray[Any]:
    """Convert to a numpy array in ``float32``, or in ``float64`` if ``value`` is; a view where possible.

    Raises:
        InputError: the type is not floating-point.
    """
    if isinstance(value, np.ndarray):
        array = value
    elif type(value).__module__.split(".")[0] == "torch":
        tensor = value.detach()
        # bfloat16 has no numpy type; every narrower type is widened in torch, exactly.
        array = (tensor.double() if tensor.element_size() == 8 else tensor.float()).cpu().numpy()
    else:
        array = np.asarray(value, dtype=np.float64 if isinstance(value, float) else None)
    if array.dtype == np.float64 or array.dtype == np.float32:
        return array
    if array.dtype.kind != "f":
        raise InputError(
            f"A tensor of type {array.dtype} cannot be merged by a rule.",
            "Rules take floating-point tensors; copy integer buffers from the base.",
        )
    return array.astype(np.float32)


def like(result: NDArray[Any], model: Array) -> Array:
    """Convert a result to the shape, type and (torch) device of ``model``: the one rounding of a merge."""
    result = result.reshape(np.shape(model))
    if isinstance(model, np.ndarray):
        return result.astype(model.dtype, copy=False)
    if type(model).__module__.split(".")[0] == "torch":
        import torch

        return torch.from_numpy(np.require(result, requirements="C")).to(dtype=model.dtype, device=model.device)
    return result


def as_arrays(models: Sequence[Array], base: Array | None = None) -> tuple[list[NDArray[Any]], NDArray[Any] | None]:
    """Convert the models and the base to numpy arrays of one work type, after checking that they can be merged.

    Raises:
        InputError: no model, or shapes that differ.
    """
    if len(models) == 0:
        raise InputError("There is no model to merge.", "Pass at least one.")
    arrays = [to_work(model) for model in models]
    tensors = arrays if base is None else [*arrays, to_work(base)]
    shape = tensors[0].shape
    for index, array in enumerate(tensors[1:], start=1):
        if array.shape != shape:
            owner = "The base" if base is not None and index == len(arrays) else f"Model {index + 1}"
            raise InputError(
                f"{owner} has shape {list(array.shape)}, the first model {list(shape)}.",
                "Only tensors of equal shape can be merged.",
            )
    work = np.float64 if any(array.dtype == np.float64 for array in tensors) else np.float32
    # A scalar becomes a vector of length 1, which rules can index; :func:`like` reshapes it to a scalar.
    tensors = [np.ascontiguousarray(array, dtype=work) for array in tensors]
    if base is None:
        return tensors, None
    return tensors[:-1], tensors[-1]


def numbers_per_model(values: float | Sequence[float], count: int, what: str) -> list[float]:
    """Expand a number (the same for all models) or check a sequence of one per model.

    Args:
        values: a number, or one per model.
        count: number of models.
        what: name of the parameter, for messages.

    Raises:
        InputError: the length of the sequence is not the number of models, or a value is not finite.
    """
    if isinstance(values, int | float):
        numbers = [float(values)] * count
    else:
        numbers = [float(value) for value in values]
    if len(numbers) != count:
        raise InputError(f"There are {len(numbers)} values of {what} for {count} models.", "Give one per model.")
    for number in numbers:
        if not np.isfinite(number):
            raise InputError(f"{what} holds {number}.", "Use finite numbers.")
    return numbers


def fractions_per_model(values: float | Sequence[float], count: int, what: str) -> list[float]:
    """Check fractions between 0 and 1 as :func:`numbers_per_model` checks numbers.

    Raises:
        InputError: as in :func:`numbers_per_model`, or a value outside [0, 1].
    """
    numbers = numbers_per_model(values, count, what)
    for number in numbers:
        if not 0.0 <= number <= 1.0:
            raise InputError(f"{what} is {number:g}.", "Use a fraction between 0 and 1.")
    return numbers
