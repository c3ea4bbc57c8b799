"""What a pretrained model brought along, as it was before a run's options: its saved copies get it back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from merganser.errors import InputError
from merganser.models.library_output import silence_libraries
from merganser.models.source import ModelSource

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""Number formats that a model can be written in."""


@dataclass(frozen=True)
class TokenizerSettings:
    """The settings of a tokenizer that a run changes.

    Attributes:
        attributes: of the tokenizer itself, such as its padding side.
        truncation, padding: of the tokenizer beneath, which writes them into ``tokenizer.json``.
    """

    attributes: Mapping[str, Any]
    truncation: Mapping[str, Any] | None
    padding: Mapping[str, Any] | None

    @classmethod
    def of(cls, tokenizer: Any) -> TokenizerSettings:
        """Return the settings of a tokenizer that was just read."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        names = ("padding_side", "truncation_side", "pad_token")
        return cls(
            {name: getattr(tokenizer, name) for name in names},
            getattr(backend, "truncation", None),
            getattr(backend, "padding", None),
        )

    @contextmanager
    def restored(self, tokenizer: Any) -> Iterator[None]:
        """Give the settings back to the tokenizer inside, and those of the run afterwards."""
        current = TokenizerSettings.of(tokenizer)
        self._apply(tokenizer)
        try:
            yield
        finally:
            current._apply(tokenizer)

    def _apply(self, tokenizer: Any) -> None:
        for name, value in self.attributes.items():
            setattr(tokenizer, name, value)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            return
        if self.truncation is None:
            backend.no_truncation()
        else:
            backend.enable_truncation(**self.truncation)
        if self.padding is None:
            backend.no_padding()
        else:
            backend.enable_padding(**self.padding)


@dataclass(frozen=True)
class PretrainedSettings:
    """Settings of a pretrained model as in its files.

    Attributes:
        config: its configuration, without the run's dropout.
        generation: its generation settings; ``None`` for a model that does not generate.
        tokenizer: those of its tokenizer; ``None`` without one.
    """

    config: Any
    generation: Any | None
    tokenizer: TokenizerSettings | None

    def save_tokenizer(self, tokenizer: Any, folder: Path) -> None:
        """Write a tokenizer (or an image processor with one) as it was read."""
        with silence_libraries():
            if self.tokenizer is None:
                tokenizer.save_pretrained(folder)
                return
            of_texts = tokenizer.tokenizer if hasattr(tokenizer, "pixel_values") else tokenizer
            with self.tokenizer.restored(of_texts):
                tokenizer.save_pretrained(folder)

    def save_generation(self, folder: Path) -> None:
        """Write ``generation_config.json`` if the model generates."""
        if self.generation is not None:
            # Not save_pretrained, which refuses some settings that published models have.
            self.generation.to_json_file(folder / "generation_config.json", use_diff=True)

    def save_model(self, model: Any, folder: Path, dtypes: Mapping[str, torch.dtype] | None = None) -> None:
        """Write a whole model with the configuration and the generation settings that it was read with.

        Args:
            model: a transformers model; its weights are written.
            folder: an existing folder.
            dtypes: the type of each tensor; ``None``: as it is in memory.

        Raises:
            InputError: a weight that is too large for its type.
        """
        tensors = None if dtypes is None else cast(model.state_dict(), dtypes)
        config = copy.deepcopy(self.config)
        config.architectures = [type(model).__name__]
        vars(config).pop("transformers_weights", None)  # the name of a file of the pretrained model
        config.dtype = _most(model.state_dict() if tensors is None else tensors)
        _copy_tying(model.config, config)
        with silence_libraries():
            model.save_pretrained(folder, state_dict=tensors)
        config.to_json_file(folder / "config.json", use_diff=True)
        self.save_generation(folder)


@dataclass(frozen=True)
class Pretrained:
    """Where a backbone comes from.

    Attributes:
        source: the files of the pretrained model.
        settings: what it brought along beside its weights.
        load: loads another copy of it, held as the model or in another way (``load("fp32")``).
        unreadable: tokens of its tokenizer that it has no embedding for.
        adapter: folder of the adapter that the run began with.
    """

    source: ModelSource
    settings: PretrainedSettings
    load: Callable[..., nn.Module]
    unreadable: tuple[str, ...] = ()
    adapter: Path | None = None


def cast(tensors: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]) -> dict[str, Tensor]:
    """Return the tensors in other types; names that share memory still do, and integers stay.

    Raises:
        InputError: a value that is finite and too large for its type.
    """
    done: dict[tuple[int, torch.Size, torch.dtype], Tensor] = {}
    result = {}
    for name, tensor in tensors.items():
        dtype = dtypes[name] if tensor.is_floating_point() else tensor.dtype
        key = (tensor.data_ptr(), tensor.shape, dtype)
        if key not in done:
            done[key] = tensor.to(dtype)
            if dtype.itemsize < tensor.dtype.itemsize and bool((done[key].isinf() & tensor.isfinite()).any()):
                kind = str(dtype).removeprefix("torch.")
                wider = "bfloat16 or float32" if dtype == torch.float16 else "float32"
                raise InputError(f"The weight '{name}' is too large for {kind}.", f"Choose {wider} (--dtype).")
        result[name] = done[key]
    return result


def _copy_tying(source: Any, target: Any) -> None:
    """Note in ``target``, the configuration of a model's files, if the model in memory was untied."""
    for untied, config in ((source, target), (source.get_text_config(), target.get_text_config())):
        if getattr(config, "tie_word_embeddings", False) and not getattr(untied, "tie_word_embeddings", False):
            config.tie_word_embeddings = False


def _most(tensors: Mapping[str, Tensor]) -> str:
    """Return the name of the type that most floating-point numbers of a model have."""
    sizes: dict[torch.dtype, int] = {}
    for tensor in tensors.values():
        if tensor.is_floating_point():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.numel()
    return str(max(sizes, key=lambda dtype: sizes[dtype])).removeprefix("torch.")
