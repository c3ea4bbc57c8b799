"""``causal``: a decoder continues the text with the answer (GPT, Llama, Qwen and their kin)."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from merganser.errors import InputError
from merganser.models.base import IGNORED, AnswerSpec, Feature, mask, pad
from merganser.models.generative import RANK_ROWS, GenerativeBackbone, summed_log_probability

if TYPE_CHECKING:
    from merganser.streams.task import Example


class Causal(GenerativeBackbone):
    """Prompt and answer are tokenised apart, so the model reads exactly the same prompt in training and when asked.

    The answer is written as it would be behind the prompt: after a space unless the prompt ends with a line break or
    the chat template opens the answer. Spaces at the end of a prompt move to the answer, where tokenizers expect them.
    """

    kind = "causal"

    def features(self, examples: Sequence[Example], spec: AnswerSpec) -> list[Feature]:
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
        rows = [feature["input_ids"] for feature in features]
        labels = [[IGNORED] * f["prompt"] + f["input_ids"][f["prompt"] :] for f in features]
        longest = self.lengths.input + self.lengths.target
        return {
            "input_ids": pad(rows, self.tokenizer.pad_token_id, limit=longest),
            "attention_mask": mask(rows, limit=longest),
            "labels": pad(labels, IGNORED, limit=longest),
        }

    # -- tokens ----------------------------------------------------------------------------------------------------

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Prompts, cut to the input length, with the tokenizer's start and without an end of text."""
        if not texts:
            return []
        if self.options.chat_template:
            return [self._chat_prompt(text) for text in texts]
        rows = self.tokenizer([text.rstrip(" ") for text in texts], truncation=True, max_length=self.lengths.input)
        return [self._opened(row) for row in rows["input_ids"]]

    def _opened(self, ids: list[int]) -> list[int]:
        """Without the end of text that some tokenizers add, and never empty: there must be a token to continue."""
        end = self.tokenizer.eos_token_id
        while ids and ids[-1] == end:
            ids = ids[:-1]
        if ids:
            return ids
        begin = self.tokenizer.bos_token_id
        return [end if begin is None else begin]

    def _chat_prompt(self, text: str) -> list[int]:
        """The user's message in the chat template, opened for the answer; the message is cut, never the template."""
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
        message = [{"role": "user", "content": text}]
        rendered = self.tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        return self.tokenizer(rendered, add_special_tokens=False)["input_ids"]

    def _after_break(self, prompt: list[int]) -> bool:
        """Whether an answer behind ``prompt`` starts without a space."""
        return self.options.chat_template or self.tokenizer.decode(prompt[-1:]).endswith("\n")

    def answer_ids(self, answer: str, after_break: bool) -> list[int]:
        """Tokens of an answer and the end of text, at most the target length.

        The answer is tokenised behind a fixed character that is then taken off again: tokenizers that mark the start of
        a text (SentencePiece) and those that mark spaces (byte-level) then both give what stands inside a text.
        """
        anchor = "\n" if after_break else ":"
        joined = anchor + ("" if after_break else " ") + answer
        before = self.tokenizer(anchor, add_special_tokens=False)["input_ids"]
        ids = self.tokenizer(joined, add_special_tokens=False)["input_ids"]
        if ids[: len(before)] == before:
            ids = ids[len(before) :]
        else:  # the anchor melted into the answer's first token
            ids = self.tokenizer(joined[len(anchor) :], add_special_tokens=False)["input_ids"]
        return [*ids[: self.lengths.target - 1], self.tokenizer.eos_token_id]

    # -- answers ---------------------------------------------------------------------------------------------------

    def _inputs(self, ids: list[list[int]]) -> dict[str, torch.Tensor]:
        """Padded on the left, so that every answer starts at the same column."""
        return {
            "input_ids": pad(ids, self.tokenizer.pad_token_id, left=True).to(self.device),
            "attention_mask": mask(ids, left=True).to(self.device),
        }

    def _log_likelihoods(self, ids: list[list[int]], labels: tuple[str, ...]) -> torch.Tensor:
        behind = {after: [self.answer_ids(label, after) for label in labels] for after in (True, False)}
        pairs = [(prompt, answer) for prompt in ids for answer in behind[self._after_break(prompt)]]
        accepted = inspect.signature(self.base.forward).parameters
        rows = max(RANK_ROWS, len(ids))
        sums = []
        for start in range(0, len(pairs), rows):
            chosen = pairs[start : start + rows]
            inputs: dict[str, Any] = self._inputs([prompt + answer for prompt, answer in chosen])
            wanted = pad([answer for _, answer in chosen], IGNORED, left=True).to(self.device)
            width = wanted.shape[1] + 1
            if "position_ids" in accepted:
                inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
            if "logits_to_keep" in accepted:
                inputs["logits_to_keep"] = width  # the vocabulary is wide: no scores for the prompt
            # Column t of the logits speaks about token t + 1; all answers end in the last column.
            logits = self.base(**inputs, use_cache=False).logits[:, -width:-1]
            sums.append(summed_log_probability(logits, wanted))
        return torch.cat(sums).view(len(ids), len(labels))
