"""Backbones that generate text (``seq2seq`` and ``causal``): greedy decoding, and ranking of labels by likelihood."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from merganser import processes
from merganser.metrics.text import TEXT_SCORES
from merganser.models.base import IGNORE_INDEX, Answer, Backbone, LoadedModel, eval_mode, texts_in
from merganser.models.distinct_labels import LabelTokens, Reading, refuse_equal_tokens
from merganser.models.engines import CheckedEngine
from merganser.models.precision import autocast
from merganser.streams.answers import AnswerSpec

RANKING_BATCH = 32
"""(text, label) pairs per forward pass where their prompts are in a cache; elsewhere the smallest number."""


class GreedyProbability(LogitsProcessor):
    """Records the probability of the likeliest token at each step, which is the one greedy decoding chooses.

    ``output_scores`` would store texts x vocabulary x steps numbers.
    """

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self.steps.append(scores.float().softmax(-1).amax(-1))
        return scores


class GenerativeBackbone(Backbone):
    """A model that generates its answer token by token."""

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__(loaded)
        self.decoding = self._greedy_config(self.base.generation_config)
        self.eos_ids: list[int] = self.decoding.eos_token_id
        # Set on the model itself: ``generate()`` would take what is not given to it from the model's own settings.
        self.base.generation_config = self.decoding
        self.model.generation_config = self.decoding
        self.engine: CheckedEngine | None = None

    def answer(
        self,
        texts: Sequence[Any],
        spec: AnswerSpec,
        batch_size: int = 32,
        on_progress: Callable[[int], None] | None = None,
        *,
        shared: bool = False,
    ) -> list[Answer]:
        """Answer texts as :meth:`Backbone.answer`; many texts by the engine, if there is one."""
        if self.engine is None or spec.mode != "generate" or len(texts) <= self.engine.sample:
            return super().answer(texts, spec, batch_size, on_progress, shared=shared)
        answers = self._written_by(self.engine, texts, spec, batch_size, shared)
        if answers is None:
            return super().answer(texts, spec, batch_size, on_progress, shared=shared)
        if on_progress is not None:
            on_progress(len(texts))
        return answers

    def _written_by(
        self, engine: CheckedEngine, texts: Sequence[Any], spec: AnswerSpec, batch_size: int, shared: bool
    ) -> list[Answer] | None:
        """Return the answers of an engine, of which every process writes a part; ``None`` if they cannot be used."""
        rank, world_size = (processes.rank(), processes.world_size()) if shared else (0, 1)
        local = range(rank, len(texts), world_size)
        self.check_tokens(text for given in texts for text in texts_in(given))
        with eval_mode(self.module), torch.no_grad(), autocast(self.device, self.precision):
            mine = [texts[i] for i in local]
            answers = engine.answers(
                self._encode(mine),
                lambda places: Backbone.answer(self, [mine[i] for i in places], spec, batch_size),
                lambda written: self._answer_of(written.tokens, written.probabilities),
            )
        if world_size == 1:
            return answers
        gathered = processes.all_gather_object(None if answers is None else [[a.text, a.score] for a in answers])
        if any(part is None for part in gathered):
            return None
        return [Answer(*gathered[i % world_size][i // world_size]) for i in range(len(texts))]

    def _answer_of(self, tokens: list[int], probabilities: list[float]) -> Answer:
        """Return the answer of generated tokens, up to the end of text; its score is their mean probability."""
        end = next((i + 1 for i, token in enumerate(tokens) if token in self.eos_ids), len(tokens))
        text = self.tokenizer.decode(tokens[:end], skip_special_tokens=True).strip()
        return Answer(text, sum(probabilities[:end]) / end)

    @property
    def base(self) -> Any:
        """The transformers model with the LoRA layers in it, without the PEFT wrapper."""
        return self.model.get_base_model() if self.options.lora is not None else self.model  # type: ignore[operator]

    def _greedy_config(self, config: Any) -> Any:
        """Return a greedy decoding configuration with the special tokens of ``config`` and nothing else of it."""
        ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        eos = list(dict.fromkeys(i for i in [self.tokenizer.eos_token_id, *ends] if i is not None))
        start = getattr(config, "decoder_start_token_id", None)
        if start is None:
            start = getattr(self.base.config, "decoder_start_token_id", None)
        return GenerationConfig(
            max_new_tokens=self.lengths.target,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            bos_token_id=config.bos_token_id,
            eos_token_id=eos,
            pad_token_id=self.tokenizer.pad_token_id,
            decoder_start_token_id=start,
            forced_bos_token_id=getattr(config, "forced_bos_token_id", None),
        )

    def check_labels(self, spec: AnswerSpec, where: str) -> None:
        remedy = "Give them other names, or use a model whose tokenizer keeps them apart."
        reading = Reading(where, "training.max_target", self.tokenizer.unk_token_id, remedy)
        labels = spec.labels or ()
        for tokens in self._label_tokens(labels):
            refuse_equal_tokens(dict(zip(labels, tokens, strict=True)), reading)

    def unwritable_labels(self, spec: AnswerSpec) -> dict[str, str]:
        if spec.labels is None or spec.mode != "generate" or spec.metric not in ("accuracy", "exact_match"):
            return {}
        ways = self._label_tokens(spec.labels)
        written = {
            label: [self.tokenizer.decode(way[i].kept, skip_special_tokens=True).strip() for way in ways]
            for i, label in enumerate(spec.labels)
        }
        score = TEXT_SCORES[spec.metric]
        return {label: texts[0] for label, texts in written.items() if not score(texts, [label] * len(texts)).any()}

    @abstractmethod
    def _label_tokens(self, labels: Sequence[str]) -> list[list[LabelTokens]]:
        """Return the tokens of each label as an answer, for every way in which this kind of model writes answers."""

    def _answer_batch(self, encoded: list[list[int]], spec: AnswerSpec) -> list[Answer]:
        if spec.mode == "generate":
            return self._generate(encoded)
        labels = spec.require_labels("The answer mode 'rank'")
        best = self._log_likelihoods(encoded, labels).softmax(-1).max(-1)
        return [Answer(labels[i], score) for score, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]

    @abstractmethod
    def _inputs(self, ids: list[list[int]]) -> dict[str, torch.Tensor]:
        """Return ``input_ids`` and ``attention_mask`` (texts x tokens) for ``generate``."""

    @abstractmethod
    def _log_likelihoods(self, ids: list[list[int]], labels: tuple[str, ...]) -> torch.Tensor:
        """Return each label's summed log-probability, end of text included (texts x labels, fp32, nats)."""

    def _generate(self, ids: list[list[int]]) -> list[Answer]:
        probabilities = GreedyProbability()
        generated = self.model.generate(  # type: ignore[operator]
            **self._inputs(ids), logits_processor=LogitsProcessorList([probabilities])
        )
        tokens = generated[:, generated.shape[1] - len(probabilities.steps) :].tolist()
        confidence = torch.stack(probabilities.steps, 1).tolist()
        return [self._answer_of(row, probability) for row, probability in zip(tokens, confidence, strict=True)]


def summed_log_probability(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the log-probability of each row of ``labels``, summed over its tokens: fp32, in nats.

    Args:
        logits: rows x tokens x vocabulary, aligned with ``labels``.
        labels: rows x tokens; -100 is ignored.
    """
    losses = functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
    )
    return -losses.view_as(labels).sum(1)
