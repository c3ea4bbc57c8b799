r"""Batches of causal models without padding: several texts in one row, and no attention between them.

The texts of a batch are drawn and collated as ever; only their layout changes. So a step has the same examples, the
memory keeps its share of them, and the loss, a mean over label tokens, is the same to rounding.

The position ids of every text begin at 0. From them transformers finds where texts begin and masks attention between
texts: in ``masking_utils`` for eager and SDPA attention, as cumulative lengths for flash attention. It does so only
without an attention mask and without a key-value cache, and not every architecture calls it:
:func:`check_packing` tries it on the model itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from merganser.errors import InputError
from merganser.models.base import IGNORE_INDEX, eval_mode
from merganser.models.padding import MULTIPLE
from merganser.models.pairs import is_pairs
from merganser.models.precision import autocast
from merganser.training.options import TrainingOptions
from merganser.training.rehearsal import Collator, without_cache

FILLER_POSITION = 1
"""Position of tokens that fill a row: no text begins at it, and every model has it."""

_PACKED_KEYS = {"input_ids", "attention_mask", "labels"}


class Collating(Protocol):
    """A model with a collator for it, such as a :class:`~merganser.models.base.Backbone`."""

    @property
    def module(self) -> nn.Module: ...

    def collate(self, features: list[dict[str, Any]], /) -> Mapping[str, Any]:
        """Turn a list of features into a padded batch."""
        ...


def training_collator(model: Collating, options: TrainingOptions) -> Collator:
    """Return the collator of training batches: the model's own, or one that packs what it returns, but no pairs."""
    if options.packing == "none":
        return model.collate
    # Flash attention finds the beginnings of texts in a single row only.
    in_one_row = options.packing == "padding_free" or "flash" in attention_of(model.module)

    def collate(features: list[Any]) -> Mapping[str, Any]:
        return pack(model.collate(features), None if in_one_row else options.pack_length or 0)

    return collate


def attention_of(module: nn.Module) -> str:
    """Return the name of a model's attention implementation, such as ``sdpa``; empty if it has none."""
    return str(getattr(getattr(module, "config", None), "_attn_implementation", None) or "")


def pack(batch: Mapping[str, Tensor], length: int | None) -> dict[str, Tensor]:
    """Lay the texts of a padded batch out in rows without padding between them.

    Args:
        batch: ``input_ids``, ``attention_mask`` and ``labels`` (texts x tokens).
        length: tokens of a row, more if a text is longer; ``None``: all texts in one row.

    Returns:
        ``input_ids``, ``position_ids`` and ``labels`` (rows x tokens). The first label of every text is ignored: a
        token is predicted from those before it. A batch of preferences is returned as it is.

    Raises:
        ValueError: the batch has other tensors, which cannot be packed.
    """
    if is_pairs(batch):  # their likelihoods are summed row by row
        return dict(batch)
    if set(batch) != _PACKED_KEYS:
        raise ValueError(f"a batch with {', '.join(sorted(batch))} cannot be packed")
    kept = batch["attention_mask"].bool()
    texts = [ids[real] for ids, real in zip(batch["input_ids"], kept, strict=True)]
    labels = [row[real] for row, real in zip(batch["labels"], kept, strict=True)]
    sizes = [len(text) for text in texts]
    rows = [list(range(len(texts)))] if length is None else fill_rows(sizes, max(length, *sizes))
    width = max(sum(sizes[i] for i in row) for row in rows)
    width = -(-width // MULTIPLE) * MULTIPLE
    packed = {
        "input_ids": torch.zeros(len(rows), width, dtype=torch.long),
        "position_ids": torch.full((len(rows), width), FILLER_POSITION),
        "labels": torch.full((len(rows), width), IGNORE_INDEX),
    }
    for number, row in enumerate(rows):
        start = 0
        for i in row:
            end = start + sizes[i]
            packed["input_ids"][number, start:end] = texts[i]
            packed["position_ids"][number, start:end] = torch.arange(sizes[i])
            packed["labels"][number, start + 1 : end] = labels[i][1:]
            start = end
    return packed


def fill_rows(sizes: Sequence[int], length: int) -> list[list[int]]:
    """Distribute texts over rows of ``length`` tokens: the longest text first, into the first row with room for it.

    Returns:
        the positions in ``sizes`` of each row's texts. First-fit decreasing needs at most 11/9 of the fewest possible
        rows, and one (Johnson 1973).
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        chosen = next((row for row, left in enumerate(room) if left >= sizes[i]), None)
        if chosen is None:
            chosen = len(rows)
            rows.append([])
            room.append(length)
        rows[chosen].append(i)
        room[chosen] -= sizes[i]
    return rows


def check_packing(module: nn.Module, name: str, precision: Literal["bf16", "fp32"]) -> None:
    """Refuse a model that does not keep the texts of a row apart; a row of two short texts of random tokens is tried.

    Args:
        module: the model, with or without an adapter.
        name: of the model, for messages.
        precision: of its forward passes.

    Raises:
        InputError: the model takes no position ids, a text changes the output of the next one, or a text in a row gets
            another output than alone.
    """
    unwrap: Any = getattr(module, "get_base_model", None)
    base: Any = module if unwrap is None else unwrap()
    kind, remedy = base.config.model_type, "Use training.packing: none, or another model."
    if "position_ids" not in inspect.signature(base.forward).parameters:
        raise InputError(
            f"The model {name} ('{kind}') takes no position ids, so that packed texts would be read as one.", remedy
        )
    draw = torch.Generator().manual_seed(0)
    vocabulary = base.get_input_embeddings().num_embeddings
    first, other, second = (torch.randint(vocabulary, (size,), generator=draw).tolist() for size in (11, 11, 13))
    device = next(module.parameters()).device
    with eval_mode(module), torch.no_grad(), without_cache(module), autocast(device, precision):

        def outputs(*texts: list[int]) -> Tensor:
            ids = torch.tensor([[token for text in texts for token in text]], device=device)
            positions = torch.tensor([[place for text in texts for place in range(len(text))]], device=device)
            return base(input_ids=ids, position_ids=positions).logits[0, -len(texts[-1]) :].double()

        packed, after_other, alone = outputs(first, second), outputs(other, second), outputs(second)
    size = float(alone.std()) or 1.0
    exact = precision == "fp32" and base.dtype == torch.float32
    if float((packed - after_other).abs().max()) > 1e-4 * size:
        raise InputError(
            f"The model {name} ('{kind}') reads packed texts as one: a text changes the output of the next.", remedy
        )
    if not float((packed - alone).abs().max()) <= (1e-3 if exact else 0.1) * size:
        raise InputError(f"The model {name} ('{kind}') gives a packed text another output than it has alone.", remedy)
