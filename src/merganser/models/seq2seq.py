"""Backbone ``seq2seq``: an encoder reads the text and a decoder generates the answer (T5, BART, ...)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from transformers.modeling_outputs import BaseModelOutput

from merganser.models.base import IGNORE_INDEX, Feature, Truncated
from merganser.models.distinct_labels import LabelTokens
from merganser.models.generative import RANKING_BATCH, GenerativeBackbone, summed_log_probability
from merganser.models.padding import attention_mask, pad
from merganser.models.pairs import are_pairs, collate_pairs, count_truncated_pairs, is_pair, pair_features
from merganser.models.truncation import token_counts
from merganser.streams.answers import AnswerSpec
from merganser.streams.conversation import Conversation

if TYPE_CHECKING:
    from merganser.streams.task import Example


class Seq2Seq(GenerativeBackbone):
    """Backbone of kind ``seq2seq``; the loss is that of the answer's tokens and the end of text."""

    kind = "seq2seq"

    def features(self, examples: Sequence[Example], spec: AnswerSpec) -> list[Feature]:
        if are_pairs(examples):
            return pair_features(self.features, examples, spec)
        outputs = [example.output for example in examples]
        rows = zip(
            self._encode([example.input for example in examples]),
            self.parts.tokens("answers", outputs, lambda: self._targets(outputs)),
            strict=True,
        )
        return [{"input_ids": ids, "labels": labels, "length": len(ids) + len(labels)} for ids, labels in rows]

    def collate(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        if is_pair(features[0]):
            return collate_pairs(self.collate, features)
        inputs = [feature["input_ids"] for feature in features]
        return {
            "input_ids": pad(inputs, self.tokenizer.pad_token_id, limit=self.lengths.input),
            "attention_mask": attention_mask(inputs, limit=self.lengths.input),
            "labels": pad([feature["labels"] for feature in features], IGNORE_INDEX),
        }

    def _encode(self, texts: Sequence[str | Conversation]) -> list[list[int]]:
        plain = list(map(str, texts))  # of a conversation: role by role
        return self.parts.tokens("inputs", plain, lambda: self._tokenise(plain))

    def _tokenise(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        return self.tokenizer(texts, truncation=True, max_length=self.lengths.input)["input_ids"]

    def _targets(self, texts: Sequence[str], *, whole: bool = False) -> list[list[int]]:
        """Return token ids of answers, truncated to the target length unless ``whole``, the end of text always last."""
        if not texts:
            return []
        end = self.tokenizer.eos_token_id
        options = {"verbose": False} if whole else {"truncation": True, "max_length": self.lengths.target}
        rows = self.tokenizer(text_target=list(texts), **options)["input_ids"]
        last = None if whole else self.lengths.target - 1
        return [row if row and row[-1] == end else [*row[:last], end] for row in rows]

    def _label_tokens(self, labels: Sequence[str]) -> list[list[LabelTokens]]:
        pairs = zip(labels, self._targets(labels, whole=True), self._targets(labels), strict=True)
        return [[LabelTokens(label, tuple(whole), tuple(kept)) for label, whole, kept in pairs]]

    def count_truncated(self, examples: Sequence[Example], spec: AnswerSpec) -> Truncated:
        if are_pairs(examples):
            return count_truncated_pairs(self.count_truncated, examples, spec)
        inputs = token_counts(self.tokenizer, [example.input for example in examples])
        outputs = list(dict.fromkeys(example.output for example in examples))
        size = dict(zip(outputs, map(len, self._targets(outputs, whole=True)), strict=True))
        return Truncated(
            sum(count > self.lengths.input for count in inputs),
            sum(size[example.output] > self.lengths.target for example in examples),
        )

    def _inputs(self, ids: list[list[int]]) -> dict[str, torch.Tensor]:
        return {
            "input_ids": pad(ids, self.tokenizer.pad_token_id).to(self.device),
            "attention_mask": attention_mask(ids).to(self.device),
        }

    def _log_likelihoods(self, ids: list[list[int]], labels: tuple[str, ...]) -> torch.Tensor:
        inputs = self._inputs(ids)
        encoded = self.base.get_encoder()(**inputs).last_hidden_state
        targets = self._targets(labels)
        # Each text is encoded once; its encoding is repeated for every label.
        pairs = [(text, label) for text in range(len(ids)) for label in range(len(labels))]
        rows = max(RANKING_BATCH, len(ids))
        sums = []
        for start in range(0, len(pairs), rows):
            chosen = pairs[start : start + rows]
            texts = torch.tensor([text for text, _ in chosen], device=self.device)
            target_ids = pad([targets[label] for _, label in chosen], IGNORE_INDEX).to(self.device)
            logits = self.base(
                encoder_outputs=BaseModelOutput(last_hidden_state=encoded[texts]),
                attention_mask=inputs["attention_mask"][texts],
                labels=target_ids,
            ).logits
            sums.append(summed_log_probability(logits, target_ids))
        return torch.cat(sums).view(len(ids), len(labels))
