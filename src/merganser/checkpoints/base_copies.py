"""Copies of base weights in the files of adapters, which PEFT writes beside factors of an embedding.

LoRA does not train them (``embed_tokens.base_layer.weight``), so every adapter of a base has the same copy, and the
merged adapter keeps it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser.checkpoints.dtypes import decode, encode
from merganser.checkpoints.source import INDEX, SINGLE, Source, open_checkpoint
from merganser.errors import InputError
from merganser.files.safetensors_file import FLOATING, Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

COPY = re.compile(r"(?P<module>.+)\.base_layer\.(?P<kind>weight|bias)")
"""Name of a copy in the file of an adapter."""


@dataclass(frozen=True, eq=False)
class BaseCopy:
    """A copy: where it is in the adapter's file, and its bytes."""

    tensor: Tensor
    raw: NDArray[np.uint8]


def common_copies(adapters: Sequence[tuple[str, Mapping[str, Any], Mapping[str, BaseCopy]]]) -> dict[str, BaseCopy]:
    """Return the copies of all adapters, after checking that they are unchanged.

    Args:
        adapters: label, ``adapter_config.json`` and copies by name.

    Raises:
        InputError: two adapters have different copies, or one has another than its base, where that is on this machine;
            names the copy.
    """
    common: dict[str, tuple[str, BaseCopy]] = {}
    for label, config, copies in adapters:
        for name, copy in copies.items():
            other, first = common.setdefault(name, (label, copy))
            same = (copy.tensor.dtype, copy.tensor.shape) == (first.tensor.dtype, first.tensor.shape)
            if not (same and np.array_equal(copy.raw, first.raw)):
                raise _changed(f"{name} in {other} and in {label} differ")
        _compare_with_base(label, config, copies)
    return {name: copy for name, (_, copy) in common.items()}


def _changed(what: str) -> InputError:
    return InputError(
        f"{what}, so the adapters change different base models.",
        "Put each adapter into its model (merge_and_unload of PEFT) and merge the models.",
    )


def _compare_with_base(label: str, config: Mapping[str, Any], copies: Mapping[str, BaseCopy]) -> None:
    """Compare copies with the base model, where it is a folder on this machine that can be read and has them."""
    base = config.get("base_model_name_or_path")
    if not copies or not isinstance(base, str) or not base:
        return
    folder = Path(os.path.expanduser(base))
    if not any((folder / name).is_file() for name in (INDEX, SINGLE)):
        return
    try:
        tensors = open_checkpoint(Source(base, folder)).tensors
    except InputError:
        return  # quantised, for instance: then the copies are compared with each other only
    for name, copy in copies.items():
        matched = COPY.fullmatch(name)
        whole = "" if matched is None else f"{matched['module']}.{matched['kind']}"
        original = tensors.get(whole.removeprefix("base_model.model."))
        if original is None or original.shape != copy.tensor.shape or original.dtype not in FLOATING:
            continue
        raw = np.fromfile(original.path, dtype=np.uint8, count=original.nbytes, offset=original.offset)
        if original.dtype != copy.tensor.dtype:
            wide = np.dtype(np.float64 if original.dtype == "F64" else np.float32)
            raw = encode(decode(raw, original.dtype, wide), copy.tensor.dtype).view(np.uint8)
        if not np.array_equal(raw.reshape(-1), copy.raw):
            raise _changed(f"{name} in {label} is not that of its base {base}")
