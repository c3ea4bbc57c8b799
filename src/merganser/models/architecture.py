"""What a model is made of, read off its configuration and the names of its parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

UNREAD = frozenset({"pooler"})
"""Part of some encoders that is computed from the first token and that no kind of backbone reads."""
TEXT_SIDE = frozenset({"text_model", "text_projection", "logit_scale", "logit_bias"})
"""Parts of CLIP-like models that stay as they are: they give the labels' vectors."""


def is_unread(model: nn.Module, name: str) -> bool:
    """Whether a layer or parameter takes no part in reading an example, by its full name."""
    parts = set(name.split("."))
    return bool(parts & UNREAD) or (hasattr(model, "vision_model") and bool(parts & TEXT_SIDE))


def reads_images(config: Any) -> bool:
    """Whether a configuration is that of an image encoder, alone or beside a text encoder.

    Models that write text about images (they have a text decoder) are not meant.
    """
    from transformers.models.auto import modeling_auto as auto

    kind = config.model_type
    if has_text_encoder(config):
        return True
    # Image encoders have neither a vocabulary nor a second configuration inside.
    return kind in auto.MODEL_MAPPING_NAMES and hasattr(config, "num_channels") and not hasattr(config, "vocab_size")


def has_text_encoder(config: Any) -> bool:
    """Whether a configuration is that of an image encoder beside a text encoder, as CLIP's."""
    from transformers.models.auto import modeling_auto as auto

    paired = config.model_type in auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES
    return paired and hasattr(config, "vision_config") and hasattr(config, "text_config")
