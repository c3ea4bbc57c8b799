"""Adapters whose rank grows: frozen factors of earlier tasks beside trained ones.

In the model the frozen factors are a second PEFT adapter, :data:`FROZEN`, always active and never trained. On disk both
are one ordinary adapter: factors concatenated along the rank, ``B A = B_1 A_1 + B_2 A_2``, with an alpha that has grown
with the rank, so that the scaling stays.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from merganser.models.library_output import silence_libraries

TRAINED = "default"
"""PEFT's name of the trained adapter."""
FROZEN = "frozen"
"""PEFT's name of the adapter with the factors of earlier tasks."""


def adapter_tensors(model: Any, adapter: str) -> dict[str, Tensor]:
    """Return an adapter's tensors under the names PEFT gives them in files; they share memory with the parameters."""
    from peft import get_peft_model_state_dict

    # With embeddings PEFT would query the hub to check whether the vocabulary was resized.
    return get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)


def total_rank(model: Any) -> int:
    """Return the rank of the frozen and the trained factors together."""
    return sum(model.peft_config[name].r for name in (TRAINED, FROZEN) if name in model.peft_config)


def concatenate_adapters(model: Any) -> tuple[dict[str, Tensor], Any]:
    """Return frozen and trained factors as one adapter: tensors (frozen ranks first) and PEFT configuration."""
    config = copy.copy(model.peft_config[TRAINED])
    trained = adapter_tensors(model, TRAINED)
    if FROZEN not in model.peft_config:
        return trained, config
    frozen, rank = adapter_tensors(model, FROZEN), total_rank(model)
    _grow(config, rank)
    return {name: torch.cat([frozen[name], factor], _rank_axis(name)) for name, factor in trained.items()}, config


def split_adapter(tensors: Mapping[str, Tensor], frozen_rank: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split an adapter's tensors into the first ``frozen_rank`` ranks and the rest."""
    frozen, rest = {}, {}
    for name, tensor in tensors.items():
        axis = _rank_axis(name)
        frozen[name] = tensor.narrow(axis, 0, frozen_rank)
        rest[name] = tensor.narrow(axis, frozen_rank, tensor.shape[axis] - frozen_rank)
    return frozen, rest


def _grow(config: Any, rank: int) -> None:
    """Set the rank of a PEFT configuration at the same scaling: alpha grows with it (of rsLoRA, with its root)."""
    config.lora_alpha *= math.sqrt(rank / config.r) if config.use_rslora else rank / config.r
    config.r = rank


def set_frozen_adapter(model: Any, tensors: Mapping[str, Tensor] | None) -> None:
    """Replace the frozen factors, whatever their rank; ``None`` removes them."""
    if FROZEN in model.peft_config:
        model.delete_adapter(FROZEN)
        model.base_model.set_adapter(TRAINED)
    if tensors is not None:
        config = copy.deepcopy(model.peft_config[TRAINED])
        rank = next(tensor.shape[0] for name, tensor in tensors.items() if ".lora_A." in name)
        _grow(config, rank)
        config.lora_dropout = 0.0  # dropout regularises training, and these are not trained
        with silence_libraries(), torch.random.fork_rng():
            model.add_adapter(FROZEN, config)
        model.base_model.set_adapter([TRAINED, FROZEN])
        with torch.no_grad():
            for name, factor in adapter_tensors(model, FROZEN).items():
                factor.copy_(tensors[name])
    _freeze(model)


def _freeze(model: nn.Module) -> None:
    """Turn gradients of the frozen factors off; PEFT turns them on for every active adapter."""
    for name, parameter in model.named_parameters():
        if f".{FROZEN}." in name:
            parameter.requires_grad_(False)


@contextlib.contextmanager
def disable_adapters(model: Any) -> Iterator[None]:
    """Compute with the pretrained model inside, without frozen or trained factors."""
    try:
        with model.disable_adapter():
            yield
    finally:
        _freeze(model)


def lora_a_pairs(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Return each layer's factors A, frozen and trained (both rank x in); empty if no factors are frozen."""
    from peft.tuners.lora import LoraLayer

    return [
        (layer.lora_A[FROZEN].weight, layer.lora_A[TRAINED].weight)
        for layer in model.modules()
        if isinstance(layer, LoraLayer) and FROZEN in layer.lora_A
    ]


def _rank_axis(name: str) -> int:
    """Return the axis of a factor that counts ranks: A is rank x in, B is out x rank."""
    return 0 if ".lora_A." in name else 1
