"""Compare the configurations of models: equal shapes do not imply equal functions.

A setting that changes what a model computes (rotary base, heads, activation, epsilon, window, tying ...) must agree;
names, versions, types, dropout, initialisation, losses and generation settings may differ.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from merganser.errors import InputError, nearest

_NEUTRAL = re.compile(
    # Names, versions and files.
    r"_.*|name_or_path|architectures|auto_map|.*version|.*unsloth.*|model_type|model_name|tokenizer_class"
    # Types, memory, outputs, and how it is computed.
    r"|dtype|torch_dtype|.*_dtype|use_bfloat16|use_cache|gradient_checkpointing|torchscript|return_dict|output_(attentions|hidden_states|router_logits|past|scores|retentions)"
    r"|chunk_size_feed_forward|pretraining_tp|attn_implementation|.*flash.*|use_mems_.*|cache_implementation"
    r"|(num_)?logits_to_keep|use_.*_kernels?|fused?_.*|slow_but_exact"
    r"|reorder_and_upcast_attn|vocab_size|additional_vocab_size"
    # Training: dropout, initialisation, losses, masking.
    r"|.*dropout.*|.*_pdrop|.*layerdrop|.*drop_path.*|initializer_.*|init_(std|method|range|scale)|.*_init|rescale_prenorm_.*"
    r"|.*loss.*|.*jitter_noise|label_smoothing|max_window_layers|problem_type|apply_spec_augment|mask_(time|feature)_.*"
    # Labels: their names are compared apart.
    r"|label2id|num_labels|id2label|finetuning_task|task_specific_params"
    # Generation.
    r"|(bos|eos|pad|sep|cls|unk|mask|decoder_start|forced_bos|forced_eos)_token_id|do_sample|early_stopping|num_beams"
    r"|num_beam_groups|num_return_sequences|temperature|top_[kp]|typical_p|repetition_penalty|diversity_penalty"
    r"|length_penalty|no_repeat_ngram_size|encoder_no_repeat_ngram_size|(max|min)_(new_tokens|length)|bad_words_ids"
    r"|suppress_tokens|begin_suppress_tokens|forced_decoder_ids|exponential_decay_length_penalty|remove_invalid_values"
    r"|prefix"
)
"""Keys that do not change what equal weights compute."""

_POSITIONS = re.compile(
    r"(.*\.)?((original_)?max_position_embeddings|n_positions|seq_length|max_seq_len|max_sequence_length"
    r"|model_max_length)"
)
"""Longest inputs: learned positions have a shape, and rotary ones depend on them only in :data:`_BY_LENGTH`."""

_BY_LENGTH = ("dynamic", "yarn", "longrope", "su")
"""Rotary scalings that depend on the longest input."""

_SIZES = re.compile(
    r"num_hidden_layers|n_layers?|num_layers|(num_)?(en|de)coder_layers|layer_types|hidden_size|n_embd"
    r"|d_model|intermediate_size|n_inner|d_ff|(en|de)coder_ffn_dim|ffn_dim|type_vocab_size"
)
"""Sizes and numbers of layers, which may differ where only common tensors are merged."""

_PADDED_POSITIONS = frozenset(
    (
        *("altclip", "bridgetower", "camembert", "data2vec-text", "esm", "fsmt", "ibert", "layoutlmv3", "lilt"),
        *("longformer", "luke", "m2m_100", "markuplm", "mpnet", "nllb-moe", "roberta", "roberta-prelayernorm"),
        *("speech_to_text", "trocr", "xlm-roberta", "xlm-roberta-xl", "xmod"),
    )
)
"""Types whose positions are counted from ``pad_token_id``, as their code in ``transformers`` does."""

_ACTIVATIONS = {
    "swish": "silu",
    **dict.fromkeys(("gelu_pytorch_tanh", "gelu_fast", "gelu_accurate"), "gelu_new"),
}
"""Further names of one activation function, but for rounding."""

_DEEPEST = 50

_DEFAULT_LABEL = re.compile(r"LABEL_\d+")


def check_configs(
    first: tuple[str, Mapping[str, Any]],
    second: tuple[str, Mapping[str, Any]],
    allowed: Sequence[str] = (),
    common_only: bool = False,
) -> list[str]:
    """Refuse two models of one type whose configurations make equal weights compute something else.

    An omitted key has the default of the model's type in ``transformers``; types that it lacks are compared as written.

    Args:
        first, second: label and content of ``config.json``, empty where unknown.
        allowed: keys that may differ: whole paths, their beginnings or ends (``rope_theta``, ``text_config``).
        common_only: only common tensors are merged, so sizes may differ.

    Returns:
        The differences that ``allowed`` covers, each key with both values.

    Raises:
        InputError: other settings differ; gives each key with both values.
    """
    configs = first[1], second[1]
    kinds = [config.get("model_type") for config in configs]
    if not all(configs) or (None not in kinds and kinds[0] != kinds[1]):
        return []
    settings = [_comparable(config) for config in configs]
    if settings[0] != settings[1]:
        kind = kinds[1] if kinds[0] is None else kinds[0]
        settings = _with_defaults([{**config, "model_type": kind} for config in configs]) or settings
    keys = [key for key in dict.fromkeys((*settings[0], *settings[1])) if _differs(key, settings)]
    keys = [key for key in keys if not (common_only and _SIZES.fullmatch(key.rpartition(".")[2]))]
    values = {
        key: f"{key} is {_text(settings[0], key)} in {first[0]}, {_text(settings[1], key)} in {second[0]}"
        for key in keys
    }
    keys = [key for key in keys if not any(_is_allowed(key, allow) for allow in allowed)]
    if not keys:
        return list(values.values())
    listed = "; ".join(values[key] for key in keys[:6])
    more = f"; and {len(keys) - 6} more" if len(keys) > 6 else ""
    options = " ".join(f"--allow-config {shlex.quote(key)}" for key in keys[:6])
    raise InputError(
        f"The configurations differ: {listed}{more}.",
        "The weights of one model mean something else in the other. To merge them all the same, into the configuration "
        f"of the first or the base, use {options} (allow_config in the file).",
    )


def refuse_unknown_keys(allowed: Sequence[str], configs: Sequence[Mapping[str, Any]]) -> None:
    """Refuse an allowed key that no configuration has, written or by default: it would be a slip of the pen.

    Raises:
        InputError: names the nearest key.
    """
    known = dict.fromkeys(key for config in configs for key in (*_paths(config), *_comparable(config)))
    unknown = [key for key in allowed if not any(_is_allowed(other, key) for other in known)]
    if unknown:  # the defaults of a type take longer than a small merge
        known |= dict.fromkeys(key for config in configs for key in _paths(_complete(config) or {}))
        unknown = [key for key in unknown if not any(_is_allowed(other, key) for other in known)]
    if unknown:
        names = dict.fromkeys((*(key.rpartition(".")[2] for key in known), *known))
        hint = nearest(unknown[0], names) or "Name a key of config.json, such as rope_theta."
        raise InputError(
            f"No model's config.json has the key {unknown[0]!r:.80} that may differ (--allow-config).", hint
        )


def _paths(config: Mapping[str, Any], prefix: str = "", depth: int = 0) -> Iterator[str]:
    """Yield the dotted path of every value of a configuration."""
    for key, value in config.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping) and depth < _DEEPEST:
            yield from _paths(value, f"{prefix}{key}.", depth + 1)


def _is_allowed(key: str, allowed: str) -> bool:
    path = re.sub(r"(^|\.)rope_scaling(?=\.|$)", r"\1rope_parameters", allowed)
    return f".{path}." in f".{key}."


def _differs(key: str, settings: Sequence[Mapping[str, Any]]) -> bool:
    if key == "id2label" and not all(key in part for part in settings):
        return False  # a model without names for its labels contradicts no other
    return settings[0].get(key) != settings[1].get(key)


def _text(settings: Mapping[str, Any], key: str) -> str:
    if key in settings:
        return f"{settings[key]!r:.60}"
    return "'default'" if key.endswith("rope_type") else "not set"


def default_of(config: Mapping[str, Any], key: str) -> Any:
    """Return the value of a key that a configuration omits; ``None`` where the type is unknown or has none."""
    kind = config.get("model_type")
    content = _complete(config) if isinstance(kind, str) else None
    return None if content is None else content.get(key)


# Settings by dotted key ----------------------------------------------------------------------------------------------


def _comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten a configuration to the settings that change the function, each in one form."""
    settings = dict(_flatten(_in_one_form(config)))
    scaled = any(value in _BY_LENGTH for key, value in settings.items() if key.endswith("rope_type"))
    if not scaled:
        settings = {
            key: value for key, value in settings.items() if "rope_parameters." in key or not _POSITIONS.fullmatch(key)
        }
    if config.get("model_type") in _PADDED_POSITIONS and config.get("pad_token_id") is not None:
        settings["pad_token_id"] = config["pad_token_id"]
    labels = config.get("id2label")
    if isinstance(labels, Mapping) and not all(_DEFAULT_LABEL.fullmatch(str(label)) for label in labels.values()):
        settings["id2label"] = {str(number): label for number, label in labels.items()}
    return settings


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys with values; without keys that do not change the function and without nulls."""
    for key, value in config.items():
        key = str(key)
        if _NEUTRAL.fullmatch(key) or value is None:
            continue
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value


def _in_one_form(config: Mapping[str, Any], depth: int = 0) -> dict[str, Any]:
    """Return a configuration, nested ones included, with one form for each setting that has several.

    Raises:
        InputError: it is nested more than :data:`_DEEPEST` deep.
    """
    if depth > _DEEPEST:
        raise InputError(f"A config.json is nested more than {_DEEPEST} deep.", "Download or save the model again.")
    content = {
        key: _in_one_form(value, depth + 1) if isinstance(value, Mapping) and not key.startswith("rope_") else value
        for key, value in ((str(key), value) for key, value in config.items())
    }
    heads, width = content.get("num_attention_heads"), content.get("hidden_size")
    if isinstance(heads, int) and isinstance(width, int) and heads > 0:
        content["head_dim"] = content.get("head_dim") or width // heads
        content["num_key_value_heads"] = content.get("num_key_value_heads") or heads
    if content.get("use_sliding_window") is False:
        content.pop("sliding_window", None)
    for key, value in content.items():
        if "act" in key and isinstance(value, str):
            content[key] = _ACTIVATIONS.get(value, value)
    rope = _rope_parameters(content)
    return {**content, "rope_parameters": rope} if rope else content


def _rope_parameters(content: dict[str, Any]) -> dict[str, Any]:
    """Take the rotary settings out of a configuration: ``rope_theta`` and ``rope_scaling`` in older files."""
    rope: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        part = content.pop(key, None)
        rope |= part if isinstance(part, dict) else {}
    if any(isinstance(part, dict) for part in rope.values()):  # one per kind of layer
        return {key: _rope_parameters({"rope_parameters": part}) for key, part in rope.items()}
    for key in ("rope_theta", "partial_rotary_factor"):
        if content.get(key) is not None:
            rope.setdefault(key, content.pop(key))
    kind = rope.pop("type", None)
    rope.setdefault("rope_type", kind)
    if rope["rope_type"] == "linear" and rope.get("factor") == 1.0:
        del rope["factor"], rope["rope_type"]
    elif rope["rope_type"] in (None, "default"):
        del rope["rope_type"]
    return rope


def _with_defaults(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
    """Return the settings with the defaults of the type; ``None`` where transformers lacks the type or refuses one."""
    complete = [_complete(config) for config in configs]
    filled = [content for content in complete if content is not None]
    return [_comparable(content) for content in filled] if len(filled) == len(configs) else None


def _complete(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Fill in the defaults of a configuration's class in ``transformers``, and drop keys that the class lacks.

    No code beside the model is run. ``None``: the type is not in ``transformers``, or its class refuses the values.
    """
    # Imported where two configurations differ as written, because it takes longer than a small merge.
    from huggingface_hub.errors import StrictDataclassError
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        return None
    with _quiet():
        try:
            content: dict[str, Any] = CONFIG_MAPPING[kind].from_dict(dict(config)).to_dict()
            known = CONFIG_MAPPING[kind]().to_dict()
        except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError, ImportError):
            # The class refuses the values, or needs a library that is not installed: such configurations are compared
            # as they are written, which refuses rather more merges than fewer.
            return None
    return {key: value for key, value in content.items() if key in known}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from logging what it converts."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
