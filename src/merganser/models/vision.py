"""``matcher`` for images: an image encoder compared with frozen vectors of the labels.

Where the model has a text encoder beside its image encoder (CLIP, SigLIP), a label's vector is the embedding of its
text, as MagMax (Marczak et al., ECCV 2024) uses CLIP. Where it has none (ViT, DeiT, DINOv2), it is a class prototype:
the mean of the unit vectors that the *pretrained* encoder gives to the class's training images, at length 1 again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch.nn import functional

from merganser.errors import InputError
from merganser.models.base import Answer, AnswerSpec, Feature, Loaded
from merganser.models.matcher import LabelBank, LabelMatcher
from merganser.models.options import Pooling
from merganser.streams.images import Picture

if TYPE_CHECKING:
    from merganser.streams.task import Example

PROTOTYPE_BATCH = 64
"""Images per forward pass while prototypes are made; fixed, so that they depend on the images alone."""


class ImageReader:
    """How a model reads images (and label texts): what a tokenizer is for texts.

    Attributes:
        processor: the model's own image processor (sizes, rescaling, normalisation).
        tokenizer: of the text encoder; ``None`` where there is none.
        mode: ``L`` for models of one channel, else ``RGB``.
    """

    def __init__(self, processor: Any, tokenizer: Any | None, channels: int) -> None:
        self.processor = processor
        self.tokenizer = tokenizer
        self.mode = "L" if channels == 1 else "RGB"

    def pixels(self, pictures: Sequence[Picture]) -> torch.Tensor:
        """Images x channels x height x width, as the model wants them.

        Raises:
            InputError: an image that cannot be decoded; names it.
        """
        images = [picture.decode(self.mode) for picture in pictures]
        return self.processor(images=images, return_tensors="pt")["pixel_values"]

    def save_pretrained(self, folder: Path) -> None:
        """Write what ``AutoImageProcessor`` and ``AutoTokenizer`` read."""
        self.processor.save_pretrained(folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)


def pooled(output: Any) -> torch.Tensor:
    """The pooled vectors (rows x width) in what ``get_image_features`` and ``get_text_features`` return."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def image_vectors(model: Any, pixel_values: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """One unit vector per image (images x width), fp32.

    A model with a text encoder pools and projects by itself. Otherwise ``mean`` averages all tokens of the last layer
    (all places of a convolutional map), ``cls`` takes the first token.
    """
    if hasattr(model, "get_image_features"):
        vectors = pooled(model.get_image_features(pixel_values=pixel_values)).float()
    else:
        hidden = model(pixel_values=pixel_values).last_hidden_state.float()
        if hidden.ndim == 4:
            hidden = hidden.flatten(2).transpose(1, 2)  # convolutional: channels before places
        vectors = hidden[:, 0] if pooling == "cls" else hidden.mean(1)
    return functional.normalize(vectors, dim=-1)


class VisionModule(LabelBank):
    """An image encoder with its pooling."""

    def __init__(self, encoder: Any, pooling: Pooling, temperature: float) -> None:
        super().__init__(encoder, temperature)
        self.pooling = pooling

    def embed(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Unit vectors (images x width) in fp32."""
        return image_vectors(self.encoder, pixel_values, self.pooling)

    def forward(
        self, pixel_values: torch.Tensor, candidates: torch.Tensor, labels: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """:meth:`compare` for images (images x channels x height x width)."""
        return self.compare(self.embed(pixel_values), candidates, labels)


class VisionMatcher(LabelMatcher):
    """Backbone of kind ``matcher`` for images; ``tokenizer`` is an :class:`ImageReader`.

    Label vectors come from the text encoder, or from :meth:`prepare_labels`. Prototypes must be kept for as long as the
    model is used: they grow with the number of classes.
    """

    reads: ClassVar[Literal["text", "image"]] = "image"
    tokenizer: ImageReader

    def __init__(self, loaded: Loaded) -> None:
        super().__init__(loaded)
        self.reads_labels = self.tokenizer.tokenizer is not None
        self._module = VisionModule(self.model, self.options.pooling, self.options.temperature).to(self.device)

    @property
    def module(self) -> VisionModule:  # type: ignore[override]
        return self._module

    def check_examples(self, examples: Sequence[Example], spec: AnswerSpec) -> None:
        labels = spec.require_labels("A matcher of images")
        if any(example.image is None for example in examples):
            raise InputError(
                f"The model {self.options.name} reads images, and the task has texts.",
                "Give it images (a folder, IDX files, a field 'image'), or choose a model that reads text.",
            )
        absent = sorted(set(labels) - {example.output for example in examples} - set(self._rows))
        if absent and not self.reads_labels:
            raise InputError(
                f"The label '{absent[0]}' has no training image, and the model {self.options.name} has no text encoder "
                "that could read it.",
                "Give it images, or remove the label.",
            )

    def prepare_labels(self, examples: Sequence[Example], spec: AnswerSpec) -> None:
        if self.reads_labels:
            return
        pictures: dict[str, list[Picture]] = {
            label: [] for label in spec.require_labels("A matcher of images") if label not in self._rows
        }
        for example in examples:
            if example.output in pictures and example.image is not None:
                pictures[example.output].append(example.image)
        for label, images in pictures.items():
            self._add([label], self._prototype(images).unsqueeze(0))

    def _prototype(self, images: Sequence[Picture]) -> torch.Tensor:
        """The mean direction (width) of images by the pretrained encoder."""
        with self.pretrained() as model:
            total = sum(
                image_vectors(
                    model, self.tokenizer.pixels(images[i : i + PROTOTYPE_BATCH]).to(self.device), self.options.pooling
                ).sum(0)
                for i in range(0, len(images), PROTOTYPE_BATCH)
            )
        assert isinstance(total, torch.Tensor)
        return functional.normalize(total, dim=-1)

    def prototypes(self, labels: Sequence[str]) -> dict[str, torch.Tensor]:
        if self.reads_labels:
            return {}
        return {label: self.module.bank[self._rows[label]].cpu().clone() for label in labels}

    def load_prototypes(self, prototypes: Mapping[str, torch.Tensor]) -> None:
        for label, vector in prototypes.items():
            if label not in self._rows:
                self._add([label], vector.unsqueeze(0))

    def label_rows(self, spec: AnswerSpec) -> list[int]:
        if self.reads_labels:
            return super().label_rows(spec)
        labels = spec.require_labels("A matcher of images")
        for label in labels:
            if label not in self._rows:
                raise InputError(f"The label '{label}' has no prototype.", "Learn a task that has images of it first.")
        return [self._rows[label] for label in labels]

    def features(self, examples: Sequence[Example], spec: AnswerSpec) -> list[Feature]:
        return [
            {"image": example.image, "candidates": candidates, "label": label, "length": 1}
            for example, (candidates, label) in zip(examples, self.places(examples, spec), strict=True)
        ]

    def collate(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        return {
            "pixel_values": self.tokenizer.pixels([feature["image"] for feature in features]),
            **self.collate_labels(features),
        }

    def _encode(self, texts: Sequence[str | Picture]) -> list[Picture]:
        return [text if isinstance(text, Picture) else Picture(text, path=Path(text).expanduser()) for text in texts]

    def _size(self, encoded: Any) -> int:
        return 1  # all images are read at one size

    def _answer_batch(self, ids: list[Picture], spec: AnswerSpec) -> list[Answer]:
        candidates = torch.tensor([self.label_rows(spec)] * len(ids), dtype=torch.long, device=self.device)
        logits = self.module(self.tokenizer.pixels(ids).to(self.device), candidates)["logits"]
        return self.choose(logits, spec.require_labels("A matcher of images"))

    def _embed_pretrained(self, texts: list[str]) -> torch.Tensor:
        tokenizer: Any = self.tokenizer.tokenizer
        vectors = []
        with self.pretrained() as model:
            positions = model.config.text_config.max_position_embeddings
            # SigLIP was trained on padded texts and reads its vector off the last place.
            padding = "max_length" if model.config.model_type.startswith("siglip") else False
            for text in texts:
                read = tokenizer(text, truncation=True, max_length=positions, padding=padding, return_tensors="pt")
                ids = read["input_ids"].to(self.device)
                vectors.append(functional.normalize(pooled(model.get_text_features(input_ids=ids)).float(), dim=-1))
        return torch.cat(vectors)
