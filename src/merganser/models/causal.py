"""Backbone ``causal``: a decoder continues the text with the answer (GPT, Llama, Qwen, ...)."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from merganser.errors import InputError
from merganser.models.base import IGNORE_INDEX, Feature, LoadedModel, Truncated
from merganser.models.chat_template import chat_prompt
from merganser.models.distinct_labels import LabelTokens
from merganser.models.generative import RANKING_BATCH, GenerativeBackbone, summed_log_probability
from merganser.models.padding import attention_mask, pad
from merganser.models.pairs import are_pairs, collate_pairs, count_truncated_pairs, is_pair, pair_features
from merganser.models.prefix import Prefix, compute_prefix, keeps_all_tokens, label_scores, prompt_inputs, run_prompts
from merganser.models.truncation import token_counts
from merganser.streams.answers import AnswerSpec

if TYPE_CHECKING:
    from merganser.streams.task import Example


class Causal(GenerativeBackbone):
    """Backbone of kind ``causal``; the loss is that of the answer's tokens and the end of text.

    Prompt and answer are tokenised separately, so that the prompt is the same in training and inference. The answer
    follows after a space, or directly if the prompt ends with a line break or the chat template opens the answer.
    Spaces at the end of a prompt are moved to the answer, where tokenizers expect them.
    """

    kind = "causal"

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__(loaded)
        self._prefix: Prefix | None = None
        self._cache_is_whole: bool | None = None
        self._prefix_is_exact: bool | None = None

    def features(self, examples: Sequence[Example], spec: AnswerSpec) -> list[Feature]:
        if are_pairs(examples):
            return pair_features(self.features, examples, spec)
        features = []
        prompts = self._encode([example.input for example in examples])
        answers: dict[tuple[str, bool], list[int]] = {}
        for prompt, example in zip(prompts, examples, strict=True):
            key = (example.output, self._after_break(prompt))
            if key not in answers:
                answers[key] = self.answer_ids(*key)
            ids = prompt + answers[key]
            features.append({"input_ids": ids, "prompt": len(prompt), "length": len(ids)})
        return features

    def collate(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        if is_pair(features[0]):
            return collate_pairs(self.collate, features)
        rows = [feature["input_ids"] for feature in features]
        labels = [[IGNORE_INDEX] * f["prompt"] + f["input_ids"][f["prompt"] :] for f in features]
        longest = self.lengths.input + self.lengths.target
        return {
            "input_ids": pad(rows, self.tokenizer.pad_token_id, limit=longest),
            "attention_mask": attention_mask(rows, limit=longest),
            "labels": pad(labels, IGNORE_INDEX, limit=longest),
        }

    # -- tokens ----------------------------------------------------------------------------------------------------

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return prompts, truncated to the input length, with the tokenizer's start and without an end of text."""
        if not texts:
            return []
        if self.options.chat_template:
            return [self._chat_prompt(text) for text in texts]
        rows = self.tokenizer([text.rstrip(" ") for text in texts], truncation=True, max_length=self.lengths.input)
        return [self._without_end(row) for row in rows["input_ids"]]

    def _without_end(self, ids: list[int]) -> list[int]:
        """Remove the end of text that some tokenizers add; never empty: generation needs a token to continue."""
        end = self.tokenizer.eos_token_id
        while ids and ids[-1] == end:
            ids = ids[:-1]
        if ids:
            return ids
        begin = self.tokenizer.bos_token_id
        return [end if begin is None else begin]

    def _chat_prompt(self, text: str) -> list[int]:
        """Return the chat template around the user's message up to the answer; the message is truncated, never the
        template."""
        ids = self._chat_ids(text)
        room = len(ids)
        while len(ids) > self.lengths.input:
            offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            room = min(room, len(offsets)) - (len(ids) - self.lengths.input)
            if room < 1:
                raise InputError(
                    f"The chat template alone takes more than the input length of {self.lengths.input} tokens.",
                    "Use a larger input length.",
                )
            text = text[: offsets[room - 1][1]]
            ids = self._chat_ids(text)
        return ids

    def _chat_ids(self, text: str) -> list[int]:
        rendered = chat_prompt(self.tokenizer, self.options.name, text)
        return self.tokenizer(rendered, add_special_tokens=False)["input_ids"]

    def _after_break(self, prompt: list[int]) -> bool:
        """Return whether an answer to ``prompt`` starts without a space."""
        return self.options.chat_template or self.tokenizer.decode(prompt[-1:]).endswith("\n")

    def answer_ids(self, answer: str, after_break: bool) -> list[int]:
        """Return the tokens of an answer and the end of text, at most the target length."""
        return [*self._answer_tokens(answer, after_break)[: self.lengths.target - 1], self.tokenizer.eos_token_id]

    def _answer_tokens(self, answer: str, after_break: bool) -> list[int]:
        """Return the tokens of a whole answer.

        The answer is tokenised after a fixed character, whose tokens are then removed: so tokenizers that mark the
        start of a text (SentencePiece) and those that mark spaces (byte-level) both give the tokens of a text's middle.
        """
        anchor = "\n" if after_break else ":"
        text = anchor + ("" if after_break else " ") + answer
        before = self.tokenizer(anchor, add_special_tokens=False)["input_ids"]
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if ids[: len(before)] == before:
            ids = ids[len(before) :]
        else:  # the anchor and the answer's start are one token
            ids = self.tokenizer(text[len(anchor) :], add_special_tokens=False)["input_ids"]
        return ids

    def _label_tokens(self, labels: Sequence[str]) -> list[list[LabelTokens]]:
        ways = (True,) if self.options.chat_template else (False, True)
        end = self.tokenizer.eos_token_id
        return [
            [
                LabelTokens(
                    label, (*self._answer_tokens(label, after_break), end), tuple(self.answer_ids(label, after_break))
                )
                for label in labels
            ]
            for after_break in ways
        ]

    def count_truncated(self, examples: Sequence[Example], spec: AnswerSpec) -> Truncated:
        if are_pairs(examples):
            return count_truncated_pairs(self.count_truncated, examples, spec)
        prompts = self._encode([example.input for example in examples])
        pairs = list(zip(prompts, examples, strict=True))
        # A prompt that was cut nearly fills the length: the others need not be tokenised again.
        half = self.lengths.input / 2
        inputs = self._whole_sizes([example.input for prompt, example in pairs if len(prompt) >= half])
        sizes: dict[tuple[str, bool], int] = {}
        answers = 0
        for prompt, example in pairs:
            key = (example.output, self._after_break(prompt))
            if key not in sizes:
                sizes[key] = len(self._answer_tokens(*key)) + 1  # the end of text
            answers += sizes[key] > self.lengths.target
        return Truncated(sum(size > self.lengths.input for size in inputs), answers)

    def _whole_sizes(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of whole prompts."""
        if self.options.chat_template:
            return [len(self._chat_ids(text)) for text in texts]
        return token_counts(self.tokenizer, [text.rstrip(" ") for text in texts])

    # -- answers ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _begin(self, encoded: Sequence[list[int]]) -> Iterator[None]:
        """Compute the cache of what all texts begin with, for the batches inside."""
        self._prefix = self._trusted(compute_prefix(self.base, encoded), encoded) if self._reads_cache() else None
        try:
            yield
        finally:
            self._prefix = None

    def _reads_cache(self) -> bool:
        if self._cache_is_whole is None:
            self._cache_is_whole = keeps_all_tokens(self.base)
        return self._cache_is_whole

    def _trusted(self, prefix: Prefix | None, encoded: Sequence[list[int]]) -> Prefix | None:
        """Return the prefix, or ``None`` for a model that goes on from it in another way; tried once."""
        if prefix is not None and self._prefix_is_exact is None:
            texts = [min(encoded, key=len), max(encoded, key=len)]
            padding = self.tokenizer.pad_token_id
            shared, _ = run_prompts(self.base, prompt_inputs(texts, padding, prefix, self.device))
            alone = [run_prompts(self.base, prompt_inputs([text], padding, None, self.device))[0] for text in texts]
            difference = (shared - torch.cat(alone)).float().abs().max()
            exact = self.precision == "fp32" and shared.dtype == torch.float32
            self._prefix_is_exact = bool(difference <= (1e-3 if exact else 0.1) * torch.cat(alone).float().std())
        return prefix if self._prefix_is_exact else None

    def _inputs(self, ids: list[list[int]]) -> dict[str, Any]:
        """Pad on the left, so that every answer starts at the same column; after the prefix, if there is one."""
        return prompt_inputs(ids, self.tokenizer.pad_token_id, self._prefix, self.device)

    def _log_likelihoods(self, ids: list[list[int]], labels: tuple[str, ...]) -> torch.Tensor:
        by_break = {after: [self.answer_ids(label, after) for label in labels] for after in (True, False)}
        answers = [by_break[self._after_break(prompt)] for prompt in ids]
        if self._reads_cache():
            # Few at a time: every pair has a copy of its prompt in the cache.
            return label_scores(self.base, self._inputs(ids), answers, RANKING_BATCH, summed_log_probability)
        rows = max(RANKING_BATCH, len(ids))
        pairs = [(prompt, answer) for prompt, choices in zip(ids, answers, strict=True) for answer in choices]
        parameters = inspect.signature(self.base.forward).parameters
        sums = []
        for start in range(0, len(pairs), rows):
            chosen = pairs[start : start + rows]
            inputs = self._inputs([prompt + answer for prompt, answer in chosen])
            targets = pad([answer for _, answer in chosen], IGNORE_INDEX, left=True).to(self.device)
            width = targets.shape[1] + 1
            if "position_ids" in parameters:
                inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
            if "logits_to_keep" in parameters:
                inputs["logits_to_keep"] = width  # the vocabulary is large: no logits for the prompt
            # Column t of the logits predicts token t + 1; all answers end in the last column.
            logits = self.base(**inputs, use_cache=False).logits[:, -width:-1]
            sums.append(summed_log_probability(logits, targets))
        return torch.cat(sums).view(len(ids), len(labels))
