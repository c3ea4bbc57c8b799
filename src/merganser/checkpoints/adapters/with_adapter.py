"""Open a base and an adapter as one model (``BASE+ADAPTER``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from merganser.checkpoints.adapters.source import PREFIX, Adapter, read_adapter, same_base
from merganser.checkpoints.adapters.updated_tensor import Update, UpdatedTensor
from merganser.checkpoints.merged_lineage import check_lineage_of_base
from merganser.checkpoints.source import ADAPTER_WEIGHTS, Checkpoint, Source, open_checkpoint
from merganser.checkpoints.vocabularies.tied_names import OUTPUT, tie_setting, tied_to
from merganser.errors import InputError
from merganser.files.safetensors_file import FLOATING, Tensor, read_header
from merganser.lineage import told_by_hash
from merganser.merging.adapters import Factors

ALONE = "Put the adapter into its model (merge_and_unload of PEFT, or merganser export --merged) and name that folder."


def open_model(source: Source, allow_different_bases: bool = False, allow_nonfinite: bool = False) -> Checkpoint:
    """Read the headers of a checkpoint, with the update of its adapter, if it is named with one.

    Args:
        source: where it is.
        allow_different_bases: accept an adapter that names another base.
        allow_nonfinite: accept NaN and infinity in the adapter.

    Raises:
        InputError: as :func:`open_checkpoint` and :func:`read_adapter`; an adapter of another base, or one that
            changes a tensor that the base does not have in that shape.
    """
    checkpoint = open_checkpoint(source)
    if source.adapter is None:
        return checkpoint
    adapter = read_adapter(source.adapter, allow_nonfinite)
    base_name: Any = adapter.config.get("base_model_name_or_path")
    named = isinstance(base_name, str) and base_name.strip("/ ")
    parts = str(source.path), checkpoint.label.removesuffix(f"+{source.adapter.name}")
    # A placeholder is compared by its hash, below; that needs the configuration of the base.
    by_hash = named and bool(checkpoint.config) and told_by_hash(adapter.folder, base_name)
    if named and not by_hash and not allow_different_bases and not any(same_base(base_name, part) for part in parts):
        raise InputError(
            f"{adapter.label} was trained on {base_name} (base_model_name_or_path), not on {parts[1]}.",
            "Name that base. If both are the same model, pass --allow-different-bases (allow_different_bases: true).",
        )
    if not allow_different_bases:
        check_lineage_of_base(checkpoint, source.adapter)
    return _with_update(checkpoint, adapter)


def _with_update(checkpoint: Checkpoint, adapter: Adapter) -> Checkpoint:
    tensors = dict(checkpoint.tensors)
    weights = {module: _weight_name(checkpoint, module, adapter) for module in adapter.modules}
    for module, name in weights.items():
        tensors[name] = _updated(replace(_base_tensor(checkpoint, name), name=name), module, adapter)
    for name, tensor in _whole_tensors(adapter).items():
        name = _name_in_base(checkpoint.tensors, name) or name
        base = checkpoint.tensors.get(name)
        if base is None or base.shape != tensor.shape:
            has = "no such tensor" if base is None else f"{list(base.shape)}"
            raise InputError(
                f"{adapter.label} replaces {name} by one of shape {list(tensor.shape)}; {checkpoint.label} has {has}.",
                "An adapter with tokens of its own needs a base with as many rows (resize_token_embeddings). " + ALONE,
            )
        tensors[name] = replace(tensor, name=name)
    return replace(checkpoint, tensors=tensors)


def _name_in_base(tensors: Mapping[str, Tensor], name: str) -> str | None:
    """Return a tensor's name in the base's files, which may lack or have a prefix that the adapter's model has not."""
    if name in tensors:
        return name
    fitting = [other for other in tensors if other.endswith(f".{name}") or name.endswith(f".{other}")]
    return fitting[0] if len(fitting) == 1 else None


def _weight_name(checkpoint: Checkpoint, module: str, adapter: Adapter) -> str:
    """Return the name of a module's weight in the base's files; of a tied output layer, the name it gets."""
    name = f"{module}.weight"
    base_name = _name_in_base(checkpoint.tensors, name)
    tied = tie_setting(checkpoint.config) is True
    if base_name is not None:
        if module in adapter.embeddings and tied:
            raise InputError(
                f"{adapter.label} changes {base_name}, which {checkpoint.label} shares with its output layer.", ALONE
            )
        return base_name
    if OUTPUT.search(name) and tied_to(name, checkpoint.tensors, tied):
        return name
    raise InputError(
        f"{adapter.label} changes {module}, and {checkpoint.label} has no tensor {name}.",
        "Name the base that the adapter was trained on.",
    )


def _base_tensor(checkpoint: Checkpoint, name: str) -> Tensor:
    if name in checkpoint.tensors:
        return checkpoint.tensors[name]
    return checkpoint.tensors[tied_to(name, checkpoint.tensors, True)[0]]


def _updated(tensor: Tensor, module: str, adapter: Adapter) -> UpdatedTensor:
    """Return a matrix of the base with the update of a module."""
    factors: Factors = adapter.modules[module]
    left, right = factors.b.astype(np.float64) * factors.scaling, factors.a.astype(np.float64)
    # Embeddings and layers of Conv1D are stored transposed.
    if module in adapter.embeddings or adapter.config.get("fan_in_fan_out"):
        left, right = right.T, left.T
    shape = (len(left), right.shape[1])
    if tensor.dtype not in FLOATING or tensor.shape != shape or module in adapter.kernels:
        raise InputError(
            f"{adapter.label} changes {tensor.name} as a matrix of {list(shape)}, and it is {tensor.dtype} "
            f"{list(tensor.shape)} in the base.",
            "Name the base that the adapter was trained on. " + ALONE,
        )
    update = Update(np.ascontiguousarray(left), np.ascontiguousarray(right), tensor.offset)
    return UpdatedTensor(tensor.name, tensor.dtype, tensor.shape, tensor.path, tensor.offset, update)


def _whole_tensors(adapter: Adapter) -> dict[str, Tensor]:
    """Return the tensors of the adapter's file that replace the base's (biases, modules to save), by name there."""
    if not adapter.others:
        return {}
    header: Any = {tensor.name: tensor for tensor in read_header(adapter.folder / ADAPTER_WEIGHTS)[0]}
    return {name.removeprefix(PREFIX): header[name] for name in adapter.others}
