"""Adapters whose rank grows: what was learned so far stays as frozen factors beside the ones being trained.

Inside the model the earlier factors are a second PEFT adapter, :data:`EARLIER`, always active and never trained. On
disk both are one ordinary adapter: factors side by side, ``B A = B_1 A_1 + B_2 A_2``, with rank and alpha grown in
proportion, so that the scaling ``alpha / r`` stays.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from merganser.models.quiet import quiet

TRAINED = "default"
EARLIER = "earlier"


def tensors_of(model: Any, adapter: str) -> dict[str, Tensor]:
    """An adapter's tensors under the names PEFT gives them in files; they share memory with the parameters."""
    from peft import get_peft_model_state_dict

    # Without embeddings PEFT has no reason to ask the hub whether the vocabulary was resized.
    return get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)


def rank_of(model: Any) -> int:
    """Rank of the earlier and the trained factors together."""
    return sum(model.peft_config[name].r for name in (TRAINED, EARLIER) if name in model.peft_config)


def joined(model: Any) -> tuple[dict[str, Tensor], Any]:
    """The whole adapter as one: tensors (earlier factors first) and PEFT configuration."""
    config = copy.copy(model.peft_config[TRAINED])
    tensors = tensors_of(model, TRAINED)
    if EARLIER not in model.peft_config:
        return tensors, config
    earlier, rank = tensors_of(model, EARLIER), rank_of(model)
    config.lora_alpha, config.r = config.lora_alpha * rank / config.r, rank
    return {name: torch.cat([earlier[name], own], _axis(name)) for name, own in tensors.items()}, config


def parted(tensors: Mapping[str, Tensor], extra: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A whole adapter's tensors as the ``extra`` earlier ranks and the rest."""
    earlier = {name: tensor.narrow(_axis(name), 0, extra) for name, tensor in tensors.items()}
    rest = {n: t.narrow(_axis(n), extra, t.shape[_axis(n)] - extra) for n, t in tensors.items()}
    return earlier, rest


def put_earlier(model: Any, tensors: Mapping[str, Tensor] | None) -> None:
    """Make these the frozen earlier factors, of whatever rank; ``None``: there are none."""
    if EARLIER in model.peft_config:
        model.delete_adapter(EARLIER)
        model.base_model.set_adapter(TRAINED)
    if tensors is not None:
        config = copy.deepcopy(model.peft_config[TRAINED])
        rank = next(tensor.shape[0] for name, tensor in tensors.items() if ".lora_A." in name)
        config.lora_alpha, config.r = config.lora_alpha * rank / config.r, rank
        config.lora_dropout = 0.0  # what is not trained needs no noise
        with quiet(), torch.random.fork_rng():
            model.add_adapter(EARLIER, config)
        model.base_model.set_adapter([TRAINED, EARLIER])
        with torch.no_grad():
            for name, own in tensors_of(model, EARLIER).items():
                own.copy_(tensors[name])
    freeze_earlier(model)


def freeze_earlier(model: nn.Module) -> None:
    """Only the trained factors ask for gradients; PEFT turns them on for every active adapter."""
    for name, parameter in model.named_parameters():
        if f".{EARLIER}." in name:
            parameter.requires_grad_(False)


@contextlib.contextmanager
def without_adapter(model: Any) -> Iterator[None]:
    """The pretrained model inside, without earlier or trained factors."""
    try:
        with model.disable_adapter():
            yield
    finally:
        freeze_earlier(model)


def earlier_and_trained(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Factors A of every layer, those of earlier tasks (ranks x in) and those being trained; empty without earlier."""
    from peft.tuners.lora import LoraLayer

    return [
        (layer.lora_A[EARLIER].weight, layer.lora_A[TRAINED].weight)
        for layer in model.modules()
        if isinstance(layer, LoraLayer) and EARLIER in layer.lora_A
    ]


def _axis(name: str) -> int:
    """The axis of a factor that counts ranks: A is rank x in, B is out x rank."""
    return 0 if ".lora_A." in name else 1
