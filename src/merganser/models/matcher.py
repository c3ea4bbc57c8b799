"""Backbone ``matcher``: an encoder whose text embedding is compared with frozen embeddings of the label texts.

No head grows with the tasks: a label is an embedding of its text, computed once by the *pretrained* encoder. So every
label can be chosen before any training, and only the encoder learns. Images are matched in
:mod:`merganser.models.vision`.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from merganser.errors import InputError, first_repeated
from merganser.models.base import IGNORE_INDEX, Answer, Backbone, Feature, LoadedModel, Truncated, eval_mode
from merganser.models.distinct_labels import LabelTokens, Reading, refuse_equal_tokens, refuse_equal_vectors
from merganser.models.options import Pooling
from merganser.models.padding import attention_mask, pad
from merganser.models.precision import autocast
from merganser.models.stacking import disable_adapters
from merganser.models.truncation import token_counts
from merganser.streams.answers import AnswerSpec

if TYPE_CHECKING:
    from merganser.streams.task import Example

OTHER_TEXTS = "Under 'labels', give each a text of its own in other words."
"""Remedy for labels that an encoder cannot tell apart."""


def pool(hidden: torch.Tensor, mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """Return one unit vector per text (texts x width) from token vectors (texts x tokens x width) padded on the right.

    ``mean`` averages the tokens that are not padding, ``cls`` takes the first token, ``last`` the last one that is not
    padding. ``mask`` is the attention mask (texts x tokens).
    """
    hidden = hidden.float()
    if pooling == "mean":
        weights = mask.unsqueeze(-1).float()
        pooled = (hidden * weights).sum(1) / weights.sum(1)
    elif pooling == "cls":
        pooled = hidden[:, 0]
    else:
        pooled = hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]
    return functional.normalize(pooled, dim=-1)


class LabelBank(nn.Module):
    """An encoder with its pooling, and the comparison of its unit vectors with those of the labels.

    ``bank`` (labels x width, unit rows) is a buffer outside the state dict: it is not trained.
    """

    bank: torch.Tensor

    def __init__(self, encoder: Any, pooling: Pooling, temperature: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling
        self.temperature = temperature
        self.register_buffer("bank", torch.zeros(0, 0), persistent=False)

    def extend(self, vectors: torch.Tensor) -> None:
        """Append unit vectors (labels x width) to the bank."""
        vectors = vectors.to(self.bank)
        self.bank = torch.cat([self.bank, vectors]) if len(self.bank) else vectors

    def compare(
        self, embedding: torch.Tensor, candidates: torch.Tensor, labels: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """Compute the logits of each example's candidates and, with ``labels``, the loss.

        Args:
            embedding: unit vectors (examples x width), fp32.
            candidates: rows of ``bank`` (examples x largest number of candidates), filled with -100.
            labels: for each example the position of its label in its row of ``candidates``.

        Returns:
            ``logits`` (examples x largest number of candidates): cosine / temperature, -inf where filled; ``loss``:
            mean cross entropy of the labels among their candidates, in nats.
        """
        with torch.autocast(embedding.device.type, enabled=False):
            # A small temperature amplifies small differences of cosines: fp32, even in mixed precision.
            logits = self._cosines(embedding, candidates.clamp(min=0)) / self.temperature
            logits = logits.masked_fill(candidates == IGNORE_INDEX, float("-inf"))
            if labels is None:
                return {"logits": logits}
            return {"loss": functional.cross_entropy(logits, labels), "logits": logits}

    def _cosines(self, embedding: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Multiply each example's vector by its own rows of the bank (examples x candidates).

        Never by the whole bank: how a product is rounded depends on the shape of the matrices, and the bank of a
        resumed run may hold fewer labels than that of an uninterrupted one.
        """
        if bool((rows == rows[0]).all()):
            return embedding @ self.bank[rows[0]].T
        return torch.bmm(self.bank[rows], embedding.unsqueeze(-1)).squeeze(-1)


class MatcherModule(LabelBank):
    """A text encoder with its pooling."""

    def embed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return unit vectors (texts x width) in fp32."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return pool(hidden, attention_mask, self.pooling)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        candidates: torch.Tensor,
        labels: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Run :meth:`compare` for texts (``input_ids``, ``attention_mask``: texts x tokens, padded on the right)."""
        return self.compare(self.embed(input_ids, attention_mask), candidates, labels)


class LabelMatcher(Backbone):
    """Base of the matchers of texts and of images: label vectors in a bank, and the choice among candidates.

    ``options.temperature`` scales the comparison. ``options.candidates`` is applied by the caller, who puts either the
    task's labels or all labels seen so far into the spec.
    """

    kind = "matcher"
    module_class: ClassVar[type[LabelBank]]

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__(loaded)
        self._rows: dict[str, int] = {}
        self._module = self.module_class(self.model, self.options.pooling, self.options.temperature).to(self.device)

    @property
    def module(self) -> LabelBank:
        return self._module

    def label_vectors(self, spec: AnswerSpec) -> torch.Tensor:
        """Return the frozen unit vectors of the spec's labels (labels x width), fp32."""
        rows = self.label_rows(spec)  # may extend the bank
        return self.module.bank[rows]

    def load_label_vectors(self, spec: AnswerSpec, vectors: torch.Tensor) -> None:
        """Restore what :meth:`label_vectors` returned, of labels that have no vector yet: nothing is embedded."""
        for label, vector in zip(spec.require_labels("A matcher"), vectors, strict=True):
            name = self._row_name(spec, label)
            if name not in self._rows:
                self._add([name], vector.unsqueeze(0))

    def _row_name(self, spec: AnswerSpec, label: str) -> str:
        """Return the name of a label's vector in the bank: its text."""
        return spec.text_of(label)

    def check_labels(self, spec: AnswerSpec, where: str) -> None:
        labels = spec.require_labels("A matcher")
        reading = self._reading(where)
        tokens = self._label_tokens([self.label_text(spec.text_of(label)) for label in labels])
        refuse_equal_tokens(dict(zip(labels, tokens, strict=False)), reading)
        refuse_equal_vectors(labels, self.label_vectors(spec), reading)

    @abstractmethod
    def _reading(self, where: str) -> Reading:
        """Return how labels are read."""

    @abstractmethod
    def _label_tokens(self, texts: Sequence[str]) -> list[LabelTokens]:
        """Return the tokens of label texts; none without a text encoder."""

    def label_text(self, text: str) -> str:
        """Return the text to embed for a label: its text inserted into ``options.label_prompt``."""
        return self.options.label_prompt.replace("{label}", text)

    def candidates(self, examples: Sequence[Example], spec: AnswerSpec) -> list[tuple[list[int], int]]:
        """Return for each example the bank's rows of its candidates, and the position of its label among them.

        Raises:
            InputError: an output that is not among the labels.
        """
        labels = spec.require_labels("A matcher")
        rows = self.label_rows(spec)
        position = {label: i for i, label in enumerate(labels)}
        for example in examples:
            if example.output not in position:
                spec.check_output(example.output)
        return [(rows, position[example.output]) for example in examples]

    def collate_labels(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        """Return ``candidates`` and ``labels`` of :meth:`LabelBank.compare`."""
        return {
            "candidates": pad([feature["candidates"] for feature in features], IGNORE_INDEX),
            "labels": torch.tensor([feature["label"] for feature in features], dtype=torch.long),
        }

    def label_rows(self, spec: AnswerSpec) -> list[int]:
        """Return the bank's rows of the spec's labels; texts that are not in it yet are embedded first.

        Raises:
            InputError: no labels, or two of them with the same text.
        """
        labels = spec.require_labels("A matcher")
        texts = [spec.text_of(label) for label in labels]
        if (twice := first_repeated(texts)) is not None:
            first, second, *_ = (label for label, text in zip(labels, texts, strict=True) if text == twice)
            raise InputError(
                f"The labels '{first}' and '{second}' have the same text '{twice}'.",
                "A matcher distinguishes labels by their texts: map each to its own under 'labels'.",
            )
        if new := [text for text in texts if text not in self._rows]:
            given = [self.label_text(text) for text in new]
            self._add(new, self.parts.vectors(given, lambda: self._embed_pretrained(given)))
        return [self._rows[text] for text in texts]

    def _add(self, names: Sequence[str], vectors: torch.Tensor) -> None:
        """Append unit vectors (names x width) to the bank."""
        self.module.extend(vectors)
        for name in names:
            self._rows[name] = len(self._rows)

    @contextlib.contextmanager
    def pretrained(self) -> Iterator[Any]:
        """Provide the pretrained model inside: evaluation mode, no gradients, fp32."""
        context: contextlib.AbstractContextManager[None]
        if self.options.lora is not None:
            model, context = self.model, disable_adapters(self.model)
        else:
            # All weights are trained, so the pretrained ones are loaded again, and freed afterwards.
            model, context = self.pretrained_from.load().to(self.device), contextlib.nullcontext()
        with context, eval_mode(model), torch.no_grad(), autocast(self.device, "fp32"):
            yield model

    @abstractmethod
    def _embed_pretrained(self, texts: list[str]) -> torch.Tensor:
        """Return unit vectors of label texts (texts x width) by the pretrained model.

        One text at a time and in fp32, so that a label's vector never depends on which labels came with it, on the
        batch or on the machine's precision.
        """

    @abstractmethod
    def _forward(self, encoded: list[Any], candidates: torch.Tensor) -> dict[str, torch.Tensor]:
        """Run the module on encoded examples and their candidates (examples x candidates)."""

    def _answer_batch(self, encoded: list[Any], spec: AnswerSpec) -> list[Answer]:
        labels = spec.require_labels("A matcher")
        candidates = torch.tensor([self.label_rows(spec)] * len(encoded), dtype=torch.long, device=self.device)
        best = self._forward(encoded, candidates)["logits"].softmax(-1).max(-1)
        return [Answer(labels[i], score) for score, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]


class Matcher(LabelMatcher):
    """Backbone of kind ``matcher`` for texts; ``options.pooling`` is how token vectors become one vector."""

    module_class = MatcherModule

    def check_examples(self, examples: Sequence[Example], spec: AnswerSpec) -> None:
        super().check_examples(examples, spec)
        if any(example.conversation is not None for example in examples):
            raise InputError(
                "A matcher chooses a label for one text, and the task has conversations.",
                "Use kind 'causal' with an instruct model; or name the fields of a text and a label with 'input' and "
                "'output'.",
            )

    def features(self, examples: Sequence[Example], spec: AnswerSpec) -> list[Feature]:
        candidates = self.candidates(examples, spec)
        return [
            {"input_ids": ids, "candidates": rows, "label": label, "length": len(ids)}
            for ids, (rows, label) in zip(self._encode([e.input for e in examples]), candidates, strict=True)
        ]

    def shortened(self, features: Sequence[Feature], length: int) -> list[Feature]:
        return [
            {**feature, "input_ids": self._cut(feature["input_ids"], length), "length": min(feature["length"], length)}
            for feature in features
        ]

    def _cut(self, ids: list[int], length: int) -> list[int]:
        """Cut a text to its first tokens, as the tokenizer does: a special token at its end stays there."""
        if len(ids) <= length:
            return ids
        return [*ids[: length - 1], ids[-1]] if ids[-1] in self.tokenizer.all_special_ids else ids[:length]

    def collate(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        return {
            **self._text_batch([feature["input_ids"] for feature in features]),
            **self.collate_labels(features),
        }

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self.parts.tokens("inputs", list(texts), lambda: self._tokenise(texts))

    def _tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        return self.tokenizer(list(texts), truncation=True, max_length=self.lengths.input)["input_ids"]

    def _reading(self, where: str) -> Reading:
        return Reading(where, "training.max_input", self.tokenizer.unk_token_id, OTHER_TEXTS)

    def _label_tokens(self, texts: Sequence[str]) -> list[LabelTokens]:
        def tokenise() -> list[list[list[int]]]:
            whole = self.tokenizer(list(texts), verbose=False)["input_ids"]
            return [list(pair) for pair in zip(whole, self._tokenise(texts), strict=True)]

        rows = self.parts.tokens("labels", list(texts), tokenise)
        return [LabelTokens(text, tuple(ids), tuple(kept)) for text, (ids, kept) in zip(texts, rows, strict=True)]

    def count_truncated(self, examples: Sequence[Example], spec: AnswerSpec) -> Truncated:
        # No answer is written, but a label's text is read.
        labels = list(spec.labels or ())
        sizes = token_counts(self.tokenizer, [self.label_text(spec.text_of(label)) for label in labels])
        cut = {label for label, size in zip(labels, sizes, strict=True) if size > self.lengths.input}
        inputs = token_counts(self.tokenizer, [example.input for example in examples])
        return Truncated(
            sum(size > self.lengths.input for size in inputs), sum(example.output in cut for example in examples)
        )

    def _text_batch(self, rows: Sequence[list[int]]) -> dict[str, torch.Tensor]:
        return {
            "input_ids": pad(rows, self.tokenizer.pad_token_id, limit=self.lengths.input),
            "attention_mask": attention_mask(rows, limit=self.lengths.input),
        }

    def _forward(self, encoded: list[list[int]], candidates: torch.Tensor) -> dict[str, torch.Tensor]:
        batch = {name: tensor.to(self.device) for name, tensor in self._text_batch(encoded).items()}
        return self.module(**batch, candidates=candidates)

    def _embed_pretrained(self, texts: list[str]) -> torch.Tensor:
        vectors = []
        with self.pretrained() as encoder:
            for ids in self._tokenise(texts):
                row = torch.tensor([ids], device=self.device)
                ones = torch.ones_like(row)
                hidden = encoder(input_ids=row, attention_mask=ones).last_hidden_state
                vectors.append(pool(hidden, ones, self.options.pooling))
        return torch.cat(vectors)
