"""Copies of base weights in the files of adapters, which PEFT writes beside factors of an embedding or of new tokens.

LoRA does not train them (``embed_tokens.base_layer.weight``, or ``embed_tokens.weight`` if that is no module to save).
So every adapter of a base has the same copy, and the merged adapter keeps it.
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
from merganser.checkpoints.vocabularies.tied_names import EMBEDDING
from merganser.errors import InputError
from merganser.files.safetensors_file import FLOATING, Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

COPY = re.compile(r"(?P<module>.+)\.base_layer\.(?P<kind>weight|bias)")
"""Name of a copy in the file of an adapter."""


def may_be_copy(name: str, config: Mapping[str, Any]) -> bool:
    """Return whether a tensor of an adapter's file is one of its base, by its name and what the adapter trains."""
    if COPY.fullmatch(name):
        return True
    saved = config.get("modules_to_save")
    trained = saved if isinstance(saved, list) else []
    module = name.removesuffix(".weight").rpartition(".")[2]
    return (EMBEDDING.search(name) is not None or module == "lm_head") and module not in trained


@dataclass(frozen=True, eq=False)
class BaseCopy:
    """A copy: where it is in the adapter's file, and its bytes."""

    tensor: Tensor
    raw: NDArray[np.uint8]


def common_copies(adapters: Sequence[tuple[str, Mapping[str, Any], Mapping[str, BaseCopy]]]) -> dict[str, BaseCopy]:
    """Return the copies of all adapters that are unchanged.

    Args:
        adapters: label, ``adapter_config.json`` and tensors that :func:`may_be_copy`, by name.

    Returns:
        Name -> copy; without whole embeddings that differ or that an adapter lacks, which may be trained.

    Raises:
        InputError: two adapters have another ``base_layer``, or one has another than its base, where that is on this
            machine; names it.
    """
    common: dict[str, tuple[str, BaseCopy]] = {}
    changed: dict[str, str] = {}
    for label, config, copies in adapters:
        for name, copy in copies.items():
            other, first = common.setdefault(name, (label, copy))
            same = (copy.tensor.dtype, copy.tensor.shape) == (first.tensor.dtype, first.tensor.shape)
            if not (same and np.array_equal(copy.raw, first.raw)):
                changed.setdefault(name, f"{name} in {other} and in {label} differ")
        for name in _unlike_base(config, copies):
            base = config["base_model_name_or_path"]
            changed.setdefault(name, f"{name} in {label} is not that of its base {base}")
    wrong = next((what for name, what in changed.items() if COPY.fullmatch(name)), None)
    if wrong is not None:
        raise InputError(
            f"{wrong}, so the adapters change different base models.",
            "Put each adapter into its model (merge_and_unload of PEFT) and merge the models.",
        )
    everywhere = {name for name in common if all(name in copies for _, _, copies in adapters)}
    kept = {name for name in common if COPY.fullmatch(name) or name in everywhere - set(changed)}
    return {name: copy for name, (_, copy) in common.items() if name in kept}


def _unlike_base(config: Mapping[str, Any], copies: Mapping[str, BaseCopy]) -> list[str]:
    """List copies that differ from the base, where that is a folder on this machine that can be read and has them."""
    base = config.get("base_model_name_or_path")
    if not copies or not isinstance(base, str) or not base:
        return []
    folder = Path(os.path.expanduser(base))
    if not any((folder / name).is_file() for name in (INDEX, SINGLE)):
        return []
    try:
        tensors = open_checkpoint(Source(base, folder)).tensors
    except InputError:
        return []  # quantised, for instance: then the copies are compared with each other only
    different = []
    for name, copy in copies.items():
        matched = COPY.fullmatch(name)
        whole = name if matched is None else f"{matched['module']}.{matched['kind']}"
        original = tensors.get(whole.removeprefix("base_model.model."))
        if original is None or original.shape != copy.tensor.shape or original.dtype not in FLOATING:
            continue
        raw = np.fromfile(original.path, dtype=np.uint8, count=original.nbytes, offset=original.offset)
        if original.dtype != copy.tensor.dtype:
            wide = np.dtype(np.float64 if original.dtype == "F64" else np.float32)
            raw = encode(decode(raw, original.dtype, wide), copy.tensor.dtype).view(np.uint8)
        if not np.array_equal(raw.reshape(-1), copy.raw):
            different.append(name)
    return different
