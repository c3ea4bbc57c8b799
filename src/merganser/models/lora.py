"""Low-rank adapters: which layers get them, and where they start."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

import torch
from torch import nn

from merganser.errors import InputError, nearest
from merganser.models.architecture import is_unread, reads_images
from merganser.models.options import Kind, LoraOptions
from merganser.models.stacking import TRAINED

TASK_TYPES: dict[Kind, str] = {"seq2seq": "SEQ_2_SEQ_LM", "causal": "CAUSAL_LM", "matcher": "FEATURE_EXTRACTION"}

QUERY_WORDS = {"q", "query", "wq"}
VALUE_WORDS = {"v", "value", "wv"}
FUSED_WORDS = {"qkv", "wqkv"}


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Full name -> layer, for every layer that multiplies by a matrix: ``Linear`` and GPT-2's transposed ``Conv1D``."""
    from transformers.pytorch_utils import Conv1D

    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | Conv1D) and not is_unread(model, name)
    }


def _role(last_name: str) -> str | None:
    """``query``, ``value`` or ``fused`` for the last part of a layer's name, from the words it is made of."""
    words = [word for word in re.split(r"_|(?<=[a-z])(?=[A-Z])", last_name) if word]
    lowered = {word.lower() for word in words}
    query, value = bool(lowered & QUERY_WORDS), bool(lowered & VALUE_WORDS)
    if lowered & FUSED_WORDS or (query and value) or last_name in ("c_attn", "in_proj", "Wqkv"):
        return "fused"
    if query:
        return "query"
    return "value" if value else None


def find_targets(model: nn.Module, targets: str | list[str]) -> list[str]:
    """Names (endings of full names) of the layers that get factors.

    ``auto`` takes the layers whose last name says query and those whose last name says value (``q_proj``, ``query``,
    ``q_lin``, ``q`` ...); where attention is one fused layer (``c_attn``, ``qkv_proj``, ``query_key_value``), that one.

    Raises:
        InputError: a name that no linear layer has, or no attention found; lists the linear layers there are.
    """
    layers = linear_layers(model)
    if targets == "auto":
        by_role: dict[str, set[str]] = {"query": set(), "value": set(), "fused": set()}
        for name in layers:
            last = name.rsplit(".", 1)[-1]
            role = _role(last)
            if role is not None:
                by_role[role].add(last)
        if by_role["query"] and by_role["value"]:
            return sorted(by_role["query"] | by_role["value"])
        if by_role["fused"]:
            return sorted(by_role["fused"])
        raise InputError(
            "No query and value projections were found in the model (lora.targets: auto).",
            f"Name layers in lora.targets. Linear layers here: {_listing(layers)}.",
        )
    others = {name for name, _ in model.named_modules() if name and name not in layers}
    for target in targets:
        matches = [name for name in layers if _ends_with(name, target)]
        if not matches:
            close = nearest(target, {name.rsplit(".", 1)[-1] for name in layers})
            raise InputError(
                f"The model has no linear layer '{target}' (lora.targets).",
                f"{close} Linear layers here: {_listing(layers)}.".strip(),
            )
        odd = sorted(n for n in others if _ends_with(n, target) and not is_unread(model, n))
        if odd:
            raise InputError(
                f"'{target}' (lora.targets) also names '{odd[0]}', which is not a linear layer.",
                f"Use a longer ending, as '{'.'.join(matches[0].split('.')[-2:])}'.",
            )
    return list(targets)


def _ends_with(name: str, ending: str) -> bool:
    return name == ending or name.endswith(f".{ending}")


def _listing(layers: dict[str, nn.Module]) -> str:
    """``'query' (6), 'key' (6)``: the last names of the layers with their counts, most frequent first."""
    counts = Counter(name.rsplit(".", 1)[-1] for name in layers)
    return ", ".join(f"'{name}' ({count})" for name, count in counts.most_common()) or "none"


def add_lora(model: nn.Module, options: LoraOptions, kind: Kind, name: str, seed: int) -> Any:
    """The model wrapped by ``peft.get_peft_model``: all weights frozen, factors added and drawn from ``seed``.

    ``name`` is written into the adapter's configuration as the model it belongs to.
    """
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers.pytorch_utils import Conv1D

    targets = find_targets(model, options.targets)
    layers = linear_layers(model)
    chosen = [layer for full, layer in layers.items() if any(_ends_with(full, target) for target in targets)]
    unread = [
        full
        for full, _ in model.named_modules()
        if is_unread(model, full) and any(_ends_with(full, target) for target in targets)
    ]
    config = LoraConfig(
        # PEFT's wrapper for feature extraction reads token ids; images want the plain one.
        task_type=None if reads_images(model.config) else TaskType[TASK_TYPES[kind]],
        r=options.r,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=targets,
        exclude_modules=unread or None,
        fan_in_fan_out=all(isinstance(layer, Conv1D) for layer in chosen),  # Conv1D stores its matrix transposed
    )
    wrapped = get_peft_model(model, config)  # writes the place the model was read from, here corrected to its name
    wrapped.peft_config["default"].base_model_name_or_path = name
    initialise(wrapped, seed)
    return wrapped


def initialise(model: nn.Module, seed: int) -> None:
    """Fresh trained factors in place: A uniform within +-1/sqrt(in) as PEFT draws it (Kaiming, a = sqrt 5), B zero.

    Depends on ``seed`` and the names of the layers alone: the draws are made on the CPU with a generator of their own,
    so neither the device nor anybody's random state matters.
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
