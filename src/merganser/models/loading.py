"""Load a backbone from a hub id, a folder or a .gguf file."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn

from merganser.devices import model_device
from merganser.errors import InputError, MerganserError, first_line, mark_missing_model
from merganser.files.hub import cut_connections, hub_failure, is_offline
from merganser.models import architecture
from merganser.models.base import Backbone, Lengths, LoadedModel
from merganser.models.causal import Causal
from merganser.models.chat_template import TEMPLATES, chat_prompt, uses_template
from merganser.models.first_adapter import find_adapter, with_options_of
from merganser.models.library_output import silence_libraries
from merganser.models.lora import add_lora
from merganser.models.matcher import Matcher
from merganser.models.options import Kind, ModelOptions
from merganser.models.precision import resolve_precision
from merganser.models.pretrained import Pretrained, PretrainedSettings, TokenizerSettings
from merganser.models.seq2seq import Seq2Seq
from merganser.models.source import refuse_adapter, resolve_source
from merganser.models.vocabulary import refuse_unreadable, unreadable_tokens
from merganser.models.weight_files import load_adapter
from merganser.models.weight_format import (
    QUANTISED,
    Held,
    check_kernel,
    keep_as_stored,
    loading_arguments,
    resolve_weights,
)

if TYPE_CHECKING:
    from merganser.models.vision import VisionProcessor

DEFAULT_INPUT = 1024
"""Tokens to which AimMerging truncates inputs."""

BACKBONES: dict[Kind, type[Backbone]] = {"seq2seq": Seq2Seq, "causal": Causal, "matcher": Matcher}


def load_backbone(options: ModelOptions, lengths: Lengths, seed: int) -> Backbone:
    """Load a pretrained model for training and inference.

    The weights are on :func:`merganser.devices.model_device`, those that are trained in fp32. LoRA factors depend on
    ``seed`` alone.
    The global random state of torch is unchanged, and nothing is printed.

    Args:
        options: which model, and which of its weights are trained.
        lengths: longest input and answer in tokens.
        seed: of the LoRA factors.

    Raises:
        InputError: the model does not exist, needs remote code, has weights only in pickle files, does not fit the
            kind or the lengths, comes with an adapter, or has no layer named as a LoRA target; an image encoder, and
            pillow is not installed; an adapter to begin with that does not fit it.
    """
    with silence_libraries(), torch.random.fork_rng(), cut_connections(_unreadable(options)):
        torch.manual_seed(seed)  # for weights that a checkpoint lacks, such as the unused pooler of an encoder
        if options.chat_template is True:
            TEMPLATES.start()  # ready when it is needed
        adapter = find_adapter(options)
        if adapter is not None:
            options = with_options_of(adapter, options)
        source = resolve_source(options)
        location = source.location
        config = _load_config(location, options)
        refuse_adapter(source)
        _check_kind(config, options)
        _check_lengths(config, options, lengths)
        tokenizer: Any
        backbone_class = BACKBONES[options.kind]
        if architecture.is_image_encoder(config):
            from merganser.models.vision import VisionMatcher

            tokenizer, settings = _load_vision_processor(location, options, config)
            backbone_class = VisionMatcher
        else:
            tokenizer, settings = _load_tokenizer(location, options)
        source.check_weights()
        of_texts = tokenizer.tokenizer if backbone_class.modality == "image" else tokenizer
        unreadable = () if of_texts is None else unreadable_tokens(of_texts, config, options.name)
        if uses_template(options, tokenizer):
            # Now: a template that cannot be used is refused before any work.
            prompt = chat_prompt(tokenizer, options.name, "a message", options.system)
            refuse_unreadable(unreadable, [prompt], options.name)

        precision = resolve_precision(options.precision)
        weights = resolve_weights(options, precision, config)
        if weights == "bf16":  # autocast computes losses in fp32, as some models do not by themselves
            precision = "bf16"
            options = options.model_copy(update={"precision": precision})

        def load_pretrained(held: Held = weights) -> nn.Module:
            with silence_libraries(), torch.random.fork_rng():
                torch.manual_seed(seed)
                model = _load_model(location, options, loading_arguments(held, precision))
            keep_as_stored(model)
            check_kernel(model, options.name)
            return model

        model: Any = load_pretrained()
        generation = copy.deepcopy(model.generation_config) if model.can_generate() else None
        if options.lora is not None:
            model = add_lora(model, options.lora, options.kind, options.name, seed)
        if adapter is not None:
            load_adapter(model, adapter)
        kept = PretrainedSettings(config, generation, settings)
        pretrained = Pretrained(source, kept, load_pretrained, unreadable, adapter)
        if weights not in QUANTISED:  # else they are there, and cannot be moved
            model = model.to(model_device())
        return backbone_class(LoadedModel(model, tokenizer, options, lengths, pretrained, weights))


def _hub_arguments(options: ModelOptions) -> dict[str, Any]:
    """Return arguments of every ``from_pretrained``: the revision, and no remote code."""
    return {"revision": options.revision or "main", "trust_remote_code": False}


def _load_config(source: str, options: ModelOptions) -> Any:
    from transformers import AutoConfig

    if options.revision is not None and Path(source).is_dir():
        raise InputError(
            f"A revision was given for the folder {options.name}.", "Omit it: only hub ids have revisions."
        )
    try:
        return AutoConfig.from_pretrained(source, **_hub_arguments(options))
    except OSError as error:
        raise mark_missing_model(_missing_model(options, error)) from error
    except (ValueError, KeyError) as error:
        if "trust_remote_code" in str(error) or "custom code" in str(error):
            raise InputError(
                f"The model {options.name} needs its own code, which is never run.",
                "Choose a model whose architecture is built into transformers.",
            ) from error
        raise InputError(
            f"The configuration of {options.name} is not supported by transformers here: {first_line(error)}",
            "Update transformers, or choose another model.",
        ) from error


def _unreadable(options: ModelOptions) -> str:
    """Return the beginning of errors of the hub."""
    return f"The model {options.name} cannot be read from the hub"


def _missing_model(options: ModelOptions, error: OSError) -> MerganserError:
    """Return the error for a model that neither the hub nor its cache has."""
    name = options.name if options.revision is None else f"{options.name} (revision {options.revision})"
    if is_offline():
        return InputError(
            f"The model {name} is neither a folder here nor in the hub's cache, and HF_HUB_OFFLINE is set.",
            "Unset HF_HUB_OFFLINE, download the model first, or give a folder.",
        )
    failure = hub_failure(error, f"The model {name} is no folder here and cannot be read from the hub")
    return failure or InputError(
        f"The model {name} is neither a folder here nor could it be read from the hub: {first_line(error)}",
        "Check the name, the network and, for a gated model, your access; or give a folder.",
    )


def _check_kind(config: Any, options: ModelOptions) -> None:
    """Refuse a kind that the architecture cannot be used as."""
    kinds = architecture.supported_kinds(config)
    if options.kind not in kinds:
        remedy = f"Use kind '{kinds[0]}'." if kinds else "Choose a model that reads text, or an image encoder."
        raise InputError(
            f"The model {options.name} is of type '{config.model_type}', which does not fit kind '{options.kind}'.",
            remedy,
        )


def resolve_lengths(options: ModelOptions, longest_input: int | None, longest_target: int) -> Lengths:
    """Return the lengths for a model; the default input is :data:`DEFAULT_INPUT` tokens, or what the model supports.

    Args:
        longest_input: in tokens; ``None``: the default.
        longest_target: in tokens.

    Raises:
        InputError: the model does not exist, or a length is below 2 tokens.
    """
    if longest_input is None:
        with silence_libraries(), cut_connections(_unreadable(options)):
            config = _load_config(resolve_source(options).location, options)
        positions = architecture.max_positions(config) or DEFAULT_INPUT
        available = positions - longest_target if options.kind == "causal" else positions
        longest_input = max(2, min(DEFAULT_INPUT, available))
    return Lengths(longest_input, longest_target)


def _check_lengths(config: Any, options: ModelOptions, lengths: Lengths) -> None:
    """Refuse lengths that exceed the model's positions (causal: input and answer together)."""
    positions = architecture.max_positions(config)
    if positions is None:
        return
    if options.kind == "causal":
        if lengths.input + lengths.target > positions:
            raise InputError(
                f"Inputs of {lengths.input} and answers of {lengths.target} tokens do not fit into the {positions} "
                f"positions of {options.name}.",
                f"Use an input length (training.max_input) of at most {positions - lengths.target}.",
            )
    elif lengths.input > positions:
        raise InputError(
            f"Inputs of {lengths.input} tokens do not fit into the {positions} positions of {options.name}.",
            f"Use an input length (training.max_input) of at most {positions}.",
        )


def _load_tokenizer(source: str, options: ModelOptions) -> tuple[Any, TokenizerSettings]:
    """Return the tokenizer, set up for a run, and its settings as in its files."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **_hub_arguments(options))
    except (OSError, ValueError, KeyError, ImportError) as error:
        failure = hub_failure(error, f"The tokenizer of {options.name} cannot be read from the hub")
        raise failure or InputError(
            f"The tokenizer of {options.name} could not be read: {first_line(error)}",
            "Save it beside the model with tokenizer.save_pretrained(folder).",
        ) from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        # Without tokenizer files transformers returns a tokenizer of the right type with an empty vocabulary.
        raise InputError(
            f"The tokenizer of {options.name} could not be read: it has no vocabulary.",
            "Save it beside the model with tokenizer.save_pretrained(folder).",
        )
    settings = TokenizerSettings.of(tokenizer)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise InputError(
                f"The tokenizer of {options.name} has neither a padding nor an end-of-text token.",
                "Set one of them in the tokenizer's configuration.",
            )
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked everywhere
    if options.kind != "matcher" and tokenizer.eos_token_id is None:
        raise InputError(
            f"The tokenizer of {options.name} has no end-of-text token, so an answer would never end.",
            "Set eos_token in the tokenizer's configuration.",
        )
    if (options.chat_template is True or options.system is not None) and not tokenizer.chat_template:
        remedy = "Use chat_template: false and no system prompt, or an instruct model."
        raise InputError(f"The tokenizer of {options.name} has no chat template.", remedy)
    tokenizer.padding_side = "right"
    tokenizer.truncation_side = "right"
    return tokenizer, settings


def _load_vision_processor(
    source: str, options: ModelOptions, config: Any
) -> tuple[VisionProcessor, TokenizerSettings | None]:
    """Return the image processor and, if there is a text encoder, its tokenizer with its settings."""
    from merganser.models.vision import VisionProcessor
    from merganser.streams.images.picture import require_pillow

    require_pillow()
    from transformers import AutoImageProcessor

    has_text_encoder = architecture.has_text_encoder(config)
    if options.pooling in (("cls", "last") if has_text_encoder else ("last",)):
        raise InputError(
            f"The model {options.name} cannot be used with pooling '{options.pooling}'.",
            "Omit pooling: the model pools by itself." if has_text_encoder else "Use pooling mean or cls.",
        )
    if options.label_prompt != "{label}" and not has_text_encoder:
        raise InputError(f"The model {options.name} has no text encoder for label_prompt.", "Omit label_prompt.")
    try:
        # Pillow's arithmetic on every machine: torchvision rounds differently.
        processor = AutoImageProcessor.from_pretrained(source, backend="pil", **_hub_arguments(options))
    except (OSError, ValueError, KeyError, ImportError) as error:
        failure = hub_failure(error, f"The image processor of {options.name} cannot be read from the hub")
        raise failure or InputError(
            f"The image processor of {options.name} could not be read: {first_line(error)}",
            "Save it beside the model with image_processor.save_pretrained(folder).",
        ) from error
    tokenizer, settings = _load_tokenizer(source, options) if has_text_encoder else (None, None)
    channels = (config.vision_config if has_text_encoder else config).num_channels
    return VisionProcessor(processor, tokenizer, channels), settings


def _load_model(source: str, options: ModelOptions, held: Mapping[str, Any]) -> nn.Module:
    """Return the pretrained model in evaluation mode; every weight in use comes from the checkpoint.

    Args:
        source: folder or hub id.
        options: of the model.
        held: arguments of :func:`merganser.models.weight_format.loading_arguments`.
    """
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    loaders = {"seq2seq": AutoModelForSeq2SeqLM, "causal": AutoModelForCausalLM, "matcher": AutoModel}
    config = _load_config(source, options)
    if options.dropout is not None:
        architecture.set_dropout(config, options.dropout)
    attention = {} if options.attention == "auto" else {"attn_implementation": options.attention}
    try:
        model, report = loaders[options.kind].from_pretrained(
            source,
            config=config,
            **attention,
            **held,
            use_safetensors=True,
            output_loading_info=True,
            **_hub_arguments(options),
        )
    except ImportError as error:
        raise InputError(
            f"model.attention: {options.attention} cannot be used here: {first_line(error)}",
            "Use model.attention: auto.",
        ) from error
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        failure = hub_failure(error, f"The weights of {options.name} cannot be read from the hub")
        raise failure or InputError(
            f"The weights of {options.name} could not be read from safetensors files: {first_line(error)}",
            "Weights in pickle files are never read; use a revision or a copy that has safetensors.",
        ) from error
    missing = sorted(name for name in report["missing_keys"] if "pooler" not in name.split("."))
    if missing:
        raise InputError(
            f"The weights of {options.name} lack {len(missing)} tensors that kind '{options.kind}' uses, first "
            f"'{missing[0]}'.",
            "Choose a checkpoint that was trained for this kind.",
        )
    for name, parameter in model.named_parameters():
        # An unused weight gets no gradient: optimizers must skip it, and distributed training must not wait for it.
        if architecture.is_unused(model, name):
            parameter.requires_grad_(False)
    return model
