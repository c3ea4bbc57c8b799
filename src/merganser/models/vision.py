"""Backbone ``matcher`` for images: image embeddings compared with frozen vectors of the labels.

Where the model has a text encoder beside its image encoder (CLIP, SigLIP), a label's vector is the embedding of its
text, as MagMax (Marczak et al., ECCV 2024) uses CLIP. Where it has none (ViT, DeiT, DINOv2), it is a class prototype:
the mean of the unit vectors that the *pretrained* encoder gives to the class's training images, normalised to length 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from merganser.errors import InputError
from merganser.models.base import Feature, LoadedModel, Modality
from merganser.models.distinct_labels import LabelTokens, Reading
from merganser.models.matcher import OTHER_TEXTS, LabelBank, LabelMatcher
from merganser.models.options import Pooling
from merganser.streams.answers import AnswerSpec
from merganser.streams.images.picture import Picture

if TYPE_CHECKING:
    from merganser.streams.task import Example

PROTOTYPE_BATCH = 64
"""Images per forward pass while prototypes are computed; fixed, so that they depend on the images alone."""


class VisionProcessor:
    """Preprocesses images (and label texts) for a model, as a tokenizer does for texts.

    Attributes:
        processor: the model's own image processor (sizes, rescaling, normalisation).
        tokenizer: of the text encoder; ``None`` if there is none.
        mode: ``L`` for models of one channel, else ``RGB``.
    """

    def __init__(self, processor: Any, tokenizer: Any | None, channels: int) -> None:
        self.processor = processor
        self.tokenizer = tokenizer
        self.mode = "L" if channels == 1 else "RGB"

    def pixel_values(self, pictures: Sequence[Picture]) -> torch.Tensor:
        """Decode and preprocess images (images x channels x height x width).

        Raises:
            InputError: an image that cannot be decoded; the message names it.
        """
        images = [picture.decode(self.mode) for picture in pictures]
        return self.processor(images=images, return_tensors="pt")["pixel_values"]

    def save_pretrained(self, folder: Path) -> None:
        """Write files that ``AutoImageProcessor`` and ``AutoTokenizer`` load."""
        self.processor.save_pretrained(folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)


def pooled_output(output: Any) -> torch.Tensor:
    """Return the pooled vectors (rows x width) in the output of ``get_image_features`` and ``get_text_features``."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def image_vectors(model: Any, pixel_values: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """Return one unit vector per image (images x width), fp32.

    A model with a text encoder pools and projects by itself. Otherwise ``mean`` averages all tokens of the last layer
    (all positions of a convolutional map), ``cls`` takes the first token.
    """
    if hasattr(model, "get_image_features"):
        vectors = pooled_output(model.get_image_features(pixel_values=pixel_values)).float()
    else:
        hidden = model(pixel_values=pixel_values).last_hidden_state.float()
        if hidden.ndim == 4:
            hidden = hidden.flatten(2).transpose(1, 2)  # convolutional: channels before positions
        vectors = hidden[:, 0] if pooling == "cls" else hidden.mean(1)
    return functional.normalize(vectors, dim=-1)


class VisionModule(LabelBank):
    """An image encoder with its pooling."""

    def embed(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return unit vectors (images x width) in fp32."""
        return image_vectors(self.encoder, pixel_values, self.pooling)

    def forward(
        self, pixel_values: torch.Tensor, candidates: torch.Tensor, labels: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Run :meth:`compare` for images (images x channels x height x width)."""
        return self.compare(self.embed(pixel_values), candidates, labels)


class VisionMatcher(LabelMatcher):
    """Backbone of kind ``matcher`` for images; ``tokenizer`` is a :class:`VisionProcessor`.

    Label vectors come from the text encoder, or from :meth:`prepare_labels`. Prototypes must be stored for as long as
    the model is used: they grow with the number of classes.
    """

    modality: Modality = "image"
    module_class = VisionModule
    tokenizer: VisionProcessor

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__(loaded)
        self.has_text_encoder = self.tokenizer.tokenizer is not None

    def check_examples(self, examples: Sequence[Example], spec: AnswerSpec) -> None:
        self.check_preferences(spec)
        labels = spec.require_labels("A matcher of images")
        if any(example.image is None for example in examples):
            raise InputError(
                f"The model {self.options.name} reads images, but the task has texts.",
                "Give it images (a folder, IDX files, a field 'image'), or choose a model that reads text.",
            )
        absent = sorted(set(labels) - {example.output for example in examples} - set(self._rows))
        if absent and not self.has_text_encoder:
            raise InputError(
                f"The label '{absent[0]}' has no training image, and the model {self.options.name} has no text encoder "
                "that could embed its text.",
                "Give it images, or remove the label.",
            )

    def check_labels(self, spec: AnswerSpec, where: str) -> None:
        # Prototypes are computed by prepare_labels, and checked when they are there.
        if self.has_text_encoder or all(label in self._rows for label in spec.require_labels("A matcher of images")):
            super().check_labels(spec, where)

    def _reading(self, where: str) -> Reading:
        if not self.has_text_encoder:
            return Reading(where, "", None, "Their images are the same: give each label images of its own.")
        tokenizer: Any = self.tokenizer.tokenizer
        return Reading(where, "", tokenizer.unk_token_id, OTHER_TEXTS)

    def _label_tokens(self, texts: Sequence[str]) -> list[LabelTokens]:
        tokenizer: Any = self.tokenizer.tokenizer
        if tokenizer is None:
            return []
        config: Any = self.model.config
        positions = config.text_config.max_position_embeddings
        whole = tokenizer(list(texts), verbose=False)["input_ids"]
        kept = tokenizer(list(texts), truncation=True, max_length=positions)["input_ids"]
        return [LabelTokens(*label) for label in zip(texts, map(tuple, whole), map(tuple, kept), strict=True)]

    def prepare_labels(self, examples: Sequence[Example], spec: AnswerSpec) -> None:
        if self.has_text_encoder:
            return
        pictures: dict[str, list[Picture]] = {
            label: [] for label in spec.require_labels("A matcher of images") if label not in self._rows
        }
        for example in examples:
            if example.output in pictures and example.image is not None:
                pictures[example.output].append(example.image)
        if pictures:
            given = list(pictures.values())
            vectors = self.parts.vectors(given, lambda: torch.stack([self._prototype(images) for images in given]))
            self._add(list(pictures), vectors)

    def _prototype(self, images: Sequence[Picture]) -> torch.Tensor:
        """Return the mean direction (width) of images by the pretrained encoder."""
        with self.pretrained() as model:
            total = sum(
                image_vectors(
                    model,
                    self.tokenizer.pixel_values(images[i : i + PROTOTYPE_BATCH]).to(self.device),
                    self.options.pooling,
                ).sum(0)
                for i in range(0, len(images), PROTOTYPE_BATCH)
            )
        assert isinstance(total, torch.Tensor)
        return functional.normalize(total, dim=-1)

    def prototypes(self, labels: Sequence[str]) -> dict[str, torch.Tensor]:
        if self.has_text_encoder:
            return {}
        return {label: self.module.bank[self._rows[label]].cpu().clone() for label in labels}

    def load_prototypes(self, prototypes: Mapping[str, torch.Tensor]) -> None:
        if self.has_text_encoder:
            return
        self._rows.clear()
        self.module.bank = self.module.bank[:0]
        for label, vector in prototypes.items():
            self._add([label], vector.unsqueeze(0))

    def _row_name(self, spec: AnswerSpec, label: str) -> str:
        return super()._row_name(spec, label) if self.has_text_encoder else label

    def label_rows(self, spec: AnswerSpec) -> list[int]:
        if self.has_text_encoder:
            return super().label_rows(spec)
        labels = spec.require_labels("A matcher of images")
        for label in labels:
            if label not in self._rows:
                raise InputError(f"The label '{label}' has no prototype.", "Learn a task that has images of it first.")
        return [self._rows[label] for label in labels]

    def features(self, examples: Sequence[Example], spec: AnswerSpec) -> list[Feature]:
        return [
            {"image": example.image, "candidates": rows, "label": label, "length": 1}
            for example, (rows, label) in zip(examples, self.candidates(examples, spec), strict=True)
        ]

    def collate(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        return {
            "pixel_values": self.tokenizer.pixel_values([feature["image"] for feature in features]),
            **self.collate_labels(features),
        }

    def _encode(self, texts: Sequence[str | Picture]) -> list[Picture]:
        return [text if isinstance(text, Picture) else Picture(text, path=Path(text).expanduser()) for text in texts]

    def _size(self, encoded: Any) -> int:
        return 1  # the processor gives all images one size

    def _forward(self, encoded: list[Picture], candidates: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.module(self.tokenizer.pixel_values(encoded).to(self.device), candidates)

    def _embed_pretrained(self, texts: list[str]) -> torch.Tensor:
        tokenizer: Any = self.tokenizer.tokenizer
        vectors = []
        with self.pretrained() as model:
            positions = model.config.text_config.max_position_embeddings
            # SigLIP was trained on padded texts and takes its vector from the last position.
            padding = "max_length" if model.config.model_type.startswith("siglip") else False
            for text in texts:
                batch = tokenizer(text, truncation=True, max_length=positions, padding=padding, return_tensors="pt")
                output = model.get_text_features(input_ids=batch["input_ids"].to(self.device))
                vectors.append(functional.normalize(pooled_output(output).float(), dim=-1))
        return torch.cat(vectors)
