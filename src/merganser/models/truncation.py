"""Count the tokens of whole texts, to find those that a model reads only in part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

CHUNK = 1000
"""Texts tokenised at a time: the ids of a large data set would take much memory."""


def token_counts(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Return the number of tokens of each text, special tokens included, without any limit."""
    counts: list[int] = []
    for start in range(0, len(texts), CHUNK):
        # verbose: transformers would warn of every model that is shorter than a text
        rows = tokenizer(list(texts[start : start + CHUNK]), truncation=False, verbose=False)["input_ids"]
        counts += map(len, rows)
    return counts
