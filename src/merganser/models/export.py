"""Export to a folder that transformers and PEFT load."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from merganser.errors import InputError
from merganser.models import weight_files
from merganser.models.base import Backbone
from merganser.models.base_reference import BaseReference, base_reference
from merganser.models.causal import Causal
from merganser.models.gguf_export import Converter, GgufOptions, find_converter
from merganser.models.matcher import LabelMatcher, Matcher
from merganser.models.merged import merge_adapter, stored_types
from merganser.models.model_card import LABEL_VECTORS, LABELS, model_card
from merganser.models.modelfile import MODELFILE, modelfile, weights_lines
from merganser.models.sentence_encoder import write_sentence_encoder
from merganser.models.weight_format import QUANTISED, dequantised
from merganser.runs.card import CARD, History
from merganser.streams.answers import AnswerSpec


@dataclass(frozen=True)
class Destination:
    """Where an export goes, and what is needed there.

    Attributes:
        base_model: ``ID`` or ``ID@REVISION`` of the pretrained model on the hub, if it was read from elsewhere.
        gguf: write a GGUF file, too.
        name: of the exported model, for files that hold one.
        history: the records of the run, for the model card.
    """

    base_model: str | None = None
    gguf: GgufOptions | None = None
    name: str = "model"
    history: History | None = None


ANYWHERE = Destination()
"""Any place where transformers and PEFT are."""


def check_destination(backbone: Backbone, to: Destination, merged: bool) -> tuple[BaseReference, Converter | None]:
    """Return the name of the pretrained model for others, and the converter of a GGUF file that was asked for.

    Raises:
        InputError: a hub id or a type that is none, or the converter is not found.
    """
    base = base_reference(backbone.pretrained_from, to.base_model)
    if to.gguf is None:
        return base, None
    if backbone.modality == "image":
        raise InputError("llama.cpp has no models of images alone.", "Export without --gguf.")
    return base, find_converter(to.gguf, merged or backbone.options.lora is None)


def export_model(
    backbone: Backbone,
    folder: Path,
    specs: Mapping[str, AnswerSpec],
    merged: bool,
    dtype: str | None = None,
    to: Destination = ANYWHERE,
) -> None:
    """Write a folder that plain transformers (and PEFT, unless ``merged``) loads and that gives the same answers.

    Configuration, generation settings and tokenizer are those of the pretrained model; settings of the run (dropout,
    lengths, decoding) are in the model card's code only. A text encoder gets the files that sentence-transformers
    reads, a decoder a ``Modelfile``.

    Args:
        folder: created if it does not exist.
        specs: how each learned task is answered, by name; goes into the model card and ``labels.json``.
        merged: write the whole model with the LoRA update added to its weights; always so without LoRA.
        dtype: number format of the weights, a key of :data:`merganser.models.pretrained.DTYPES`. ``None``: of a whole
            model that of the pretrained one, of an adapter fp32.
        to: where it goes.

    Raises:
        InputError: a weight is too large for ``dtype``, or the model cannot be merged (:func:`merge_adapter`).
        RunError: a merged weight is not finite, or the conversion to GGUF fails.
    """
    base, converter = check_destination(backbone, to, merged)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pretrained = backbone.pretrained_from
    whole = merged or backbone.options.lora is None
    if whole:
        model = backbone.model if backbone.options.lora is None else _merged(backbone)
        pretrained.settings.save_model(model, folder, stored_types(model, pretrained.source, dtype))
    else:
        weight_files.save_adapter(backbone.model, folder, dtype, base)
        pretrained.settings.save_generation(folder)
    pretrained.settings.save_tokenizer(backbone.tokenizer, folder)
    _write_labels(backbone, folder, specs)
    if isinstance(backbone, Matcher):
        write_sentence_encoder(backbone, folder)
    gguf = None if converter is None else converter.file_name
    if isinstance(backbone, Causal):
        _write(folder / MODELFILE, modelfile(backbone, weights_lines(whole, gguf, base)))
    if converter is not None:
        converter.convert(folder, to.name, None if whole else pretrained.source.folder())
    _write(folder / CARD, model_card(backbone, specs, whole, base, to.history, to.name))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _merged(backbone: Backbone) -> Any:
    """Return the model with its adapter merged; of quantised weights, into their de-quantised values."""
    if backbone.weights not in QUANTISED:
        return merge_adapter(backbone.model)
    return merge_adapter(dequantised(backbone.model, backbone.pretrained_from.load("fp32")), in_place=True)


def _write_labels(backbone: Backbone, folder: Path, specs: Mapping[str, AnswerSpec]) -> None:
    """Write ``labels.json``, how each task is answered; for a matcher also the label vectors, one tensor per task."""
    content: dict[str, Any] = {
        "max_length": backbone.lengths.input,
        "tasks": {name: _task_labels(backbone, spec) for name, spec in specs.items()},
    }
    if isinstance(backbone, LabelMatcher):
        content |= {"pooling": backbone.options.pooling, "temperature": backbone.options.temperature}
        if backbone.modality == "image":
            del content["max_length"]
        vectors = {name: backbone.label_vectors(spec).cpu().contiguous() for name, spec in specs.items()}
        save_file(vectors, folder / LABEL_VECTORS)
    _write(folder / LABELS, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _task_labels(backbone: Backbone, spec: AnswerSpec) -> dict[str, Any]:
    """Return one task's entry of ``labels.json``."""
    entry: dict[str, Any] = {"mode": "rank" if backbone.kind == "matcher" else spec.mode}
    if spec.labels is None:
        return entry
    entry["labels"] = list(spec.labels)
    if isinstance(backbone, LabelMatcher):
        entry["texts"] = [backbone.label_text(spec.text_of(label)) for label in spec.labels]
    elif isinstance(backbone, Causal) and spec.mode == "rank":
        entry["token_ids"] = [backbone.answer_ids(label, False) for label in spec.labels]
        entry["token_ids_after_break"] = [backbone.answer_ids(label, True) for label in spec.labels]
    return entry
