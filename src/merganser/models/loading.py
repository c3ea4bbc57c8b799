"""From a name to a backbone: hub id, folder or .gguf file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merganser.errors import InputError
from merganser.models.base import Backbone, Lengths, Loaded
from merganser.models.options import Kind, ModelOptions
from merganser.models.quiet import quiet

if TYPE_CHECKING:
    from torch import nn

PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
"""Weight files that run code when they are read."""


DEFAULT_INPUT = 1024
"""Tokens at which AimMerging cuts inputs."""


def load_backbone(options: ModelOptions, lengths: Lengths, seed: int) -> Backbone:
    """Reads a pretrained model and makes it ready to be trained and asked.

    The weights are fp32 and on the first CUDA device (of this process) or the processor. LoRA factors are drawn from
    ``seed`` alone. The global random state of torch is left as it was, and nothing is printed.

    Args:
        options: which model and what is trained.
        lengths: longest input and answer in tokens.
        seed: of the LoRA factors.

    Raises:
        InputError: the model is not there, needs code of its own, has weights only in pickle files, does not fit the
            kind or the lengths, or has no layer named as a LoRA target.
    """
    import torch

    from merganser.models.architecture import reads_images
    from merganser.models.causal import Causal
    from merganser.models.lora import add_lora
    from merganser.models.matcher import Matcher
    from merganser.models.seq2seq import Seq2Seq
    from merganser.models.vision import VisionMatcher

    with quiet(), torch.random.fork_rng():
        torch.manual_seed(seed)  # for weights that a checkpoint leaves to chance, as the unread pooler of an encoder
        source = _locate(options.name)
        config = _config(source, options)
        _check_kind(config, options)
        _check_lengths(config, options, lengths)
        images = reads_images(config)
        tokenizer = _image_reader(source, options, config) if images else _tokenizer(source, options)

        def load_pretrained() -> nn.Module:
            with quiet(), torch.random.fork_rng():
                torch.manual_seed(seed)
                return _model(source, options)

        model: Any = _model(source, options)
        if options.lora is not None:
            model = add_lora(model, options.lora, options.kind, options.name, seed)
        classes: dict[Kind, Callable[[Loaded], Backbone]] = {"seq2seq": Seq2Seq, "causal": Causal, "matcher": Matcher}
        make = VisionMatcher if images else classes[options.kind]
        return make(Loaded(model.to(_device()), tokenizer, options, lengths, load_pretrained))


def _device() -> str:
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def _locate(name: str) -> str:
    """The folder or hub id to read from; a .gguf file is converted to a folder first."""
    path = Path(name).expanduser()
    if name.lower().endswith(".gguf"):
        from merganser.models.gguf_file import converted

        return str(converted(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(
                f"The folder {name} holds no model: it has no config.json.", "Give a folder as saved by transformers."
            )
        _refuse_pickles(path, name)
        return str(path)
    looks_like_path = name.startswith((".", "~", os.sep)) or name.count("/") > 1 or "\\" in name
    if path.exists() or looks_like_path:
        what = "is not a folder" if path.exists() else "does not exist"
        raise InputError(
            f"The model {name} {what}.", "Give a folder as saved by transformers, a .gguf file or a hub id."
        )
    return name


def _refuse_pickles(folder: Path, name: str) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickled = [file for file in PICKLED if (folder / file).is_file()]
    if pickled:
        raise InputError(
            f"The model {name} has its weights only in {pickled[0]}, a pickle file, which can run code when read.",
            "Save it again as safetensors: model.save_pretrained(folder) in an environment where you trust the file.",
        )
    raise InputError(f"The folder {name} holds no weights (*.safetensors).", "Give a folder as saved by transformers.")


def _origin(options: ModelOptions) -> dict[str, Any]:
    """Arguments of every ``from_pretrained``: never run a repository's code."""
    return {"revision": options.revision or "main", "trust_remote_code": False}


def _config(source: str, options: ModelOptions) -> Any:
    from transformers import AutoConfig

    if options.revision is not None and Path(source).is_dir():
        raise InputError(f"A revision was given for the folder {options.name}.", "Leave it out; it is for hub ids.")
    try:
        return AutoConfig.from_pretrained(source, **_origin(options))
    except OSError as error:
        raise _not_there(options, error) from error
    except (ValueError, KeyError) as error:
        if "trust_remote_code" in str(error) or "custom code" in str(error):
            raise InputError(
                f"The model {options.name} brings code of its own, which is never run.",
                "Choose a model whose architecture transformers has built in.",
            ) from error
        raise InputError(
            f"The model {options.name} has a configuration that transformers does not know: {_first_line(error)}",
            "Update transformers, or choose another model.",
        ) from error


def _not_there(options: ModelOptions, error: OSError) -> InputError:
    """The cause and remedy when the hub (or its cache) does not have a model."""
    from huggingface_hub import constants

    name = options.name if options.revision is None else f"{options.name} (revision {options.revision})"
    if constants.HF_HUB_OFFLINE:
        return InputError(
            f"The model {name} is neither a folder here nor in the hub's cache, and the hub is switched off.",
            "Unset HF_HUB_OFFLINE, download the model first, or give a folder.",
        )
    return InputError(
        f"The model {name} is neither a folder here nor could it be read from the hub: {_first_line(error)}",
        "Check the name, the network and, for a gated model, your access; or give a folder.",
    )


def _check_kind(config: Any, options: ModelOptions) -> None:
    """InputError unless the architecture can do what ``kind`` asks."""
    fitting = fitting_kinds(config)
    if options.kind not in fitting:
        remedy = f"Use kind '{fitting[0]}'." if fitting else "Choose a model that reads text, or an image encoder."
        raise InputError(
            f"The model {options.name} is of type '{config.model_type}', which does not fit kind '{options.kind}'.",
            remedy,
        )


def fitting_kinds(config: Any) -> list[Kind]:
    """The kinds an architecture can be used as, the most natural one first.

    Encoder-decoders: seq2seq. Decoders: causal, and matcher (as text embedders). Encoders: matcher, although
    transformers would also dress some of them as decoders with an untrained head. Image encoders: matcher.
    """
    from merganser.models.architecture import reads_images

    if reads_images(config):
        return ["matcher"]
    from transformers.models.auto import modeling_auto as auto

    kind = config.model_type
    if config.is_encoder_decoder:
        return ["seq2seq"] if kind in auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES else []
    is_encoder = kind in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    kinds: list[Kind] = []
    if kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not is_encoder:
        kinds.append("causal")
    if kind in auto.MODEL_MAPPING_NAMES and hasattr(config, "vocab_size") and hasattr(config, "hidden_size"):
        kinds.append("matcher")
    return kinds


def _positions(config: Any) -> int | None:
    """Longest text the model has positions for; ``None`` for relative positions, as T5 has them."""
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return None
    if config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer"):
        positions -= config.pad_token_id + 1  # these count positions from behind the padding token
    return positions


def fitting_lengths(options: ModelOptions, longest_input: int | None, longest_target: int) -> Lengths:
    """Lengths for a model: as asked, or inputs of :data:`DEFAULT_INPUT` tokens where the model has the positions.

    Args:
        longest_input: in tokens; ``None``: the default, or what fits.
        longest_target: in tokens.

    Raises:
        InputError: the model is not there, or no length fits.
    """
    if longest_input is None:
        with quiet():
            positions = _positions(_config(_locate(options.name), options)) or DEFAULT_INPUT
        room = positions - longest_target if options.kind == "causal" else positions
        longest_input = max(2, min(DEFAULT_INPUT, room))
    return Lengths(longest_input, longest_target)


def _check_lengths(config: Any, options: ModelOptions, lengths: Lengths) -> None:
    """InputError when the model has fewer positions than a text (causal: text and answer) may take."""
    positions = _positions(config)
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


def _tokenizer(source: str, options: ModelOptions) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **_origin(options))
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise InputError(
            f"The tokenizer of {options.name} could not be read: {_first_line(error)}",
            "Save it beside the model with tokenizer.save_pretrained(folder).",
        ) from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        # Without tokenizer files transformers builds a tokenizer of the right type that knows no word.
        raise InputError(
            f"The tokenizer of {options.name} could not be read: it has no vocabulary.",
            "Save it beside the model with tokenizer.save_pretrained(folder).",
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise InputError(
                f"The tokenizer of {options.name} has neither a padding nor an end-of-text token.",
                "Set one of them in the tokenizer's configuration.",
            )
        tokenizer.pad_token = tokenizer.eos_token  # never seen by the model: padding is masked everywhere
    if options.kind != "matcher" and tokenizer.eos_token_id is None:
        raise InputError(
            f"The tokenizer of {options.name} has no end-of-text token, so an answer would never end.",
            "Set eos_token in the tokenizer's configuration.",
        )
    if options.chat_template and not tokenizer.chat_template:
        raise InputError(
            f"The tokenizer of {options.name} has no chat template.", "Use chat_template: false, or an instruct model."
        )
    tokenizer.padding_side = "right"
    tokenizer.truncation_side = "right"
    return tokenizer


def _image_reader(source: str, options: ModelOptions, config: Any) -> Any:
    """The image processor and, where there is a text encoder, the tokenizer."""
    from transformers import AutoImageProcessor

    from merganser.models.architecture import has_text_encoder
    from merganser.models.vision import ImageReader

    paired = has_text_encoder(config)
    wrong = ["last"] if not paired else ["cls", "last"]
    if options.pooling in wrong:
        raise InputError(
            f"The model {options.name} cannot be read with pooling '{options.pooling}'.",
            "Leave pooling out: the model has its own way." if paired else "Use pooling mean or cls.",
        )
    if options.label_prompt != "{label}" and not paired:
        raise InputError(f"The model {options.name} has no text encoder that could read label_prompt.", "Leave it out.")
    try:
        # Pillow's arithmetic wherever the run goes on: the one with torchvision rounds differently.
        processor = AutoImageProcessor.from_pretrained(source, backend="pil", **_origin(options))
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise InputError(
            f"The image processor of {options.name} could not be read: {_first_line(error)}",
            "Save it beside the model with image_processor.save_pretrained(folder).",
        ) from error
    vision = config.vision_config if paired else config
    return ImageReader(processor, _tokenizer(source, options) if paired else None, vision.num_channels)


def _set_dropout(config: Any, dropout: float) -> None:
    """Every dropout that a configuration names (``hidden_dropout_prob``, ``resid_pdrop``, ...), also of its parts."""
    for part in ("vision_config", "text_config"):
        if hasattr(config, part):
            _set_dropout(getattr(config, part), dropout)
    for key, value in list(vars(config).items()):
        if isinstance(value, float) and ("dropout" in key or key.endswith("_pdrop")):
            setattr(config, key, dropout)


def _model(source: str, options: ModelOptions) -> nn.Module:
    """The pretrained model in evaluation mode, fp32, every weight that is read taken from the checkpoint."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    from merganser.models.architecture import is_unread

    loaders = {"seq2seq": AutoModelForSeq2SeqLM, "causal": AutoModelForCausalLM, "matcher": AutoModel}
    config = _config(source, options)
    if options.dropout is not None:
        _set_dropout(config, options.dropout)
    attention = {} if options.attention == "auto" else {"attn_implementation": options.attention}
    try:
        model, report = loaders[options.kind].from_pretrained(
            source,
            config=config,
            **attention,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            **_origin(options),
        )
    except ImportError as error:
        raise InputError(
            f"model.attention: {options.attention} cannot be used here: {_first_line(error)}",
            "Use model.attention: auto.",
        ) from error
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"The weights of {options.name} could not be read from safetensors files: {_first_line(error)}",
            "Weights in pickle files are never read; use a revision or a copy that has safetensors.",
        ) from error
    missing = sorted(name for name in report["missing_keys"] if "pooler" not in name.split("."))
    if missing:
        raise InputError(
            f"The weights of {options.name} lack {len(missing)} tensors that kind '{options.kind}' reads, first "
            f"'{missing[0]}'.",
            "Choose a checkpoint that was trained for this kind.",
        )
    for name, parameter in model.named_parameters():
        # What no kind reads gets no gradient; an optimizer must not carry it, nor distributed training wait for it.
        if is_unread(model, name):
            parameter.requires_grad_(False)
    return model


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0].strip() if str(error).strip() else type(error).__name__
