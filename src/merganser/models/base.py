"""What every backbone is asked: read examples, answer texts, keep and give back its weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from merganser import processes
from merganser.errors import InputError, nearest
from merganser.models import lora, stacking, weight_files
from merganser.models.options import Kind, ModelOptions
from merganser.models.precision import autocast, resolve_precision

if TYPE_CHECKING:
    from torch import nn

    from merganser.streams.images import Picture
    from merganser.streams.task import Example

Feature = dict[str, Any]
"""One tokenised example: plain integers and lists of integers (or a still encoded image); ``length`` is the number of
tokens read and written."""

IGNORED = -100
"""Label of a position that takes no part in the loss, as in ``torch.nn.functional.cross_entropy``."""


@dataclass(frozen=True)
class AnswerSpec:
    """How the texts of one task are answered.

    Attributes:
        labels: the closed set of answers, or ``None`` for free text.
        label_texts: what a matcher reads in place of a label; labels that are not in it stand for themselves.
        mode: ``generate`` (greedy decoding) or ``rank`` (the likeliest label). A matcher always ranks.

    Raises:
        InputError: an empty or repeated label, ranking without labels, or a text for a label that does not exist.
    """

    labels: tuple[str, ...] | None = None
    label_texts: Mapping[str, str] = field(default_factory=dict)
    mode: Literal["generate", "rank"] = "generate"

    def __post_init__(self) -> None:
        if self.mode not in ("generate", "rank"):
            raise InputError(f"The answer mode '{self.mode}' does not exist.", "Use 'generate' or 'rank'.")
        if self.labels is None:
            if self.mode == "rank":
                raise InputError("The answer mode 'rank' needs a label set.", "Give labels, or use 'generate'.")
            return
        if not self.labels or any(not label.strip() for label in self.labels):
            raise InputError("The label set is empty or holds an empty label.", "Give every label a name.")
        if len(set(self.labels)) != len(self.labels):
            twice = next(label for i, label in enumerate(self.labels) if label in self.labels[:i])
            raise InputError(f"The label '{twice}' is in the label set twice.", "Give each label once.")
        for label, text in self.label_texts.items():
            if not text.strip():
                raise InputError(f"The text for the label '{label}' is empty.", "Give a text, or leave it out.")

    def text_of(self, label: str) -> str:
        """The text that stands for ``label``."""
        return self.label_texts.get(label, label)

    def require_labels(self, what: str) -> tuple[str, ...]:
        """The labels; InputError where there are none."""
        if self.labels is None:
            raise InputError(f"{what} needs a label set.", "Give the task labels, or use kind 'seq2seq' or 'causal'.")
        return self.labels

    def check_output(self, output: str) -> None:
        """InputError unless ``output`` is a label."""
        if self.labels is not None and output not in self.labels:
            raise InputError(
                f"The output '{output}' is not in the task's label set of {len(self.labels)}.",
                nearest(output, self.labels) or f"Known labels: {', '.join(self.labels[:10])}.",
            )


@dataclass(slots=True)
class Answer:
    """One answer.

    ``score`` is in [0, 1]: the probability among the candidates where labels are ranked, the mean probability of the
    written tokens (end of text included) where text is generated.
    """

    text: str
    score: float


@dataclass(frozen=True, slots=True)
class Lengths:
    """Longest input and longest answer in tokens, special tokens included; longer ones are cut at the end."""

    input: int
    target: int

    def __post_init__(self) -> None:
        for name in ("input", "target"):
            if getattr(self, name) < 2:
                raise InputError(f"The {name} length is {getattr(self, name)} tokens.", "Use at least 2.")


@dataclass(frozen=True)
class Loaded:
    """What a backbone is made of.

    Attributes:
        model: the pretrained model, wrapped by PEFT when ``options.lora``.
        tokenizer: the model's own; of a model that reads images, what reads them.
        options, lengths: as asked.
        load_pretrained: reads a fresh copy of the pretrained model; for all-weights training only.
    """

    model: nn.Module
    tokenizer: Any
    options: ModelOptions
    lengths: Lengths
    load_pretrained: Callable[[], nn.Module]


class Backbone(ABC):
    """A pretrained model with the weights that are trained.

    Attributes:
        kind: ``seq2seq``, ``causal`` or ``matcher``.
        reads: what examples must hold.
        module: what a ``transformers.Trainer`` trains; ``module(**batch)["loss"]`` is the mean negative log-likelihood
            of the answers' tokens (matcher: of the right labels) in nats.
        tokenizer: the model's own.
        options, lengths: as asked.
        precision: what ``options.precision`` came to on this machine, ``bf16`` or ``fp32``.
    """

    kind: Kind
    reads: ClassVar[Literal["text", "image"]] = "text"

    def __init__(self, loaded: Loaded) -> None:
        self.model = loaded.model
        self.tokenizer = loaded.tokenizer
        self.options = loaded.options
        self.lengths = loaded.lengths
        self.precision = resolve_precision(loaded.options.precision)
        self._load_pretrained = loaded.load_pretrained

    @property
    def module(self) -> nn.Module:
        return self.model

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    # -- reading ---------------------------------------------------------------------------------------------------

    def check_examples(self, examples: Sequence[Example], spec: AnswerSpec) -> None:
        """Refuse training examples that this model cannot learn from, before any work.

        Raises:
            InputError: images for a model that reads text, or texts for one that reads images; without a text encoder,
                a label of which there is no image.
        """
        if any(example.image is not None for example in examples):
            raise InputError(
                f"The model {self.options.name} reads text, and the task has images.",
                "Choose an image encoder (kind 'matcher': CLIP, SigLIP, ViT, DeiT, DINOv2 ...).",
            )

    def prepare_labels(self, examples: Sequence[Example], spec: AnswerSpec) -> None:  # noqa: B027
        """See a task's training examples before it is scored or learned for the first time.

        An image encoder without a text encoder makes its class prototypes here; nobody else has anything to do.
        """

    def prototypes(self, labels: Sequence[str]) -> dict[str, torch.Tensor]:
        """Label -> frozen vector (width), fp32, made by :meth:`prepare_labels`; nothing can make them again later."""
        return {}

    def load_prototypes(self, prototypes: Mapping[str, torch.Tensor]) -> None:  # noqa: B027
        """Take back what :meth:`prototypes` gave."""

    @abstractmethod
    def features(self, examples: Sequence[Example], spec: AnswerSpec) -> list[Feature]:
        """Tokenised examples in their order, ready for :meth:`collate`.

        Raises:
            InputError: an output that is not among the labels (matcher).
        """

    @abstractmethod
    def collate(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        """A padded batch for ``module(**batch)``. Features of tasks with different label sets may be mixed."""

    # -- answering -------------------------------------------------------------------------------------------------

    @abstractmethod
    def _encode(self, texts: Sequence[Any]) -> list[Any]:
        """Token ids of each text as they are read before an answer (images: the images)."""

    def _size(self, encoded: Any) -> int:
        """Tokens of what :meth:`_encode` returned for one text."""
        return len(encoded)

    @abstractmethod
    def _answer_batch(self, ids: list[Any], spec: AnswerSpec) -> list[Answer]:
        """Answers for one batch; runs in evaluation mode without gradients."""

    def answer(
        self,
        texts: Sequence[str] | Sequence[str | Picture],
        spec: AnswerSpec,
        batch_size: int = 32,
        on_progress: Callable[[int], None] | None = None,
        *,
        shared: bool = False,
    ) -> list[Answer]:
        """Answers in the order of ``texts``; deterministic. Where images are read, they are images or paths of such.

        Texts of similar length share a batch. Dropout is off inside and the training mode is put back. ``on_progress``
        is called after each batch with the number of texts answered since the last call.

        Args:
            shared: several processes answer the same texts, and do so together: each takes whole batches, so that
                every text is answered in the company in which one process would answer it.

        Raises:
            InputError: ``batch_size`` below 1, or a spec that the kind of model cannot answer.
        """
        number, turns = (processes.rank(), processes.world_size()) if shared else (0, 1)
        if batch_size < 1:
            raise InputError(f"The batch size is {batch_size}.", "Use at least 1.")
        with evaluating(self.module), torch.no_grad(), autocast(self.device, self.precision):
            encoded = self._encode(texts)
            # Longest first: a batch that does not fit in memory fails at once, not after an hour.
            order = sorted(range(len(encoded)), key=lambda i: (-self._size(encoded[i]), i))
            answers: dict[int, Answer] = {}
            for start in range(0, len(order), batch_size * turns):
                turn = order[start : start + batch_size * turns]
                chosen = turn[number * batch_size : (number + 1) * batch_size]
                if chosen:
                    found = self._answer_batch([encoded[i] for i in chosen], spec)
                    answers.update(zip(chosen, found, strict=True))
                if on_progress is not None:
                    on_progress(len(turn))
        if turns > 1:
            mine = [[i, answer.text, answer.score] for i, answer in answers.items()]
            answers = {i: Answer(text, score) for each in processes.all_gather_object(mine) for i, text, score in each}
        return [answers[i] for i in range(len(texts))]

    # -- weights ---------------------------------------------------------------------------------------------------

    def trainable(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name, in alphabetical order of names."""
        return dict(sorted((name, p) for name, p in self.module.named_parameters() if p.requires_grad))

    def save_weights(self, folder: Path) -> None:
        """Writes the trained weights: PEFT layout for LoRA, Hugging Face layout with tokenizer for all weights."""
        if self.options.lora is not None:
            weight_files.save_adapter(self.model, folder)
        else:
            weight_files.save_model(self.model, self.tokenizer, folder)

    def load_weights(self, folder: Path) -> None:
        """Reads what :meth:`save_weights` wrote, bit for bit, into the existing parameters.

        Raises:
            InputError: files missing, or made for another model or other LoRA options. The weights are then unchanged.
        """
        if self.options.lora is not None:
            weight_files.load_adapter(self.model, folder)
        else:
            weight_files.load_model(self.model, folder)

    def reset(self, seed: int) -> None:
        """Back to the pretrained start: fresh factors drawn from ``seed`` (LoRA), or the pretrained weights."""
        if self.options.lora is not None:
            stacking.put_earlier(self.model, None)
            lora.initialise(self.model, seed)
        else:
            weight_files.copy_weights(self._load_pretrained(), self.model)

    def stack_adapter(self, seed: int) -> None:
        """Freeze what the adapter has learned, and train fresh factors, drawn from ``seed``, beside it.

        The answers stay as they are. The rank of the adapter grows by that of the options; :meth:`save_weights` writes
        it as one adapter of the higher rank, and :meth:`load_weights` reads such a one.

        Raises:
            InputError: all weights are trained.
        """
        if self.options.lora is None:
            raise InputError("There is no adapter to grow: all weights are trained.", "Use model.lora.")
        stacking.put_earlier(self.model, stacking.joined(self.model)[0])
        lora.initialise(self.model, seed)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every submodule is in the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


ROUND = 8
"""Batches are padded to a multiple of this: kernels are built anew for every width, and like such widths best."""


def pad(rows: Sequence[Sequence[int]], value: int, left: bool = False, limit: int | None = None) -> torch.Tensor:
    """Integer rows as one contiguous LongTensor (rows x width), filled with ``value``.

    The width is that of the longest row, with a ``limit`` rounded up to a multiple of :data:`ROUND` but not above it.
    """
    width = max(len(row) for row in rows)
    if limit is not None:
        width = max(width, min(limit, -(-width // ROUND) * ROUND))
    filled = [
        [value] * (width - len(row)) + list(row) if left else list(row) + [value] * (width - len(row)) for row in rows
    ]
    return torch.tensor(filled, dtype=torch.long)


def mask(rows: Sequence[Sequence[int]], left: bool = False, limit: int | None = None) -> torch.Tensor:
    """1 where :func:`pad` keeps a token, 0 where it fills (LongTensor, rows x width)."""
    return pad([[1] * len(row) for row in rows], 0, left, limit)
