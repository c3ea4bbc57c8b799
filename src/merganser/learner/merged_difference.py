"""What changes where an adapter on quantised weights is merged: measured on the model that was written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from merganser.devices import model_device
from merganser.files.atomic import write_json
from merganser.learner.session import Session
from merganser.models.base import IGNORE_INDEX, Backbone, eval_mode
from merganser.models.loading import load_backbone
from merganser.models.matcher import LabelMatcher
from merganser.models.pairs import model_inputs
from merganser.models.precision import autocast
from merganser.models.weight_format import QUANTISED
from merganser.streams.task import Example, Task

TEXTS = 32
"""Texts of each task on which the two models are compared."""

RECORD = "quantisation.json"


@dataclass(frozen=True)
class MergedDifference:
    """How a merged model that was written differs from the adapter on its quantised base.

    Attributes:
        weights: how the base was held, ``8bit`` or ``4bit``.
        texts: texts of the learned tasks that both models answered.
        equal_answers: how many of them in the same way.
        largest_logit_difference: of the tokens of the correct answers (of a matcher: of the labels), absolute.
    """

    weights: str
    texts: int
    equal_answers: int
    largest_logit_difference: float

    def __str__(self) -> str:
        return (
            f"Trained on weights quantised to {self.weights}; merged into their de-quantised values. Of {self.texts} "
            f"texts, {self.equal_answers} have the same answer as with the adapter on the quantised weights; the "
            f"largest difference of a logit is {self.largest_logit_difference:.2g}."
        )


def measure_difference(session: Session, folder: Path, tasks: Mapping[str, Task]) -> MergedDifference | None:
    """Compare the model of a session with its merged copy in a folder, on test texts (else on stored ones).

    Writes :data:`RECORD`, and a section of the model card.

    Returns:
        ``None`` if the base is not quantised: the merge is exact then, up to the rounding to the type written.
    """
    backbone = session.backbone
    if backbone.weights not in QUANTISED:
        return None
    merged = _load_merged(backbone, folder, tasks)
    stored: dict[str, list[Example]] = {}
    for name, example in session.memory():
        stored.setdefault(name, []).append(example)
    texts = equal = 0
    largest = 0.0
    for name, task in tasks.items():
        examples = list(task.test or stored.get(name, ()))[:TEXTS]
        if not examples:
            continue
        spec, batch = task.spec, session.config.evaluation.batch
        answers = [model.answer([e.read for e in examples], spec, batch) for model in (backbone, merged)]
        texts += len(examples)
        equal += sum(first.text == second.text for first, second in zip(*answers, strict=True))
        for start in range(0, len(examples), batch):
            features = backbone.features(examples[start : start + batch], spec)
            quantised, plain = (_logits(model, features) for model in (backbone, merged))
            largest = max(largest, float((quantised - plain).abs().max()))
    difference = MergedDifference(backbone.weights, texts, equal, largest)
    write_json(folder / RECORD, asdict(difference))
    card = folder / "README.md"
    card.write_text(f"{card.read_text(encoding='utf-8')}\n## Quantised base\n\n{difference}\n", encoding="utf-8")
    return difference


def _load_merged(backbone: Backbone, folder: Path, tasks: Mapping[str, Task]) -> Backbone:
    options = backbone.options.model_copy(
        update={"name": str(folder), "revision": None, "lora": None, "weights": "fp32", "precision": backbone.precision}
    )
    merged = load_backbone(options, backbone.lengths, 0)
    if isinstance(backbone, LabelMatcher) and isinstance(merged, LabelMatcher):
        for task in tasks.values():  # labels are embedded by the pretrained model, which it no longer is
            merged.load_label_vectors(task.spec, backbone.label_vectors(task.spec))
    return merged


@torch.no_grad()
def _logits(backbone: Backbone, features: list[dict[str, Any]]) -> torch.Tensor:
    """Return the logits that decide the loss of a batch: those of the answers' tokens, or of a matcher's labels."""
    batch = {name: tensor.to(model_device()) for name, tensor in backbone.collate(features).items()}
    with eval_mode(backbone.module), autocast(backbone.device, backbone.precision):
        logits = backbone.module(**model_inputs(batch))["logits"].float()
    labels = batch["labels"]
    if backbone.kind == "matcher":
        return logits[logits.isfinite()]
    if backbone.kind == "causal":
        logits, labels = logits[:, :-1], labels[:, 1:]
    return logits[labels != IGNORE_INDEX]
