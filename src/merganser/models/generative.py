"""Text in, text out: what ``seq2seq`` and ``causal`` share. Greedy decoding, and ranking of labels by likelihood."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch.nn import functional
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from merganser.models.base import IGNORED, Answer, AnswerSpec, Backbone, Loaded

RANK_ROWS = 32
"""Smallest number of (text, label) pairs that are scored in one pass."""


class GreedyProbability(LogitsProcessor):
    """Notes the probability of the likeliest token at each step, which is the one greedy decoding writes.

    Keeping all scores of all steps instead (``output_scores``) would take texts x vocabulary x steps numbers.
    """

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self.steps.append(scores.float().softmax(-1).amax(-1))
        return scores


class GenerativeBackbone(Backbone):
    """A model that writes its answer token by token."""

    def __init__(self, loaded: Loaded) -> None:
        super().__init__(loaded)
        config = self._greedy(self.base.generation_config)
        self.eos_ids: list[int] = config.eos_token_id
        # Set on the model itself, so that a plain ``generate()`` of the exported model decodes in the same way.
        self.base.generation_config = config
        self.model.generation_config = config

    @property
    def base(self) -> Any:
        """The transformers model itself, with the factors in place but without PEFT around it."""
        return self.model.get_base_model() if self.options.lora is not None else self.model  # type: ignore[operator]

    def _greedy(self, own: Any) -> Any:
        """Greedy decoding with the model's own special tokens and none of its penalties, beams or sampling."""
        ends = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
        eos = list(dict.fromkeys(i for i in [self.tokenizer.eos_token_id, *ends] if i is not None))
        start = getattr(own, "decoder_start_token_id", None)
        return GenerationConfig(
            max_new_tokens=self.lengths.target,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            bos_token_id=own.bos_token_id,
            eos_token_id=eos,
            pad_token_id=self.tokenizer.pad_token_id,
            decoder_start_token_id=start
            if start is not None
            else getattr(self.base.config, "decoder_start_token_id", None),
            forced_bos_token_id=getattr(own, "forced_bos_token_id", None),
        )

    def _answer_batch(self, ids: list[list[int]], spec: AnswerSpec) -> list[Answer]:
        if spec.mode == "generate":
            return self._generate(ids)
        labels = spec.require_labels("The answer mode 'rank'")
        best = self._log_likelihoods(ids, labels).softmax(-1).max(-1)
        return [Answer(labels[i], score) for score, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]

    @abstractmethod
    def _inputs(self, ids: list[list[int]]) -> dict[str, torch.Tensor]:
        """``input_ids`` and ``attention_mask`` (texts x tokens) for ``generate``."""

    @abstractmethod
    def _log_likelihoods(self, ids: list[list[int]], labels: tuple[str, ...]) -> torch.Tensor:
        """Summed log-probability of the tokens of each label, end of text included (texts x labels, fp32, nats)."""

    def _generate(self, ids: list[list[int]]) -> list[Answer]:
        probabilities = GreedyProbability()
        written = self.model.generate(  # type: ignore[operator]
            **self._inputs(ids), logits_processor=LogitsProcessorList([probabilities])
        )
        tokens = written[:, written.shape[1] - len(probabilities.steps) :].tolist()
        confidence = torch.stack(probabilities.steps, 1).tolist()
        answers = []
        for row, probability in zip(tokens, confidence, strict=True):
            end = next((i + 1 for i, token in enumerate(row) if token in self.eos_ids), len(row))
            text = self.tokenizer.decode(row[:end], skip_special_tokens=True).strip()
            answers.append(Answer(text, sum(probability[:end]) / end))
        return answers


def summed_log_probability(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum over the positions of ``labels`` (rows x tokens, ignored where -100) of the log-probability that ``logits``
    (rows x tokens x vocabulary, aligned with ``labels``) give them; one fp32 number per row, in nats."""
    losses = functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return -losses.view_as(labels).sum(1)
