"""Names of vocabulary matrices, and which of them a configuration ties."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from merganser.checkpoints.model_config import default_of
from merganser.files.safetensors_file import Tensor

EMBEDDING = re.compile(
    r"(^|\.)(embed_tokens|shared|wte|word_embeddings?|embed_in|tok_embeddings|tokens_embed|token_embedding|embeddings)"
    r"\.weight$"
)
"""Input embeddings, one row per token."""

OUTPUT = re.compile(
    r"(^|\.)(lm_head|generator_lm_head|lm_head\.(decoder|out_proj)|proj_out|embed_out|output_projection|output|decoder"
    r"|head|lm_loss|vocab_projector|pred_layer\.proj)\.weight$"
)
"""Output layers, one row per token."""

BIAS = re.compile(
    r"(^|\.)(lm_head|predictions|lm_head\.decoder|predictions\.decoder|decoder|generator_lm_head|vocab_projector|lm_loss"
    r"|pred_layer\.proj|proj_out|embed_out|output_projection)\.bias$|(^|\.)final_logits_bias$"
)
"""Biases of output layers, one entry per token."""

_STACKS = re.compile(r"(^|\.)(encoder|decoder)\.embed_tokens\.weight$")
_LM_HEAD = re.compile(r"(^|\.)lm_head\.weight$")
_SHARED = re.compile(r"(^|\.)shared\.weight$")
_TEXT = ("text_config", "language_config", "llm_config", "decoder")
"""Keys of a configuration under which that of the language model may stand."""


def vocabulary_names(tensors: Mapping[str, Tensor]) -> list[str]:
    """List the names of vocabulary matrices and biases: those named so that have as many rows as an embedding."""
    rows = {tensor.shape[0] for name, tensor in tensors.items() if EMBEDDING.search(name) and len(tensor.shape) == 2}
    if not rows:
        rows = {t.shape[0] for name, t in tensors.items() if _LM_HEAD.search(name) and len(t.shape) == 2}
    return [
        name
        for name, tensor in tensors.items()
        if (len(tensor.shape) == 2 and (EMBEDDING.search(name) or OUTPUT.search(name)) and tensor.shape[0] in rows)
        or (BIAS.search(name) and tensor.shape and tensor.shape[-1] in rows)
    ]


def one_embedding(first: str, second: str) -> bool:
    """Return whether two names are those of an encoder-decoder's one embedding, which no setting unties."""
    names = (first, second)
    return all(_STACKS.search(name) or _SHARED.search(name) for name in names)


def may_be_one(first: str, second: str) -> bool:
    """Return whether two names can be those of one parameter: two matrices, or the two names of one layer's bias."""
    biases = [BIAS.search(name) is not None for name in (first, second)]
    if any(biases):
        return all(biases) and first.replace(".decoder.bias", ".bias") == second.replace(".decoder.bias", ".bias")
    return True


def tied_to(name: str, tensors: Mapping[str, Tensor], tied: bool) -> list[str]:
    """List the tensors that a missing name shares its parameter with; more than one where they should be equal.

    Args:
        name: missing in ``tensors``.
        tensors: of one checkpoint.
        tied: whether its configuration ties the output layer.
    """
    if not any(pattern.search(name) for pattern in (EMBEDDING, OUTPUT, BIAS)):
        return []
    names = [other for other in vocabulary_names(tensors) if may_be_one(name, other)]
    return [other for other in names if tied or one_embedding(name, other)]


def tie_setting(config: Mapping[str, Any]) -> bool | None:
    """Return whether a configuration ties the output layer to the embedding; ``None`` where that is unknown.

    The language model's own setting counts where the whole has none; an omitted one is the default of its type.
    """
    parts = [config, *(part for key in _TEXT if isinstance(part := config.get(key), Mapping))]
    for part in parts:
        if isinstance(setting := part.get("tie_word_embeddings"), bool):
            return setting
    default = default_of(config, "tie_word_embeddings")
    return default if isinstance(default, bool) else None
