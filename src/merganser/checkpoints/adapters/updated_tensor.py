"""A matrix of a base with the update of an adapter, which is added to each slice as it is read.

The sum is rounded to the type that the base is stored in, as the files of such a model would hold it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from merganser.checkpoints.dtypes import decode, encode
from merganser.files.safetensors_file import ITEM_SIZE, Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Update:
    """The update of a matrix as ``left @ right``, in double precision.

    Attributes:
        left: rows x rank, scaling included.
        right: rank x columns.
        begin: place in the file of the matrix's first element.
    """

    left: NDArray[np.float64]
    right: NDArray[np.float64]
    begin: int


@dataclass(frozen=True)
class UpdatedTensor(Tensor):
    """A matrix in a file, or rows of it, to which an update is added wherever it is read."""

    update: Update

    def add_update(self, raw: NDArray[np.uint8], start: int) -> None:
        """Add the update to the bytes of elements from ``start`` on, in place, rounded once."""
        item, columns = ITEM_SIZE[self.dtype], self.update.right.shape[1]
        first = (self.offset - self.update.begin) // item + start
        last = first + len(raw) // item
        rows = slice(first // columns, -(-last // columns))
        change = (self.update.left[rows] @ self.update.right).reshape(-1)
        values = decode(raw, self.dtype, np.dtype(np.float64))
        values = values + change[first - rows.start * columns :][: last - first]
        raw[:] = encode(values, self.dtype).view(np.uint8)
