"""How far the weights of two rows are apart, as a whole and block by block."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser.checkpoints.adapters.source import PREFIX, check_alphas, scaling_of
from merganser.checkpoints.source import ADAPTER_CONFIG
from merganser.files.documents import parse_json, read_text

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

BLOCK = re.compile(r"((?:\w+\.)*?(?:layers?|blocks?|h))\.(\d+)\.")
"""The beginning of a tensor's name that numbers its block."""

FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")

ALL = "all weights"


@dataclass(frozen=True)
class Distance:
    """The distance of a part of the weights.

    Attributes:
        part: :data:`ALL`, or the name of a block; tensors outside of any have that of their module.
        distance: L2 norm of the difference.
        before, after: L2 norms of both.
    """

    part: str
    distance: float
    before: float
    after: float

    @property
    def relative(self) -> float | None:
        """The distance as a fraction of the norm before; ``None`` where that is zero."""
        return self.distance / self.before if self.before else None


def weight_distances(before: Path, after: Path) -> list[Distance]:
    """Compute the distances between the weights in two folders: of all, then of each block, in the order of names.

    The factors of LoRA are compared by the updates that they are, ``scaling * B A``: other factors may be the same
    update. Tensors that only one of the two has are compared with zero.
    """
    files = [_Weights(folder) for folder in (before, after)]
    sums: dict[str, list[float]] = {}
    names = dict.fromkeys(name for file in files for name in file.units)
    for name in names:
        squares = _squares(*(file.unit(name) for file in files))
        block = sums.setdefault(_block(name), [0.0, 0.0, 0.0])
        for index, value in enumerate(squares):
            block[index] += value
    total = [math.fsum(block[index] for block in sums.values()) for index in range(3)]
    parts = {ALL: total, **dict(sorted(sums.items(), key=lambda item: _natural(item[0])))}
    return [Distance(part, *(math.sqrt(value) for value in values)) for part, values in parts.items()]


Unit = tuple["NDArray[np.float64]", "NDArray[np.float64] | None"]
"""A tensor as one row, or the factors (scaled B, A) of an update."""


class _Weights:
    """The tensors in a folder of weights, read one by one."""

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        path = folder / ADAPTER_CONFIG
        self._config: dict[str, Any] = parse_json(read_text(path)) if path.is_file() else {}
        self._patterns = check_alphas(self._config, path)
        self._files = [safe_open(path, framework="pt") for path in sorted(folder.glob("*.safetensors"))]
        self._where = {name: file for file in self._files for name in file.keys()}  # noqa: SIM118
        self.units = list(dict.fromkeys(self._unit_name(name) for name in self._where))

    def _unit_name(self, name: str) -> str:
        factor = FACTOR.fullmatch(name)
        other = f"{factor['module']}.lora_{'B' if factor['side'] == 'A' else 'A'}.weight" if factor else ""
        return factor["module"] if factor and other in self._where else name

    def unit(self, name: str) -> Unit | None:
        """Return a tensor or an update; ``None`` where there is none."""
        if name in self._where:
            return _array(self._where[name].get_tensor(name)).reshape(1, -1), None
        sides = [f"{name}.lora_{side}.weight" for side in "BA"]
        if not all(side in self._where for side in sides):
            return None
        b, a = (_array(self._where[side].get_tensor(side)) for side in sides)
        b, a = b.reshape(b.shape[0], -1), a.reshape(a.shape[0], -1)
        return b * scaling_of(self._config, name.removeprefix(PREFIX), a.shape[0], self._patterns), a


def _array(tensor: Tensor) -> NDArray[np.float64]:
    array: NDArray[np.float64] = tensor.double().numpy()
    return array


def _squares(first: Unit | None, second: Unit | None) -> tuple[float, float, float]:
    """Return the squared L2 norms of the difference, of the first and of the second."""
    return _square(first, second), _square(first, None), _square(second, None)


def _square(first: Unit | None, second: Unit | None) -> float:
    """Return the squared norm of ``first - second``; products are never multiplied out."""
    if first is None and second is None:
        return 0.0
    if (first or second)[1] is None:  # type: ignore[index]
        vectors = [unit[0] for unit in (first, second) if unit is not None]
        difference = vectors[0] - vectors[1] if len(vectors) == 2 else vectors[0]
        return float(np.vdot(difference, difference))
    signed = [(unit[0] * sign, unit[1]) for unit, sign in ((first, 1.0), (second, -1.0)) if unit is not None]
    _, left = np.linalg.qr(np.concatenate([b for b, _ in signed], axis=1))
    _, right = np.linalg.qr(np.concatenate([a for _, a in signed if a is not None]).T)
    core = left @ right.T
    return float(np.vdot(core, core))


def _block(name: str) -> str:
    """Return the block that a tensor belongs to."""
    name = name.removeprefix(PREFIX)
    match = BLOCK.search(name)
    if match:
        return name[: match.end() - 1]
    return name.rpartition(".")[0] or name


def _natural(name: str) -> list[tuple[int, str]]:
    """Return what sorts names with numbers in them by these."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
