"""Models in GGUF files: de-quantised to fp32 once, and cached as an ordinary model folder."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import torch

from merganser.errors import InputError, first_line, mark_missing_model
from merganser.files.cache import cache_folder, fill_once
from merganser.files.digests import file_digest
from merganser.files.temporary_folder import temporary_folder
from merganser.models.library_output import silence_libraries


def convert_gguf(file: Path) -> Path:
    """Return a folder with the file's model (safetensors, fp32) and tokenizer.

    The first call converts, which takes about 20 seconds per 100 million weights; later calls with a file of the same
    content (SHA-256) return the cached folder.

    Raises:
        InputError: no such file, the ``gguf`` package is missing, a file that transformers cannot read, or a cache that
            cannot be written.
    """
    if not file.is_file():
        error = InputError(f"The model {file} does not exist.", "Give a .gguf file, a folder or a hub id.")
        raise mark_missing_model(error)
    return fill_once(cache_folder("gguf") / file_digest(file), lambda folder: _convert(file, folder))


def _convert(file: Path, folder: Path) -> None:
    model, tokenizer = read_gguf(file)
    with silence_libraries():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def read_gguf(file: Path) -> tuple[Any, Any]:
    """Return the file's model as a plain transformers model in fp32, and its tokenizer.

    transformers records the quantisation in the configuration and then refuses to save the model; so the de-quantised
    weights are copied into a model made from the configuration without that record.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
    from transformers.utils import is_gguf_available

    if not is_gguf_available():
        raise InputError(f"Reading {file} needs the package gguf.", "Install it: pip install 'merganser[gguf]'.")
    # The reader writes its progress bars straight to the standard error stream.
    with silence_libraries(), contextlib.redirect_stderr(io.StringIO()), temporary_folder() as alone:
        # Beside other files transformers would load an adapter, or another model's settings, with it.
        (alone / file.name).symlink_to(file.resolve())
        arguments: dict[str, Any] = {"gguf_file": file.name, "trust_remote_code": False}
        try:
            config = AutoConfig.from_pretrained(alone, **arguments)
            loader = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
            loaded = loader.from_pretrained(alone, dtype=torch.float32, **arguments)
            tokenizer = AutoTokenizer.from_pretrained(alone, **arguments)
        except Exception as error:  # the reader has no error of its own, and a damaged file can raise any
            raise InputError(
                f"The file {file} could not be read as a GGUF model: {type(error).__name__}: {first_line(error)}",
                "Download it again, or use a folder as saved by transformers.",
            ) from error
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with silence_libraries():
        plain = loader.from_config(config)
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    return plain.eval(), tokenizer
