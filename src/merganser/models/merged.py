"""Add an adapter to a copy of its model; a matrix that the adapter changes in one of its places only is untied."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from merganser.errors import InputError, RunError
from merganser.files.safetensors_file import FLOATING, read_header
from merganser.models.library_output import silence_libraries
from merganser.models.pretrained import DTYPES
from merganser.models.source import ModelSource

STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types of safetensors files that a model is written in again; every other one becomes fp32."""


def merge_adapter(model: Any, *, in_place: bool = False) -> Any:
    """Return a copy of the model with ``W + s B A`` in place of ``W``, in fp32; the model itself is unchanged.

    A matrix that the output layer shares with the input embedding, and that has factors in the output layer, is no
    longer shared in the copy: the update is the output layer's alone.

    Args:
        model: wrapped by PEFT, its weights not quantised.
        in_place: merge into the model itself, which is then no longer usable as it was.

    Raises:
        InputError: another matrix with factors is shared, or the architecture cannot store the two apart.
        RunError: a merged weight is not finite.
    """
    _tied_output(model)  # refused before anything is copied
    merged = model if in_place else copy.deepcopy(model)
    output = _tied_output(merged)
    if output is not None:
        output.weight = nn.Parameter(output.weight.detach().clone(), requires_grad=False)
        _record_untied(merged.get_base_model())
    for layer in _layers_with_factors(merged).values():
        layer.get_base_layer().float()  # bf16 would round the update before the sum
    try:
        with silence_libraries():
            return merged.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise RunError(f"The merged weights are not finite: {error}", "Undo the last task, then export.") from error


def _layers_with_factors(model: Any) -> dict[str, Any]:
    """Return name in the base -> layer, of the layers that have factors."""
    from peft.tuners.lora import LoraLayer

    return {name: layer for name, layer in model.get_base_model().named_modules() if isinstance(layer, LoraLayer)}


def _tied_output(model: Any) -> Any | None:
    """Return the output layer (without its factors) if it has factors and shares its matrix with the input embedding.

    Raises:
        InputError: a layer with factors shares its matrix in another way.
    """
    base, with_factors = model.get_base_model(), _layers_with_factors(model)
    owners: dict[int, list[nn.Module]] = {}
    for module in base.modules():
        for parameter in module._parameters.values():
            owners.setdefault(id(parameter), []).append(module)
    tied = None
    for name, layer in with_factors.items():
        linear = layer.get_base_layer()
        others = [module for module in owners[id(linear.weight)] if module is not linear]
        if not others:
            continue
        is_output = layer is base.get_output_embeddings() and others == [base.get_input_embeddings()]
        if not is_output or base.config.is_encoder_decoder:
            raise InputError(
                f"The layer '{name}' has factors and shares its matrix with another layer, which {type(base).__name__} "
                "cannot store apart: the merged model would be another one.",
                "Export the adapter (without --merged); PEFT loads it beside the model.",
            )
        tied = linear
    return tied


def _record_untied(base: Any) -> None:
    """Note in a model that its output layer has its own matrix, so that it is saved and loaded as such."""
    for config in {id(c): c for c in (base.config, base.config.get_text_config())}.values():
        config.tie_word_embeddings = False
    for part in base.modules():
        if hasattr(part, "all_tied_weights_keys"):
            part.all_tied_weights_keys = {}


def stored_types(model: Any, source: ModelSource, dtype: str | None) -> dict[str, torch.dtype]:
    """Return the type to write each tensor of a model in, by its name.

    Args:
        model: the model to write.
        source: the pretrained model: a tensor keeps the type it has there; one of another name takes the type of most.
        dtype: a key of :data:`merganser.models.pretrained.DTYPES` for all tensors instead.
    """
    names = model.state_dict()
    if dtype is not None:
        return dict.fromkeys(names, DTYPES[dtype])
    stored: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for path in source.weight_files():
        for tensor in read_header(path)[0]:
            stored[tensor.name] = tensor.dtype
            if tensor.dtype in FLOATING:
                sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.size
    most = max(sizes, key=lambda dtype: sizes[dtype], default="F32")
    return {name: STORED.get(stored.get(name, most), torch.float32) for name in names}
