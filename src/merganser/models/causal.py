"""Backbone ``causal``: a decoder continues the text with the answer (GPT, Llama, Qwen, ...)."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from merganser.errors import InputError
from merganser.models.base import IGNORE_INDEX, Feature, LoadedModel, Truncated, eval_mode
from merganser.models.chat_template import uses_template
from merganser.models.chat_tokens import ChatTokens, Encoded, Prompt, encode_shared
from merganser.models.distinct_labels import LabelTokens
from merganser.models.generative import RANKING_BATCH, GenerativeBackbone, summed_log_probability
from merganser.models.padding import attention_mask, pad
from merganser.models.pairs import are_pairs, collate_pairs, count_truncated_pairs, is_pair, pair_features
from merganser.models.precision import autocast
from merganser.models.prefix import Prefix, compute_prefix, keeps_all_tokens, label_scores, prompt_inputs, run_prompts
from merganser.models.truncation import token_counts
from merganser.streams.answers import AnswerSpec
from merganser.streams.bad_rows import Problem
from merganser.streams.conversation import Conversation, Turn

if TYPE_CHECKING:
    from merganser.streams.task import Example


class Causal(GenerativeBackbone):
    """Backbone of kind ``causal``; the loss is that of the answer's tokens and the end of text.

    With a chat template a text is the message of a user, and conversations have a loss on the assistant's turns
    (:class:`~merganser.models.chat_tokens.ChatTokens`).

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
        self.chat: ChatTokens | None = None
        if uses_template(self.options, self.tokenizer):
            name, system = self.options.name, self.options.system
            self.chat = ChatTokens(self.tokenizer, name, system, self.lengths, self.eos_ids)
        self.has_chat_template = self.chat is not None

    # -- examples --------------------------------------------------------------------------------------------------

    def check_examples(self, examples: Sequence[Example], spec: AnswerSpec) -> None:
        super().check_examples(examples, spec)
        if self.chat is None and any(example.conversation is not None for example in examples):
            unused = bool(getattr(self.tokenizer, "chat_template", None))
            raise InputError(
                f"The task has conversations, and the chat template of {self.options.name} is not used."
                if unused
                else f"The task has conversations, and the tokenizer of {self.options.name} has no chat template.",
                "Leave model.chat_template out." if unused else "Use an instruct model, or texts with one answer each.",
            )

    def conversation_problems(self, examples: Sequence[Example]) -> list[Problem | None]:
        return [
            next((part for part in encoded if isinstance(part, Problem)), None)
            for encoded in self._encode_chats(examples)
        ]

    @property
    def default_system(self) -> str:
        return "" if self.chat is None else self.chat.default_system

    def _encode_chats(self, examples: Sequence[Example]) -> list[tuple[Encoded | Problem, ...]]:
        """Encode the conversation of each example, of a pair with either answer; nothing of a text."""
        if self.chat is None:
            return [()] * len(examples)
        chats = [_conversations(example) for example in examples]
        encoded = iter(encode_shared(self.chat, [chat for of_example in chats for chat in of_example], self.parts))
        return [tuple(next(encoded) for _ in of_example) for of_example in chats]

    def features(self, examples: Sequence[Example], spec: AnswerSpec) -> list[Feature]:
        if are_pairs(examples):
            return pair_features(self.features, examples, spec)
        texts = iter(self._text_features([example for example in examples if example.conversation is None]))
        return [_feature(*encoded) if encoded else next(texts) for encoded in self._encode_chats(examples)]

    def _text_features(self, examples: Sequence[Example]) -> list[Feature]:
        content = [[example.input, example.output] for example in examples]
        return self.parts.tokens("texts", content, lambda: self._tokenise_examples(examples))

    def _tokenise_examples(self, examples: Sequence[Example]) -> list[Feature]:
        features = []
        prompts = self._tokenise([example.input for example in examples])
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
        labels = [_labels(feature) for feature in features]
        longest = self.lengths.input + self.lengths.target
        return {
            "input_ids": pad(rows, self.tokenizer.pad_token_id, limit=longest),
            "attention_mask": attention_mask(rows, limit=longest),
            "labels": pad(labels, IGNORE_INDEX, limit=longest),
        }

    # -- tokens ----------------------------------------------------------------------------------------------------

    def _encode(self, texts: Sequence[str | Conversation]) -> list[list[int]]:
        """Return prompts, truncated to the input length, with the tokenizer's start and without an end of text."""
        return self.parts.tokens("inputs", list(texts), lambda: self._tokenise(texts))

    def _tokenise(self, texts: Sequence[str | Conversation]) -> list[list[int]]:
        if not texts:
            return []
        if self.chat is not None:
            return self.chat.prompt_ids([_conversation(text) for text in texts])
        plain = [str(text).rstrip(" ") for text in texts]
        rows = self.tokenizer(plain, truncation=True, max_length=self.lengths.input)
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

    def _after_break(self, prompt: list[int]) -> bool:
        """Return whether an answer to ``prompt`` starts without a space."""
        return self.has_chat_template or self.tokenizer.decode(prompt[-1:]).endswith("\n")

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
        ways = (True,) if self.has_chat_template else (False, True)
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
        chats = [
            chat for of_example in self._encode_chats(examples) for chat in of_example if isinstance(chat, Encoded)
        ]
        texts = self._count_truncated_texts([example for example in examples if example.conversation is None])
        return Truncated(
            sum(chat.cut for chat in chats) + texts.inputs,
            sum(chat.answer_cut for chat in chats) + texts.answers,
        )

    def _count_truncated_texts(self, examples: Sequence[Example]) -> Truncated:
        inputs = [example.input for example in examples]
        if self.chat is not None:
            made = self.chat.prompts([_conversation(text) for text in inputs])
            cut = sum(isinstance(prompt, Prompt) and prompt.cut for prompt in made)
            after_break = [True] * len(examples)
        else:
            prompts = self._tokenise(inputs)
            # A prompt that was cut nearly fills the length: the others need not be tokenised again.
            long = [text for prompt, text in zip(prompts, inputs, strict=True) if len(prompt) >= self.lengths.input / 2]
            sizes = token_counts(self.tokenizer, [text.rstrip(" ") for text in long])
            cut = sum(size > self.lengths.input for size in sizes)
            after_break = list(map(self._after_break, prompts))
        keys = [(example.output, after) for example, after in zip(examples, after_break, strict=True)]
        # The end of text is one more token.
        too_long = {key: len(self._answer_tokens(*key)) + 1 > self.lengths.target for key in dict.fromkeys(keys)}
        return Truncated(cut, sum(too_long[key] for key in keys))

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

    def continue_texts(self, texts: Sequence[str], max_new_tokens: int) -> list[str]:
        """Sample how texts go on, without the chat template, from torch's global generator.

        Every token is one of the likeliest, whose probabilities sum to 0.9.
        A continuation ends at the end of text or at ``max_new_tokens``, at most half of the input length; the model
        reads the other half, the end of a text that is longer. Special tokens are left out.
        """
        half = max(1, self.lengths.input // 2)
        with eval_mode(self.module), torch.no_grad(), autocast(self.device, self.precision):
            rows = [self._without_end(self.tokenizer(text)["input_ids"])[-half:] for text in texts]
            config = copy.deepcopy(self.decoding)
            config.update(do_sample=True, temperature=1.0, top_k=0, top_p=0.9, max_new_tokens=min(max_new_tokens, half))
            inputs = prompt_inputs(rows, self.tokenizer.pad_token_id, None, self.device)
            generated = self.model.generate(**inputs, generation_config=config)  # type: ignore[operator]
        written = generated[:, inputs["input_ids"].shape[1] :].tolist()
        return [self.tokenizer.decode(row, skip_special_tokens=True) for row in written]

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


def _conversation(text: str | Conversation) -> Conversation:
    """Return a text as the message of a user."""
    return Conversation((Turn("user", text),)) if isinstance(text, str) else text


def _conversations(example: Example) -> list[Conversation]:
    """Return the conversation of an example, of a pair with either answer; none of a text."""
    if example.conversation is None:
        return []
    rejected = None if example.rejected is None else example.with_rejected().conversation
    return [example.conversation] if rejected is None else [example.conversation, rejected]


def _feature(encoded: Encoded | Problem) -> Feature:
    """Return the feature of a conversation, of which ``spans`` are the tokens with a loss."""
    if isinstance(encoded, Problem):
        raise InputError(f"A conversation cannot be learned: {encoded}.", encoded.remedy_text())
    return {"input_ids": encoded.ids.tolist(), "spans": encoded.spans, "length": len(encoded.ids)}


def _labels(feature: Feature) -> list[int]:
    """Return the token ids with a loss, and -100 elsewhere."""
    ids = feature["input_ids"]
    labels = [IGNORE_INDEX] * len(ids)
    for start, end in feature["spans"] if "spans" in feature else [(feature["prompt"], len(ids))]:
        labels[start:end] = ids[start:end]
    return labels
