"""``matcher``: an encoder whose text embedding is compared with frozen embeddings of the label texts.

No head grows with the tasks: a label is an embedding of its text, computed once by the *pretrained* encoder. So every
label can be chosen before any training, and what is learned lies in the encoder alone. Images are matched in
:mod:`merganser.models.vision`.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from merganser.errors import InputError
from merganser.models.base import IGNORED, Answer, AnswerSpec, Backbone, Feature, Loaded, evaluating, mask, pad
from merganser.models.options import Pooling
from merganser.models.precision import autocast
from merganser.models.stacking import without_adapter

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


class LabelBank(nn.Module):
    """An encoder, and the comparison of its unit vectors with those of the labels.

    ``bank`` (labels x width, unit rows) is a buffer outside the state dict: it is no trained weight.
    """

    bank: torch.Tensor

    def __init__(self, encoder: Any, temperature: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.temperature = temperature
        self.register_buffer("bank", torch.zeros(0, 0), persistent=False)

    def extend(self, vectors: torch.Tensor) -> None:
        """Add unit vectors (labels x width) to the bank."""
        vectors = vectors.to(self.bank)
        self.bank = torch.cat([self.bank, vectors]) if len(self.bank) else vectors

    def compare(
        self, embedding: torch.Tensor, candidates: torch.Tensor, labels: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """Scores of each example's candidates and, with ``labels``, the loss.

        Args:
            embedding: unit vectors (examples x width), fp32.
            candidates: examples x most candidates; rows of ``bank``, filled with -100.
            labels: for each example the position of its label in its row of ``candidates``.

        Returns:
            ``logits`` (examples x most candidates): cosine / temperature, -inf where filled; ``loss``: mean cross
            entropy of the labels among their candidates, in nats.
        """
        with torch.autocast(embedding.device.type, enabled=False):
            # Small differences of cosines are divided by a small temperature: fp32, even in mixed precision.
            logits = self._cosines(embedding, candidates.clamp(min=0)) / self.temperature
            logits = logits.masked_fill(candidates == IGNORED, float("-inf"))
            if labels is None:
                return {"logits": logits}
            return {"loss": functional.cross_entropy(logits, labels), "logits": logits}

    def _cosines(self, embedding: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Products of each example's vector with its own rows of the bank (examples x candidates).

        Never with the whole bank: how a product rounds depends on the shape of the matrices, and a run that was
        interrupted has met fewer labels than one that was not.
        """
        if bool((rows == rows[0]).all()):
            return embedding @ self.bank[rows[0]].T
        return torch.bmm(self.bank[rows], embedding.unsqueeze(-1)).squeeze(-1)


class MatcherModule(LabelBank):
    """A text encoder with its pooling."""

    def __init__(self, encoder: Any, pooling: Pooling, temperature: float) -> None:
        super().__init__(encoder, temperature)
        self.pooling = pooling

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
        """:meth:`compare` for texts (``input_ids`` and ``attention_mask``: texts x tokens, padded on the right)."""
        return self.compare(self.embed(input_ids, attention_mask), candidates, labels)


class LabelMatcher(Backbone):
    """What matchers of texts and of images share: the labels' places in the bank, and the choice among candidates.

    ``options.temperature`` shapes the comparison; ``options.candidates`` is for the caller, who puts either the task's
    labels or all labels seen so far into the spec.
    """

    kind = "matcher"
    module: LabelBank

    def __init__(self, loaded: Loaded) -> None:
        super().__init__(loaded)
        self._rows: dict[str, int] = {}

    def label_vectors(self, spec: AnswerSpec) -> torch.Tensor:
        """The frozen unit vectors of the spec's labels (labels x width), fp32."""
        rows = self.label_rows(spec)  # may extend the bank
        return self.module.bank[rows]

    def label_text(self, text: str) -> str:
        """What the text encoder reads for a label: its text within ``options.label_prompt``."""
        return self.options.label_prompt.replace("{label}", text)

    def choose(self, logits: torch.Tensor, labels: Sequence[str]) -> list[Answer]:
        """The likeliest label of each row (examples x labels) with its probability."""
        best = logits.softmax(-1).max(-1)
        return [Answer(labels[i], score) for score, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]

    def places(self, examples: Sequence[Example], spec: AnswerSpec) -> list[tuple[list[int], int]]:
        """For each example the rows of its candidates in the bank, and the position of its label among them.

        Raises:
            InputError: an output that is not among the labels.
        """
        labels = spec.require_labels("A matcher")
        candidates = self.label_rows(spec)
        position = {label: i for i, label in enumerate(labels)}
        for example in examples:
            spec.check_output(example.output)
        return [(candidates, position[example.output]) for example in examples]

    def collate_labels(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        """``candidates`` and ``labels`` of :meth:`LabelBank.compare`."""
        return {
            "candidates": pad([feature["candidates"] for feature in features], IGNORED),
            "labels": torch.tensor([feature["label"] for feature in features], dtype=torch.long),
        }

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
        if new := [text for text in texts if text not in self._rows]:
            self._add(new, self._embed_pretrained([self.label_text(text) for text in new]))
        return [self._rows[text] for text in texts]

    def _add(self, names: Sequence[str], vectors: torch.Tensor) -> None:
        """Put unit vectors (names x width) into the bank."""
        self.module.extend(vectors)
        for name in names:
            self._rows[name] = len(self._rows)

    @contextlib.contextmanager
    def pretrained(self) -> Iterator[Any]:
        """The model as it was before any training, ready to embed: evaluation mode, no gradients, fp32."""
        context: contextlib.AbstractContextManager[None]
        if self.options.lora is not None:
            model, context = self.model, without_adapter(self.model)
        else:
            # The weights themselves have moved; the pretrained ones are read again and dropped afterwards.
            model, context = self._load_pretrained().to(self.device), contextlib.nullcontext()
        with context, evaluating(model), torch.no_grad(), autocast(self.device, "fp32"):
            yield model

    @abstractmethod
    def _embed_pretrained(self, texts: list[str]) -> torch.Tensor:
        """Unit vectors of label texts (texts x width) by the model as it was before any training.

        One text at a time and in fp32, so that a label's vector never depends on which labels came with it, on the
        batch or on the machine's precision.
        """


class Matcher(LabelMatcher):
    """Backbone of kind ``matcher`` for texts; ``options.pooling`` says how token vectors become one vector."""

    def __init__(self, loaded: Loaded) -> None:
        super().__init__(loaded)
        self._module = MatcherModule(self.model, self.options.pooling, self.options.temperature).to(self.device)

    @property
    def module(self) -> MatcherModule:  # type: ignore[override]
        return self._module

    def features(self, examples: Sequence[Example], spec: AnswerSpec) -> list[Feature]:
        placed = self.places(examples, spec)
        return [
            {"input_ids": ids, "candidates": candidates, "label": label, "length": len(ids)}
            for ids, (candidates, label) in zip(self._encode([e.input for e in examples]), placed, strict=True)
        ]

    def collate(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        rows = [feature["input_ids"] for feature in features]
        return {
            "input_ids": pad(rows, self.tokenizer.pad_token_id, limit=self.lengths.input),
            "attention_mask": mask(rows, limit=self.lengths.input),
            **self.collate_labels(features),
        }

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        return self.tokenizer(list(texts), truncation=True, max_length=self.lengths.input)["input_ids"]

    def _answer_batch(self, ids: list[list[int]], spec: AnswerSpec) -> list[Answer]:
        candidates = torch.tensor([self.label_rows(spec)] * len(ids), dtype=torch.long)
        device = self.device
        read = pad(ids, self.tokenizer.pad_token_id, limit=self.lengths.input)
        seen = mask(ids, limit=self.lengths.input)
        logits = self.module(read.to(device), seen.to(device), candidates.to(device))["logits"]
        return self.choose(logits, spec.require_labels("A matcher"))

    def _embed_pretrained(self, texts: list[str]) -> torch.Tensor:
        vectors = []
        with self.pretrained() as encoder:
            for ids in self._encode(texts):
                row = torch.tensor([ids], device=self.device)
                ones = torch.ones_like(row)
                hidden = encoder(input_ids=row, attention_mask=ones).last_hidden_state
                vectors.append(pool(hidden, ones, self.options.pooling))
        return torch.cat(vectors)
