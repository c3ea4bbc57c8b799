"""The interface of all backbones: encode examples, answer texts, save and load weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from merganser import processes
from merganser.errors import InputError
from merganser.models import lora, stacking, weight_files
from merganser.models.options import Kind, ModelOptions
from merganser.models.parts import Parts
from merganser.models.precision import autocast, resolve_precision
from merganser.models.pretrained import Pretrained
from merganser.models.vocabulary import refuse_unreadable
from merganser.models.weight_format import Held
from merganser.streams.conversation import Conversation

if TYPE_CHECKING:
    from torch import nn

    from merganser.streams.answers import AnswerSpec
    from merganser.streams.bad_rows import Problem
    from merganser.streams.images.picture import Picture
    from merganser.streams.task import Example

Feature = dict[str, Any]
"""One tokenised example: plain integers and lists of integers (or an encoded image); ``length`` is the number of tokens
of input and answer."""

Modality = Literal["text", "image"]

IGNORE_INDEX = -100
"""Label of a position that the loss ignores, as in ``torch.nn.functional.cross_entropy``."""


@dataclass(slots=True, repr=False)
class Answer:
    """The answer to one text.

    ``score`` is in [0, 1]: the probability among the candidates where labels are ranked, the mean probability of the
    generated tokens (end of text included) where text is generated. ``task`` is the learned task that was chosen for
    the text; empty if there was nothing to choose.
    """

    text: str
    score: float
    task: str = ""

    def __repr__(self) -> str:
        chosen = f", task={self.task!r}" if self.task else ""
        return f"Answer(text={self.text!r}, score={self.score!r}{chosen})"


@dataclass(frozen=True, slots=True)
class Lengths:
    """Longest input and longest answer in tokens, special tokens included; longer ones are truncated at the end."""

    input: int
    target: int

    def __post_init__(self) -> None:
        for name in ("input", "target"):
            if getattr(self, name) < 2:
                raise InputError(f"The {name} length is {getattr(self, name)} tokens.", "Use at least 2.")


@dataclass(frozen=True, slots=True)
class Truncated:
    """Numbers of examples whose ``inputs`` and ``answers`` are longer than the model's lengths."""

    inputs: int = 0
    answers: int = 0


@dataclass(frozen=True)
class LoadedModel:
    """The arguments of a backbone's constructor.

    Attributes:
        model: the pretrained model, wrapped by PEFT if ``options.lora``.
        tokenizer: the model's own; for images a :class:`merganser.models.vision.VisionProcessor`.
        options, lengths: as configured.
        pretrained: the files and settings of the pretrained model.
        weights: how the frozen weights are held.
    """

    model: nn.Module
    tokenizer: Any
    options: ModelOptions
    lengths: Lengths
    pretrained: Pretrained
    weights: Held = "fp32"


class Backbone(ABC):
    """A pretrained model with its trained weights; encodes examples and answers texts.

    Attributes:
        kind: ``seq2seq``, ``causal`` or ``matcher``.
        modality: of the examples, ``text`` or ``image``.
        module: the module to train; ``module(**batch)["loss"]`` is the mean negative log-likelihood
            of the answers' tokens (matcher: of the correct labels) in nats.
        tokenizer: the model's own.
        options, lengths: as configured.
        precision: ``options.precision`` as resolved on this machine, ``bf16`` or ``fp32``.
        weights: how the frozen weights are held: ``options.weights`` as resolved for this model and machine.
        pretrained_from: the files and settings of the pretrained model.
        parts: where tokens and label vectors come from.
        has_chat_template: whether texts and conversations go through the tokenizer's chat template.
    """

    kind: Kind
    modality: Modality = "text"
    has_chat_template: bool = False

    def __init__(self, loaded: LoadedModel) -> None:
        self.model = loaded.model
        self.tokenizer = loaded.tokenizer
        self.options = loaded.options
        self.lengths = loaded.lengths
        self.precision = resolve_precision(loaded.options.precision)
        self.weights = loaded.weights
        self.pretrained_from = loaded.pretrained
        self.parts = Parts()

    @property
    def module(self) -> nn.Module:
        return self.model

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    # -- examples --------------------------------------------------------------------------------------------------

    def check_examples(self, examples: Sequence[Example], spec: AnswerSpec) -> None:
        """Refuse training examples that this model cannot learn from.

        Raises:
            InputError: preferences for a model that writes no text; images for a model that reads text, or texts for
                one that reads images; without a text encoder, a label that has no image.
        """
        self.check_preferences(spec)
        if any(example.image is not None for example in examples):
            raise InputError(
                f"The model {self.options.name} reads text, but the task has images.",
                "Choose an image encoder (kind 'matcher': CLIP, SigLIP, ViT, DeiT, DINOv2 ...).",
            )

    def check_preferences(self, spec: AnswerSpec) -> None:
        """Refuse a task of preferences for a model that writes no answers.

        Raises:
            InputError: it is one.
        """
        if spec.dpo is not None and self.kind == "matcher":
            raise InputError(
                f"The model {self.options.name} chooses labels, and preferences are learned by a model that writes.",
                "Use kind 'causal' or 'seq2seq'.",
            )

    def conversation_problems(self, examples: Sequence[Example]) -> list[Problem | None]:
        """Return what is wrong with each example's conversation for this model; ``None`` where nothing is."""
        return [None] * len(examples)

    @property
    def default_system(self) -> str:
        """Return the system prompt that the chat template puts in where none is given; empty where it puts in none."""
        return ""

    def check_labels(self, spec: AnswerSpec, where: str) -> None:  # noqa: B027
        """Refuse labels that this model cannot tell apart: cut, unknown or folded into one text, or of equal vectors.

        Args:
            where: the task, as a message begins.

        Raises:
            InputError: naming the labels and why.
        """

    def unwritable_labels(self, spec: AnswerSpec) -> dict[str, str]:
        """Return labels that generated text can never equal, cut or with unknown tokens: label -> the text instead."""
        return {}

    def count_truncated(self, examples: Sequence[Example], spec: AnswerSpec) -> Truncated:
        """Count the examples whose input or answer is longer than :attr:`lengths` and is cut at its end."""
        return Truncated()

    def shortened(self, features: Sequence[Feature], length: int) -> list[Feature]:
        """Cut texts to their first tokens where an answer to a part of a text is of use: where labels are chosen.

        Args:
            features: of :meth:`features`.
            length: tokens of a text, at most.

        Returns:
            The features as they are, for a model that writes its answers or reads images.
        """
        return list(features)

    def check_tokens(self, texts: Iterable[str]) -> None:
        """Refuse texts that hold a token of the tokenizer for which the model has no embedding.

        Raises:
            InputError: naming the token and the text.
        """
        refuse_unreadable(self.pretrained_from.unreadable, texts, self.options.name)

    def prepare_labels(self, examples: Sequence[Example], spec: AnswerSpec) -> None:  # noqa: B027
        """Prepare a task's labels from its training examples, before it is first evaluated or learned.

        An image encoder without a text encoder computes its class prototypes; other models need nothing.
        """

    def prototypes(self, labels: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return label -> frozen vector (width), fp32, computed by :meth:`prepare_labels`; they must be stored."""
        return {}

    def load_prototypes(self, prototypes: Mapping[str, torch.Tensor]) -> None:  # noqa: B027
        """Restore what :meth:`prototypes` returned, in the place of all that are there."""

    @abstractmethod
    def features(self, examples: Sequence[Example], spec: AnswerSpec) -> list[Feature]:
        """Return tokenised examples in their order, ready for :meth:`collate`.

        Raises:
            InputError: an output that is not among the labels (matcher).
        """

    @abstractmethod
    def collate(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        """Return a padded batch for ``module(**batch)``. Features of tasks with different label sets may be mixed."""

    # -- inference -------------------------------------------------------------------------------------------------

    @abstractmethod
    def _encode(self, texts: Sequence[Any]) -> list[Any]:
        """Return the token ids of each text as the model's input (for images: the images)."""

    def _size(self, encoded: Any) -> int:
        """Return the number of tokens of one encoded text."""
        return len(encoded)

    def _begin(self, encoded: Sequence[Any]) -> AbstractContextManager[None]:
        """Prepare for answering these texts, in batches, inside of the returned context."""
        return nullcontext()

    @abstractmethod
    def _answer_batch(self, encoded: list[Any], spec: AnswerSpec) -> list[Answer]:
        """Return the answers of one batch; called in evaluation mode without gradients."""

    def answer(
        self,
        texts: Sequence[str] | Sequence[str | Picture | Conversation],
        spec: AnswerSpec,
        batch_size: int = 32,
        on_progress: Callable[[int], None] | None = None,
        *,
        shared: bool = False,
    ) -> list[Answer]:
        """Answer texts, deterministically and in order.

        A model of images takes images or paths of image files; a model with a chat template also conversations that end
        before an answer.

        Texts of similar length share a batch. Dropout is off inside and the training mode is restored.

        Args:
            texts: the inputs.
            spec: how they are answered.
            batch_size: texts per forward pass.
            on_progress: called after each batch with the number of texts answered since the last call.
            shared: all processes call this with the same texts, and each answers whole batches of them, so that the
                composition of a batch does not depend on the number of processes.

        Raises:
            InputError: ``batch_size`` below 1, or a spec that this kind of model cannot answer.
        """
        rank, world_size = (processes.rank(), processes.world_size()) if shared else (0, 1)
        if batch_size < 1:
            raise InputError(f"The batch size is {batch_size}.", "Use at least 1.")
        self.check_tokens(text for given in texts for text in texts_in(given))
        with eval_mode(self.module), torch.no_grad(), autocast(self.device, self.precision):
            encoded = self._encode(texts)
            # Longest first: a batch that does not fit in memory fails at once, not after an hour.
            order = sorted(range(len(encoded)), key=lambda i: (-self._size(encoded[i]), i))
            answers: dict[int, Answer] = {}
            with self._begin(encoded):
                for start in range(0, len(order), batch_size * world_size):
                    batches = order[start : start + batch_size * world_size]
                    local = batches[rank * batch_size : (rank + 1) * batch_size]
                    if local:
                        answers.update(zip(local, self._answer_batch([encoded[i] for i in local], spec), strict=True))
                    if on_progress is not None:
                        on_progress(len(batches))
        if world_size > 1:
            rows = [[i, answer.text, answer.score] for i, answer in answers.items()]
            gathered = processes.all_gather_object(rows)
            answers = {i: Answer(text, score) for of_rank in gathered for i, text, score in of_rank}
        return [answers[i] for i in range(len(texts))]

    # -- weights ---------------------------------------------------------------------------------------------------

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters by name, sorted by name."""
        return dict(sorted((name, p) for name, p in self.module.named_parameters() if p.requires_grad))

    def save_weights(self, folder: Path) -> None:
        """Write the trained weights: PEFT layout for LoRA, otherwise Hugging Face layout with tokenizer."""
        if self.options.lora is not None:
            weight_files.save_adapter(self.model, folder)
        else:
            Path(folder).mkdir(parents=True, exist_ok=True)
            settings = self.pretrained_from.settings
            settings.save_model(self.model, Path(folder))
            settings.save_tokenizer(self.tokenizer, Path(folder))

    def load_weights(self, folder: Path) -> None:
        """Read what :meth:`save_weights` wrote, bit for bit, into the existing parameters.

        Raises:
            InputError: files missing, or written for another model or other LoRA options. The weights are unchanged
                then.
        """
        if self.options.lora is not None:
            weight_files.load_adapter(self.model, folder)
        else:
            weight_files.load_model(self.model, folder)

    def reset(self, seed: int) -> None:
        """Reset to the start of a run: initialise LoRA factors from ``seed``, or reload the pretrained weights.

        An adapter to begin with is read again.
        """
        if self.pretrained_from.adapter is not None:
            weight_files.load_adapter(self.model, self.pretrained_from.adapter)
        elif self.options.lora is not None:
            stacking.set_frozen_adapter(self.model, None)
            lora.initialise(self.model, seed)
        else:
            weight_files.copy_weights(self.pretrained_from.load(), self.model)

    def stack_adapter(self, seed: int) -> None:
        """Freeze the adapter's factors and add new trainable ones, initialised from ``seed``.

        The answers do not change. The rank of the adapter grows by ``options.lora.r``; :meth:`save_weights` writes one
        adapter of the higher rank, and :meth:`load_weights` reads it.

        Raises:
            InputError: all weights are trained.
        """
        if self.options.lora is None:
            raise InputError("There is no adapter to stack: all weights are trained.", "Use model.lora.")
        stacking.set_frozen_adapter(self.model, stacking.concatenate_adapters(self.model)[0])
        lora.initialise(self.model, seed)


def texts_in(given: str | Picture | Conversation) -> Iterable[str]:
    """Return the texts of one input; none of an image."""
    if isinstance(given, str):
        return [given]
    return given.texts() if isinstance(given, Conversation) else []


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode inside, and restore the mode of every submodule."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
