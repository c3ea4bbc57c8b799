"""The key-value cache of the tokens that texts begin with, computed once and read by every batch.

A chat template's system prompt and the words of a task's prompt are the same in every text of a test set. Their keys
and values depend on nothing that comes after them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from merganser.models.padding import attention_mask, pad

SHORTEST = 16
"""Fewest common tokens for which a cache is worth its copies."""


@dataclass(frozen=True)
class Prefix:
    """Tokens, and the keys and values of every layer for them (1 x heads x tokens x width)."""

    tokens: tuple[int, ...]
    cache: Any

    def repeated(self, rows: int) -> Any:
        """Return a cache of its own for so many rows."""
        return selected(self.cache, torch.zeros(rows, dtype=torch.long, device=self.cache.layers[0].keys.device))


def selected(cache: Any, rows: Tensor) -> Any:
    """Return a cache that holds copies of rows of another one."""
    return DynamicCache([(layer.keys[rows], layer.values[rows]) for layer in cache.layers])


def keeps_all_tokens(model: Any) -> bool:
    """Return whether a model's cache holds keys and values of every token, and its positions can be given.

    Others have a state that depends on all tokens so far, drop tokens outside of a window, or compute distances from
    columns.
    """
    return (
        "position_ids" in inspect.signature(model.forward).parameters
        and not getattr(model, "_is_stateful", False)
        and all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)
    )


def common_length(rows: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all rows begin with; at least one is left of every row."""
    ordered = [list(row) for row in rows]
    first, last = min(ordered), max(ordered)  # what these two have in common, all between them have
    limit = min(map(len, rows)) - 1
    return next((i for i in range(limit) if first[i] != last[i]), max(limit, 0))


def compute_prefix(model: Any, rows: Sequence[Sequence[int]]) -> Prefix | None:
    """Compute the cache of the tokens that rows begin with.

    Args:
        model: a causal model of transformers with :func:`keeps_all_tokens`.
        rows: the token ids of all texts.

    Returns:
        ``None`` where they have too little in common.
    """
    length = common_length(rows) if len(rows) > 1 else 0
    if length < SHORTEST:
        return None
    tokens = list(rows[0][:length])
    cache = model(**last_logit_only(model, {"input_ids": ids_of([tokens], model.device)}), use_cache=True)
    return Prefix(tuple(tokens), cache.past_key_values)


def ids_of(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Return rows of one length as a tensor."""
    return torch.tensor(rows, dtype=torch.long, device=device)


def last_logit_only(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Add to the inputs that only the last logits are needed, where the model can be told so."""
    can = "logits_to_keep" in inspect.signature(model.forward).parameters
    return {**inputs, "logits_to_keep": 1} if can else dict(inputs)


def prompt_inputs(
    rows: Sequence[Sequence[int]], padding: int, prefix: Prefix | None, device: torch.device
) -> dict[str, Any]:
    """Return ``input_ids`` and ``attention_mask`` (texts x tokens) of texts that end in the same column.

    With a prefix, padding stands between it and the rest of a text, and ``past_key_values`` is a copy of its cache.
    """
    if prefix is None:
        ids, mask = pad(rows, padding, left=True), attention_mask(rows, left=True)
        return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    rest = [row[len(prefix.tokens) :] for row in rows]
    beginning = torch.tensor(prefix.tokens).expand(len(rows), -1)
    ids = torch.cat([beginning, pad(rest, padding, left=True)], 1)
    mask = torch.cat([torch.ones_like(beginning), attention_mask(rest, left=True)], 1)
    return {
        "input_ids": ids.to(device),
        "attention_mask": mask.to(device),
        "past_key_values": prefix.repeated(len(rows)),
    }


def run_prompts(model: Any, inputs: Mapping[str, Any]) -> tuple[Tensor, Any]:
    """Return the logits after the last token of each prompt (texts x vocabulary), and the cache of all columns.

    Args:
        inputs: of :func:`prompt_inputs`; its cache is extended.
    """
    mask = inputs["attention_mask"]
    past = inputs.get("past_key_values")
    known = 0 if past is None else past.get_seq_length()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    given = {
        "input_ids": inputs["input_ids"][:, known:],
        "attention_mask": mask,
        "position_ids": positions[:, known:],
        "past_key_values": DynamicCache(config=model.config) if past is None else past,
    }
    output = model(**last_logit_only(model, given), use_cache=True)
    return output.logits[:, -1], output.past_key_values


def label_scores(
    model: Any,
    inputs: Mapping[str, Any],
    answers: Sequence[Sequence[Sequence[int]]],
    rows: int,
    score: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Score every answer to every prompt, reading each prompt once.

    Args:
        inputs: of :func:`prompt_inputs`.
        answers: for every prompt, the tokens of its answers; the same number for all.
        rows: (prompt, answer) pairs per forward pass.
        score: maps logits (pairs x tokens x vocabulary) and labels (pairs x tokens, -100 is no token) to numbers.

    Returns:
        prompts x answers.
    """
    first, cache = run_prompts(model, inputs)
    mask, device = inputs["attention_mask"], first.device
    lengths = mask.sum(1)
    pairs = [(text, answer) for text, of_text in enumerate(answers) for answer in of_text]
    scores = []
    for start in range(0, len(pairs), rows):
        chosen = pairs[start : start + rows]
        texts = torch.tensor([text for text, _ in chosen], device=device)
        labels = pad([answer for _, answer in chosen], -100).to(device)
        logits = first[texts].unsqueeze(1)
        if labels.shape[1] > 1:
            tokens = labels[:, :-1]
            output = model(
                input_ids=tokens.clamp(min=0),
                attention_mask=torch.cat([mask[texts], (tokens >= 0).long()], 1),
                position_ids=lengths[texts].unsqueeze(1) + torch.arange(tokens.shape[1], device=device),
                past_key_values=selected(cache, texts),
                use_cache=True,
            )
            logits = torch.cat([logits, output.logits], 1)
        scores.append(score(logits, labels))
    return torch.cat(scores).view(len(answers), -1)
