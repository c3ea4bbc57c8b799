"""Predictions of a backbone on a batch, separately for the new task and for earlier tasks.

A merge that is optimised on data of the new task alone needs three things: the task's own loss, predictions
that should stay unchanged, and a vector per example through which the model's sensitivity is measured without
labels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from merganser.models.base import IGNORE_INDEX, Backbone

if TYPE_CHECKING:
    from merganser.streams.answers import AnswerSpec

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class Predictions:
    """Predictions on one batch.

    Attributes:
        loss: the model's own loss on the batch (nats).
        own_loss: the same among the new task's own labels alone; of models that write text, ``loss``.
        answers: logits that the loss reads (rows x choices).
        earlier: logits of earlier tasks' choices (rows x choices); no choices in the first task.
        seen: those and the logits of the new task's own labels; of models that write text, ``earlier``.
    """

    loss: Tensor
    own_loss: Tensor
    answers: Tensor
    earlier: Tensor
    seen: Tensor


class Predictor(ABC):
    """Predictions of one kind of backbone."""

    def __init__(self, backbone: Backbone) -> None:
        self.module = backbone.module

    @abstractmethod
    def predict(self, batch: Batch) -> Predictions:
        """Return predictions at the current weights."""

    @abstractmethod
    def represent(self, batch: Batch) -> Tensor:
        """Return one vector per example (examples x width) that does not depend on the example's answer."""


class MatcherPredictor(Predictor):
    """Earlier predictions are those over the labels seen before the task, on the inputs of the task.

    An example is represented by its unit vector.
    """

    def __init__(self, backbone: Any, earlier: Mapping[str, AnswerSpec], features: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(backbone)
        rows = [row for spec in earlier.values() for row in backbone.label_rows(spec)]
        self.rows = torch.tensor(list(dict.fromkeys(rows)), dtype=torch.long, device=backbone.device)
        label_rows = {feature["candidates"][feature["label"]] for feature in features}
        self.own_rows = torch.tensor(sorted(label_rows), dtype=torch.long, device=backbone.device)

    def predict(self, batch: Batch) -> Predictions:
        candidates = batch["candidates"]
        both = torch.cat([candidates, self.rows.expand(len(candidates), -1)], 1)
        logits = self.module(**{**batch, "candidates": both, "labels": None})["logits"]
        answers, earlier = logits[:, : candidates.shape[1]], logits[:, candidates.shape[1] :]
        loss = functional.cross_entropy(answers, batch["labels"])
        if not len(self.rows):  # first task: there are no earlier labels
            return Predictions(loss, loss, answers, earlier, earlier)
        foreign = torch.isin(candidates, self.own_rows, invert=True)
        among_own = functional.cross_entropy(answers.masked_fill(foreign, float("-inf")), batch["labels"])
        fresh = answers.masked_fill(torch.isin(candidates, self.rows), float("-inf"))
        return Predictions(loss, among_own, answers, earlier, torch.cat([fresh, earlier], 1))

    def represent(self, batch: Batch) -> Tensor:
        inputs = {key: value for key, value in batch.items() if key not in ("candidates", "labels")}
        return self.module.embed(**inputs)  # type: ignore[operator]


class CausalPredictor(Predictor):
    """Earlier predictions are those of the prompt's own tokens.

    An example is represented by the logits of the answer's first token.
    """

    def predict(self, batch: Batch) -> Predictions:
        output = self.module(**batch)
        logits, following = output["logits"][:, :-1].float(), batch["labels"][:, 1:]
        prompt = (following == IGNORE_INDEX) & (batch["attention_mask"][:, 1:] == 1)
        loss, earlier = output["loss"], logits[prompt]
        return Predictions(loss, loss, logits[following != IGNORE_INDEX], earlier, earlier)

    def represent(self, batch: Batch) -> Tensor:
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        logits = self.module(**inputs)["logits"]
        first = (batch["labels"] != IGNORE_INDEX).int().argmax(1)
        return logits[torch.arange(len(first), device=first.device), first - 1].float()


class Seq2SeqPredictor(Predictor):
    """Earlier predictions are those of the prompt's tokens when the decoder is made to read the prompt once more.

    The decoder of such a model does not read the prompt by itself, and its predictions for the answer must change with
    the new task. An example is represented by the logits of the answer's first token.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        self.longest = backbone.lengths.target

    def predict(self, batch: Batch) -> Predictions:
        output = self.module(**batch)
        prompt = batch["input_ids"][:, : self.longest]
        prompt = prompt.masked_fill(batch["attention_mask"][:, : self.longest] == 0, IGNORE_INDEX)
        again = self.module(
            encoder_outputs=(output["encoder_last_hidden_state"],),
            attention_mask=batch["attention_mask"],
            labels=prompt,
        )
        loss, earlier = output["loss"], again["logits"][prompt != IGNORE_INDEX].float()
        return Predictions(loss, loss, output["logits"][batch["labels"] != IGNORE_INDEX].float(), earlier, earlier)

    def represent(self, batch: Batch) -> Tensor:
        first = torch.zeros_like(batch["labels"][:, :1])  # only the token that opens every answer is read
        return self.module(**{**batch, "labels": first})["logits"][:, 0].float()


def predictor(
    backbone: Backbone, earlier: Mapping[str, AnswerSpec], features: Sequence[Mapping[str, Any]]
) -> Predictor:
    """Return the predictor of a backbone.

    Args:
        earlier: how the tasks learned before are answered, each by its own labels.
        features: tokenised examples of the new task; the labels that occur in them are its own.
    """
    if backbone.kind == "matcher":
        return MatcherPredictor(backbone, earlier, features)
    return CausalPredictor(backbone) if backbone.kind == "causal" else Seq2SeqPredictor(backbone)


def split_batches(examples: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Split examples, in their order, into batches of at most ``size``."""
    return [examples[start : start + size] for start in range(0, len(examples), size)]
