"""Export to a folder that transformers and PEFT load."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from merganser.errors import RunError
from merganser.models import weight_files
from merganser.models.base import Backbone
from merganser.models.causal import Causal
from merganser.models.library_output import silence_libraries
from merganser.models.matcher import LabelMatcher
from merganser.models.model_card import LABEL_VECTORS, LABELS, model_card
from merganser.streams.answers import AnswerSpec

CARD = "README.md"


def export_model(backbone: Backbone, folder: Path, specs: Mapping[str, AnswerSpec], merged: bool) -> None:
    """Write a folder that plain transformers (and PEFT, unless ``merged``) loads and that gives the same answers.

    Args:
        folder: created if it does not exist.
        specs: how each learned task is answered, by name; goes into the model card and ``labels.json``.
        merged: write the whole model with the LoRA update added to its weights; always so without LoRA.

    Raises:
        RunError: a merged weight is not finite.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    whole = merged or backbone.options.lora is None
    if whole:
        model = backbone.model if backbone.options.lora is None else merge_adapter(backbone.model)
        weight_files.save_model(model, backbone.tokenizer, folder)
    else:
        weight_files.save_adapter(backbone.model, folder)
        with silence_libraries():
            backbone.tokenizer.save_pretrained(folder)
            if backbone.kind != "matcher":
                backbone.model.generation_config.save_pretrained(folder)  # type: ignore[union-attr, operator]
    _write_labels(backbone, folder, specs)
    (folder / CARD).write_text(model_card(backbone, specs, whole), encoding="utf-8")


def merge_adapter(model: Any) -> Any:
    """Return a copy of the model with ``W + (alpha / r) B A`` in place of ``W``; the model itself is unchanged.

    Raises:
        RunError: a merged weight is not finite.
    """
    try:
        return copy.deepcopy(model).merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise RunError(f"The merged weights are not finite: {error}", "Undo the last task, then export.") from error


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
    (folder / LABELS).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


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
