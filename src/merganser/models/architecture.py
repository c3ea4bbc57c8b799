"""Determine which kinds an architecture supports, from its configuration and the names of its modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers.models.auto import modeling_auto

from merganser.models.options import Kind

if TYPE_CHECKING:
    from torch import nn

UNUSED_MODULES = frozenset({"pooler"})
"""Modules of some encoders, computed from the first token, that no kind of backbone uses."""
TEXT_MODULES = frozenset({"text_model", "text_projection", "logit_scale", "logit_bias"})
"""Parts of CLIP-like models that are never trained: they embed the label texts."""


def is_unused(model: nn.Module, name: str) -> bool:
    """Return whether a module or parameter, given its full name, is not used to encode an example."""
    parts = set(name.split("."))
    return bool(parts & UNUSED_MODULES) or (hasattr(model, "vision_model") and bool(parts & TEXT_MODULES))


def is_image_encoder(config: Any) -> bool:
    """Return whether a configuration is that of an image encoder, alone or beside a text encoder.

    Models that generate text about images (they have a text decoder) are not.
    """
    if has_text_encoder(config):
        return True
    # Image encoders have neither a vocabulary nor a nested text configuration.
    in_auto_model = config.model_type in modeling_auto.MODEL_MAPPING_NAMES
    return in_auto_model and hasattr(config, "num_channels") and not hasattr(config, "vocab_size")


def has_text_encoder(config: Any) -> bool:
    """Return whether a configuration is that of an image encoder beside a text encoder, as CLIP's."""
    zero_shot = config.model_type in modeling_auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES
    return zero_shot and hasattr(config, "vision_config") and hasattr(config, "text_config")


def supported_kinds(config: Any) -> list[Kind]:
    """Return the kinds that an architecture supports, the most natural one first.

    Encoder-decoders: seq2seq. Decoders: causal, and matcher (as text embedders). Encoders: matcher, although
    transformers can also load some of them as decoders with an untrained head. Image encoders: matcher.
    """
    if is_image_encoder(config):
        return ["matcher"]
    name = config.model_type
    if config.is_encoder_decoder:
        return ["seq2seq"] if name in modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES else []
    is_encoder = name in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    kinds: list[Kind] = []
    if name in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not is_encoder:
        kinds.append("causal")
    if name in modeling_auto.MODEL_MAPPING_NAMES and hasattr(config, "vocab_size") and hasattr(config, "hidden_size"):
        kinds.append("matcher")
    return kinds


def max_positions(config: Any) -> int | None:
    """Return the longest supported text in tokens; ``None`` for relative positions (T5)."""
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return None
    if config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer"):
        positions -= config.pad_token_id + 1  # these number positions from after the padding token
    return positions


def set_dropout(config: Any, dropout: float) -> None:
    """Set every dropout that a configuration names (``hidden_dropout_prob``, ``resid_pdrop``, ...), nested ones too."""
    for nested in ("vision_config", "text_config"):
        if hasattr(config, nested):
            set_dropout(getattr(config, nested), dropout)
    for key, value in list(vars(config).items()):
        if isinstance(value, float) and ("dropout" in key or key.endswith("_pdrop")):
            setattr(config, key, dropout)
