"""Shared by every rule: arrays in, arrays out, arithmetic in float32 or wider, one rounding at the end.

A rule is written for numpy arrays. Torch tensors are taken as views of their memory and the result comes back as a
torch tensor of the first model's type, on its device; torch is imported only for torch tensors.

A tensor is never needed whole by the rules that can be cut into slices: they read it through :class:`Inputs`, in memory
here, from files in a merge of checkpoints. Sums over a tensor are taken over blocks of :data:`BLOCK`
elements in double precision and added in order, so that they depend neither on the length of a slice nor on the number
of threads.
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
"""Elements per partial sum, and per slice of the plain numpy path: small enough for the cache of one core."""


class Inputs(Protocol):
    """The inputs of one tensor of a merge, readable in slices as often as wanted.

    Attributes:
        name: the tensor's name; random masks depend on it.
        shape: its shape; ``size`` is the number of its elements.
        models: how many models there are (without the base).
        work: the type of the arithmetic, ``float32`` or ``float64``.
    """

    name: str
    shape: tuple[int, ...]
    size: int
    models: int
    work: np.dtype[Any]

    def read(self, start: int, stop: int) -> tuple[list[NDArray[Any]], NDArray[Any] | None]:
        """Elements ``start`` to ``stop`` of every model and of the base (``None`` without one), in the work type.

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
        """See :class:`Inputs`."""
        base = None if self._base is None else self._base[start:stop]
        return [model[start:stop] for model in self._models], base


def blocks(inputs: Inputs) -> Iterator[tuple[int, list[NDArray[Any]], NDArray[Any] | None]]:
    """The tensor in slices of :data:`BLOCK` elements: where each begins, the models, the base."""
    for start in range(0, inputs.size, BLOCK):
        models, base = inputs.read(start, min(start + BLOCK, inputs.size))
        yield start, models, base


def to_work(value: Array) -> NDArray[Any]:
    """A numpy view or copy of ``value`` in ``float32`` (``float64`` stays as it is)."""
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
    """``result`` in the shape, the type (and, for torch, on the device) of ``model``: the one rounding of a merge."""
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
    everything = arrays if base is None else [*arrays, to_work(base)]
    shape = everything[0].shape
    for index, array in enumerate(everything[1:], start=1):
        if array.shape != shape:
            who = "The base" if base is not None and index == len(arrays) else f"Model {index + 1}"
            raise InputError(
                f"{who} has shape {list(array.shape)}, the first model {list(shape)}.",
                "Only tensors of equal shape can be merged.",
            )
    work = np.float64 if any(array.dtype == np.float64 for array in everything) else np.float32
    # A scalar becomes a vector of one, which rules can index; :func:`like` makes it a scalar again.
    everything = [np.ascontiguousarray(array, dtype=work) for array in everything]
    if base is None:
        return everything, None
    return everything[:-1], everything[-1]


def per_model(values: float | Sequence[float], count: int, what: str) -> list[float]:
    """One number per model from a number (the same for all) or a sequence.

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
    """Like :func:`per_model`, for fractions between 0 and 1."""
    numbers = per_model(values, count, what)
    for number in numbers:
        if not 0.0 <= number <= 1.0:
            raise InputError(f"{what} is {number:g}.", "It is a fraction of the entries: between 0 and 1.")
    return numbers
