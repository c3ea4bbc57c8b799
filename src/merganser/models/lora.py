"""Low-rank adapters: select the layers that get factors, and initialise these."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

import torch
from torch import nn

from merganser.errors import InputError, nearest
from merganser.models.architecture import is_image_encoder, is_unused
from merganser.models.options import Kind, LoraOptions
from merganser.models.stacking import TRAINED

TASK_TYPES: dict[Kind, str] = {"seq2seq": "SEQ_2_SEQ_LM", "causal": "CAUSAL_LM", "matcher": "FEATURE_EXTRACTION"}

QUERY_WORDS = {"q", "query", "wq"}
VALUE_WORDS = {"v", "value", "wv"}
FUSED_WORDS = {"qkv", "wqkv"}


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return full name -> layer for every layer with a matrix: ``Linear`` and GPT-2's transposed ``Conv1D``."""
    from transformers.pytorch_utils import Conv1D

    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | Conv1D) and not is_unused(model, name)
    }


def find_targets(model: nn.Module, targets: str | list[str]) -> list[str]:
    """Return the names (endings of full names) of the layers that get factors.

    ``auto`` takes the query and the value projections by their last name (``q_proj``, ``query``, ``q_lin``, ``q``
    ...); where attention is one fused layer (``c_attn``, ``qkv_proj``, ``query_key_value``), that layer.
    ``all-linear`` takes every linear layer but the output layer, as in PEFT; ``mlp`` those of the blocks that are in no
    attention module.

    Raises:
        InputError: no linear layer has such a name, or no attention layer was recognised; lists the linear layers.
    """
    layers = linear_layers(model)
    if targets == "auto":
        return _attention_layers(layers)
    if targets in ("all-linear", "mlp"):
        head = _output_layer(model)
        chosen = {name: layer for name, layer in layers.items() if layer is not head}
        if targets == "mlp":
            chosen = {name: layer for name, layer in chosen.items() if _is_mlp(model, name)}
        if not chosen:
            raise InputError(
                f"The model has no such layers (lora.targets: {targets}).",
                f"Name layers in lora.targets. Linear layers here: {_listing(layers)}.",
            )
        return _endings(list(chosen), {name for name, _ in model.named_modules()} - chosen.keys())
    other_modules = {name for name, _ in model.named_modules() if name and name not in layers}
    for target in targets:
        matches = [name for name in layers if _ends_with(name, target)]
        if not matches:
            close = nearest(target, {name.rsplit(".", 1)[-1] for name in layers})
            raise InputError(
                f"The model has no linear layer '{target}' (lora.targets).",
                f"{close} Linear layers here: {_listing(layers)}.".strip(),
            )
        not_linear = sorted(n for n in other_modules if _ends_with(n, target) and not is_unused(model, n))
        if not_linear:
            raise InputError(
                f"'{target}' (lora.targets) also names '{not_linear[0]}', which is not a linear layer.",
                f"Use a longer ending, such as '{'.'.join(matches[0].split('.')[-2:])}'.",
            )
    return list(targets)


def _attention_layers(layers: dict[str, nn.Module]) -> list[str]:
    """Return the last names of the query and value projections, or of the fused attention layers."""
    by_role: dict[str, set[str]] = {"query": set(), "value": set(), "fused": set()}
    for name in layers:
        last_name = name.rsplit(".", 1)[-1]
        role = _role(last_name)
        if role is not None:
            by_role[role].add(last_name)
    if by_role["query"] and by_role["value"]:
        return sorted(by_role["query"] | by_role["value"])
    if by_role["fused"]:
        return sorted(by_role["fused"])
    raise InputError(
        "No query and value projections were found in the model (lora.targets: auto).",
        f"Name layers in lora.targets. Linear layers here: {_listing(layers)}.",
    )


def _output_layer(model: nn.Module) -> nn.Module | None:
    """Return the layer that gives the logits of the vocabulary, if the model has one."""
    get_output = getattr(model, "get_output_embeddings", None)
    layer: nn.Module | None = get_output() if callable(get_output) else None
    return layer


def _is_mlp(model: nn.Module, name: str) -> bool:
    """Return whether a layer is in a repeated block and there in no attention module (by the modules' classes)."""
    module, in_block = model, False
    for part in name.split("."):
        if in_block and "attention" in type(module).__name__.lower():
            return False
        in_block = in_block or isinstance(module, nn.ModuleList)
        module = module.get_submodule(part)
    return in_block


def _endings(chosen: list[str], others: set[str]) -> list[str]:
    """Return the shortest endings of names that match the chosen modules and no others, sorted."""
    endings = set()
    for name in chosen:
        parts = name.split(".")
        candidates = (".".join(parts[-length:]) for length in range(1, len(parts) + 1))
        endings.add(next(ending for ending in candidates if not any(_ends_with(other, ending) for other in others)))
    return sorted(endings)


def _role(last_name: str) -> str | None:
    """Return ``query``, ``value`` or ``fused`` for the last part of a layer's name, from the words in it."""
    words = {word.lower() for word in re.split(r"_|(?<=[a-z])(?=[A-Z])", last_name) if word}
    query, value = bool(words & QUERY_WORDS), bool(words & VALUE_WORDS)
    if words & FUSED_WORDS or (query and value) or last_name in ("c_attn", "in_proj", "Wqkv"):
        return "fused"
    if query:
        return "query"
    return "value" if value else None


def _ends_with(name: str, ending: str) -> bool:
    return name == ending or name.endswith(f".{ending}")


def _listing(layers: dict[str, nn.Module]) -> str:
    """Return the last names of the layers with their counts, most frequent first: ``'query' (6), 'key' (6)``."""
    counts = Counter(name.rsplit(".", 1)[-1] for name in layers)
    return ", ".join(f"'{name}' ({count})" for name, count in counts.most_common()) or "none"


def add_lora(model: nn.Module, options: LoraOptions, kind: Kind, name: str, seed: int) -> Any:
    """Return the model wrapped by ``peft.get_peft_model``: all weights frozen, factors initialised from ``seed``.

    ``name`` is written into the adapter's configuration as its base model.
    """
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers.pytorch_utils import Conv1D

    targets = find_targets(model, options.targets)
    layers = linear_layers(model)
    chosen = [layer for full, layer in layers.items() if any(_ends_with(full, target) for target in targets)]
    unused = [
        full
        for full, _ in model.named_modules()
        if is_unused(model, full) and any(_ends_with(full, target) for target in targets)
    ]
    config = LoraConfig(
        # PEFT's wrapper for feature extraction requires token ids; images need the plain wrapper.
        task_type=None if is_image_encoder(model.config) else TaskType[TASK_TYPES[kind]],
        r=options.r,
        lora_alpha=options.alpha,
        use_rslora=options.rslora,
        use_dora=options.dora,
        lora_dropout=options.dropout,
        target_modules=targets,
        exclude_modules=unused or None,
        fan_in_fan_out=all(isinstance(layer, Conv1D) for layer in chosen),  # Conv1D stores its matrix transposed
    )
    wrapped = get_peft_model(model, config)
    wrapped.peft_config[TRAINED].base_model_name_or_path = name  # PEFT wrote the folder the model was read from
    initialise(wrapped, seed)
    return wrapped


def initialise(model: nn.Module, seed: int) -> None:
    """Initialise the trained factors in place: A uniform within +-1/sqrt(in) (PEFT's Kaiming, a = sqrt 5), B zero.

    With DoRA, magnitudes become the norms of the pretrained weights' rows, so that the model computes as without.

    The values depend on ``seed`` and the names of the layers alone: they are drawn on the CPU with a generator of their
    own, so that neither the device nor the global random state matters.
    """
    generator = torch.Generator().manual_seed(seed)
    factors = sorted(
        (n, p) for n, p in model.named_parameters() if f".lora_A.{TRAINED}." in n or f".lora_B.{TRAINED}." in n
    )
    with torch.no_grad():
        for name, parameter in factors:
            fresh: torch.Tensor = torch.zeros(parameter.shape, dtype=torch.float32)
            if ".lora_A." in name:
                nn.init.kaiming_uniform_(fresh, a=math.sqrt(5), generator=generator)
            parameter.copy_(fresh)
        _initialise_magnitudes(model)


def _initialise_magnitudes(model: nn.Module) -> None:
    from peft.tuners.lora import LoraLayer
    from peft.utils.integrations import dequantize_module_weight

    for layer in model.modules():
        if isinstance(layer, LoraLayer) and TRAINED in layer.lora_magnitude_vector:
            weight = dequantize_module_weight(layer.get_base_layer())
            norms = torch.linalg.norm(weight.T if layer.fan_in_fan_out else weight, dim=1)
            layer.lora_magnitude_vector[TRAINED].weight.copy_(norms)
