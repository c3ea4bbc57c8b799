"""Pairs of a chosen and a rejected answer to one prompt: their features, their batches, and the answers' likelihoods.

A batch of n pairs has 2 n rows, the chosen answers first, and one more tensor, ``dpo_pairs`` (n x 4): the reference's
log-probability of the chosen and of the rejected answer, beta, and 1 where log-probabilities are divided by the number
of tokens. :mod:`merganser.training.dpo` computes the loss from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from merganser import processes
from merganser.models.base import IGNORE_INDEX, Feature, Truncated, eval_mode
from merganser.models.precision import autocast
from merganser.streams.answers import AnswerSpec

if TYPE_CHECKING:
    from merganser.models.base import Backbone
    from merganser.streams.task import Example

PREFERENCE = "dpo_pairs"
REFERENCE = "reference"
"""Key of a feature: the reference's log-probabilities of the chosen and the rejected answer, once they are known."""


def pair_features(
    encode: Callable[[Sequence[Example], AnswerSpec], list[Feature]], examples: Sequence[Example], spec: AnswerSpec
) -> list[Feature]:
    """Return tokenised pairs: of both answers what they would be as the only one.

    Args:
        encode: tokenises examples with one answer.
        spec: of the task, with the settings of DPO.
    """
    assert spec.dpo is not None
    sides = [encode(side, _one_answer(spec)) for side in _sides(examples)]
    return [
        {
            "chosen": chosen,
            "rejected": rejected,
            "length": chosen["length"] + rejected["length"],
            "dpo_beta": spec.dpo.beta,
            "by_length": spec.dpo.by_length,
        }
        for chosen, rejected in zip(*sides, strict=True)
    ]


def collate_pairs(
    collate: Callable[[Sequence[Feature]], dict[str, Tensor]], features: Sequence[Feature]
) -> dict[str, Tensor]:
    """Return a batch of pairs; ``collate`` makes one of features with one answer."""
    rows = [feature[side] for side in ("chosen", "rejected") for feature in features]
    return {**collate(rows), PREFERENCE: preference_tensor(features)}


def count_truncated_pairs(
    count: Callable[[Sequence[Example], AnswerSpec], Truncated], examples: Sequence[Example], spec: AnswerSpec
) -> Truncated:
    """Count the prompts and the answers, two of each pair, that are cut; ``count`` does of examples with one answer."""
    chosen, rejected = (count(side, _one_answer(spec)) for side in _sides(examples))
    return Truncated(chosen.inputs, chosen.answers + rejected.answers)


def _one_answer(spec: AnswerSpec) -> AnswerSpec:
    return AnswerSpec(prompt=spec.prompt)


def _sides(examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """Return the pairs with the chosen answers alone, and with the rejected ones alone."""
    return [replace(example, rejected=None) for example in examples], [example.with_rejected() for example in examples]


def are_pairs(examples: Sequence[Example]) -> bool:
    """Return whether examples, which are of one task, have two answers."""
    return bool(examples) and examples[0].rejected is not None


def is_pair(feature: Mapping[str, Any]) -> bool:
    """Return whether a feature is a pair."""
    return "dpo_beta" in feature


def is_pairs(batch: Mapping[str, Any]) -> bool:
    """Return whether a batch is one of pairs."""
    return PREFERENCE in batch


def preference_tensor(features: Sequence[Feature]) -> Tensor:
    """Return the tensor ``dpo_pairs`` of a batch (pairs x 4, fp32); without a reference its values are zero."""
    rows = [[*f.get(REFERENCE, (0.0, 0.0)), f["dpo_beta"], float(f["by_length"])] for f in features]
    return torch.tensor(rows, dtype=torch.float32)


def num_pairs(batch: Mapping[str, Any]) -> int:
    """Count the pairs of a batch, without those whose labels are all ignored."""
    chosen, _ = batch["labels"].chunk(2)
    return int((chosen != IGNORE_INDEX).any(1).sum())


def model_inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of any batch that a model's ``forward`` takes."""
    return {key: value for key, value in batch.items() if key != PREFERENCE}


def answer_log_probabilities(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Any]:
    """Return the log-probability of every answer of a batch of pairs, and the model's output.

    Returns:
        nats (2 pairs, fp32): summed over an answer's tokens; where the pair's log-probabilities are divided by the
        number of tokens, their mean.
    """
    inputs, labels = model_inputs(batch), batch["labels"]
    if _reads_prompt_apart(model):
        output = model(**inputs)
        logits = output["logits"]
    else:  # a decoder's logits are those of the token after; without labels it computes no loss of its own
        del inputs["labels"]
        output = model(**inputs)
        logits, labels = output["logits"][:, :-1], labels[:, 1:]
    losses = functional.cross_entropy(
        logits.float().transpose(1, 2), labels, ignore_index=IGNORE_INDEX, reduction="none"
    )
    sums = -losses.sum(1)
    by_length = batch[PREFERENCE][:, 3].repeat(2).bool()
    tokens = (labels != IGNORE_INDEX).sum(1).clamp(min=1)
    return torch.where(by_length, sums / tokens, sums), output


def _reads_prompt_apart(model: nn.Module) -> bool:
    """Return whether a model is an encoder-decoder, whose labels are aligned with its logits."""
    base: Any = getattr(model, "module", model)  # DDP wraps it
    unwrap = getattr(base, "get_base_model", None)
    base = unwrap() if callable(unwrap) else base
    return bool(getattr(base.config, "is_encoder_decoder", False))


def measure_pairs(
    backbone: Backbone,
    features: Sequence[Feature],
    batch_size: int,
    on_progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Measure the log-probabilities of the answers of pairs with the weights as they are, dropout off.

    All processes call this with the same pairs, and each computes whole batches of them, so that the composition of a
    batch does not depend on the number of processes.

    Returns:
        pairs x 2 (fp32, on the CPU): of the chosen and the rejected answer, as :func:`answer_log_probabilities`.
    """
    rank, world_size = processes.rank(), processes.world_size()
    # Longest first: a batch that does not fit in memory fails at once.
    order = sorted(range(len(features)), key=lambda i: (-features[i]["length"], i))
    rows: list[list[float]] = []
    with eval_mode(backbone.module), torch.no_grad(), autocast(backbone.device, backbone.precision):
        for start in range(0, len(order), batch_size * world_size):
            batches = order[start : start + batch_size * world_size]
            local = batches[rank * batch_size : (rank + 1) * batch_size]
            if local:
                batch = backbone.collate([features[i] for i in local])
                batch = {key: value.to(backbone.device) for key, value in batch.items()}
                chosen, rejected = answer_log_probabilities(backbone.module, batch)[0].chunk(2)
                rows += [[i, *pair] for i, *pair in zip(local, chosen.tolist(), rejected.tolist(), strict=True)]
            if on_progress is not None:
                on_progress(len(batches))
    if world_size > 1:
        rows = [row for of_rank in processes.all_gather_object(rows) for row in of_rank]
    measured = torch.empty(len(features), 2)
    for index, *pair in rows:
        measured[int(index)] = torch.tensor(pair)
    return measured


def prefers_chosen(
    backbone: Backbone,
    examples: Sequence[Example],
    spec: AnswerSpec,
    batch_size: int,
    on_progress: Callable[[int], None] | None = None,
) -> list[float]:
    """Return 1 for every pair whose chosen answer is likelier than the rejected one, else 0 (ties included)."""
    measured = measure_pairs(backbone, backbone.features(examples, spec), batch_size, on_progress)
    return (measured[:, 0] > measured[:, 1]).double().tolist()
