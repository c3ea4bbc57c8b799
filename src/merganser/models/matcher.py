"""``matcher``: an encoder whose text embedding is compared with frozen embeddings of the label texts.

No head grows with the tasks: a label is an embedding of its text, computed once by the *pretrained* encoder. So every
label can be chosen before any training, and what is learned lies in the encoder alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from merganser.errors import InputError
from merganser.models.base import IGNORED, Answer, AnswerSpec, Backbone, Feature, Lengths, evaluating, mask, pad
from merganser.models.growing import without_adapter
from merganser.models.options import ModelOptions, Pooling
from merganser.models.precision import autocast

if TYPE_CHECKING:
    from merganser.streams.task import Example


def pool(hidden: torch.Tensor, attention_mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """One unit vector per text (texts x width) from token vectors (texts x tokens x width) padded on the right.

    ``mean`` averages the tokens that are not padding, ``cls`` takes the first token, ``last`` the last real one.
    """
    hidden = hidden.float()
    if pooling == "mean":
        weights = attention_mask.unsqueeze(-1).float()
        pooled = (hidden * weights).sum(1) / weights.sum(1)
    elif pooling == "cls":
        pooled = hidden[:, 0]
    else:
        pooled = hidden[torch.arange(len(hidden), device=hidden.device), attention_mask.sum(1) - 1]
    return functional.normalize(pooled, dim=-1)


class MatcherModule(nn.Module):
    """Encoder, pooling and comparison with the label bank.

    ``bank`` (labels x width, unit rows) is a buffer outside the state dict: it is no trained weight, and it can always
    be computed again from the pretrained encoder.
    """

    bank: torch.Tensor

    def __init__(self, encoder: Any, pooling: Pooling, temperature: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling
        self.temperature = temperature
        self.register_buffer("bank", torch.zeros(0, encoder.config.hidden_size), persistent=False)

    def embed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Unit vectors (texts x width) in fp32."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return pool(hidden, attention_mask, self.pooling)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        candidates: torch.Tensor,
        labels: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Scores of each text's candidates and, with ``labels``, the loss.

        Args:
            input_ids, attention_mask: texts x tokens, padded on the right.
            candidates: texts x most candidates; rows of ``bank``, filled with -100.
            labels: for each text the position of its label in its row of ``candidates``.

        Returns:
            ``logits`` (texts x most candidates): cosine / temperature, -inf where filled; ``loss``: mean cross entropy
            of the labels among their candidates, in nats.
        """
        embedding = self.embed(input_ids, attention_mask)
        with torch.autocast(embedding.device.type, enabled=False):
            # Small differences of cosines are divided by a small temperature: fp32, even in mixed precision.
            logits = self._cosines(embedding, candidates.clamp(min=0)) / self.temperature
            logits = logits.masked_fill(candidates == IGNORED, float("-inf"))
            if labels is None:
                return {"logits": logits}
            return {"loss": functional.cross_entropy(logits, labels), "logits": logits}

    def _cosines(self, embedding: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Products of each text's vector with its own rows of the bank (texts x candidates).

        Never with the whole bank: how a product rounds depends on the shape of the matrices, and a run that was
        interrupted has met fewer labels than one that was not.
        """
        if bool((rows == rows[0]).all()):
            return embedding @ self.bank[rows[0]].T
        return torch.bmm(self.bank[rows], embedding.unsqueeze(-1)).squeeze(-1)


class Matcher(Backbone):
    """Backbone of kind ``matcher``.

    ``options.pooling`` and ``options.temperature`` shape the comparison; ``options.candidates`` is for the caller, who
    puts either the task's labels or all labels seen so far into the spec.
    """

    kind = "matcher"

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        options: ModelOptions,
        lengths: Lengths,
        pristine: Callable[[], nn.Module],
    ) -> None:
        super().__init__(model, tokenizer, options, lengths, pristine)
        self._module = MatcherModule(model, options.pooling, options.temperature).to(self.device)
        self._rows: dict[str, int] = {}

    @property
    def module(self) -> MatcherModule:
        return self._module

    def features(self, examples: Sequence[Example], spec: AnswerSpec) -> list[Feature]:
        labels = spec.require_labels("A matcher")
        candidates = self.label_rows(spec)
        position = {label: i for i, label in enumerate(labels)}
        for example in examples:
            spec.check_output(example.output)
        return [
            {"input_ids": ids, "candidates": candidates, "label": position[example.output], "length": len(ids)}
            for ids, example in zip(self._encode([example.input for example in examples]), examples, strict=True)
        ]

    def collate(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        rows = [feature["input_ids"] for feature in features]
        return {
            "input_ids": pad(rows, self.tokenizer.pad_token_id, limit=self.lengths.input),
            "attention_mask": mask(rows, limit=self.lengths.input),
            "candidates": pad([feature["candidates"] for feature in features], IGNORED),
            "labels": torch.tensor([feature["label"] for feature in features], dtype=torch.long),
        }

    def label_vectors(self, spec: AnswerSpec) -> torch.Tensor:
        """The frozen unit vectors of the spec's labels (labels x width), fp32."""
        rows = self.label_rows(spec)  # may extend the bank
        return self.module.bank[rows]

    def candidate_rows(self, spec: AnswerSpec) -> list[int]:
        """The rows of ``module.bank`` that hold the vectors of the spec's labels."""
        return self._rows_of(spec)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        return self.tokenizer(list(texts), truncation=True, max_length=self.lengths.input)["input_ids"]

    def _answer_batch(self, ids: list[list[int]], spec: AnswerSpec) -> list[Answer]:
        labels = spec.require_labels("A matcher")
        candidates = torch.tensor([self.label_rows(spec)] * len(ids), dtype=torch.long)
        device = self.device
        read = pad(ids, self.tokenizer.pad_token_id, limit=self.lengths.input)
        seen = mask(ids, limit=self.lengths.input)
        logits = self.module(read.to(device), seen.to(device), candidates.to(device))["logits"]
        best = logits.softmax(-1).max(-1)
        return [Answer(labels[i], score) for score, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]

    def label_rows(self, spec: AnswerSpec) -> list[int]:
        """Rows of the bank for the spec's labels; texts that are not in it yet are embedded first.

        Raises:
            InputError: no labels, or two of them with the same text.
        """
        labels = spec.require_labels("A matcher")
        texts = [spec.text_of(label) for label in labels]
        if len(set(texts)) != len(texts):
            i = next(i for i, text in enumerate(texts) if text in texts[:i])
            raise InputError(
                f"The labels '{labels[texts.index(texts[i])]}' and '{labels[i]}' have the same text '{texts[i]}'.",
                "A matcher tells labels apart by their texts: give each its own in label_texts.",
            )
        new = [text for text in texts if text not in self._rows]
        if new:
            vectors = self._embed_pretrained(new)
            self.module.bank = torch.cat([self.module.bank, vectors.to(self.module.bank)])
            for text in new:
                self._rows[text] = len(self._rows)
        return [self._rows[text] for text in texts]

    def _embed_pretrained(self, texts: list[str]) -> torch.Tensor:
        """Unit vectors of ``texts`` (texts x width) by the encoder as it was before any training.

        One text at a time and in fp32, so that a label's vector never depends on which labels came with it, on the
        batch or on the machine's precision.
        """
        context: contextlib.AbstractContextManager[None]
        if self.options.lora is not None:
            encoder, context = self.model, without_adapter(self.model)
        else:
            # The weights themselves have moved; the pretrained ones are read again and dropped afterwards.
            encoder, context = self._pristine().to(self.device), contextlib.nullcontext()
        vectors = []
        with context, evaluating(encoder), torch.no_grad(), autocast(self.device, "fp32"):
            for ids in self._encode(texts):
                row = torch.tensor([ids], device=self.device)
                ones = torch.ones_like(row)
                hidden = encoder(input_ids=row, attention_mask=ones).last_hidden_state
                vectors.append(pool(hidden, ones, self.options.pooling))
        return torch.cat(vectors)
