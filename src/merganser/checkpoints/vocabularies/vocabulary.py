"""Compare the architectures and vocabularies of models: equal shapes do not imply equal tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

from merganser.checkpoints.model_config import check_configs, refuse_unknown_keys
from merganser.checkpoints.source import Checkpoint, read_json
from merganser.errors import InputError
from merganser.files.documents import read_bytes

_FILES = ("tokenizer.json", "vocab.json", "vocab.txt")


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a tokenizer.

    Attributes:
        tokens: token -> id, learned from text.
        added: token -> id, added by hand. One tokenizer may have more of them than another; only an id that two
            tokenizers give to different tokens is a conflict.
    """

    tokens: dict[str, int]
    added: dict[str, int]


def check_kinds(checkpoints: Sequence[Checkpoint], allowed: Sequence[str], common_only: bool) -> list[str]:
    """Check every pair of models, see :func:`check_kind`, and that the models have the keys that may differ.

    Returns:
        The differences that are allowed, each key with both values.
    """
    if configs := [checkpoint.config for checkpoint in checkpoints if checkpoint.config]:
        refuse_unknown_keys(allowed, configs)
    pairs = combinations(checkpoints, 2)
    return [difference for first, second in pairs for difference in check_kind(first, second, allowed, common_only)]


def check_kind(
    reference: Checkpoint, other: Checkpoint, allowed: Sequence[str] = (), common_only: bool = False
) -> list[str]:
    """Refuse models of two architectures, or of one whose configurations give equal weights another function.

    Args:
        allowed: keys of the configurations that may differ.
        common_only: merge only common tensors, whatever the architectures.

    Returns:
        The differences that are allowed, each key with both values.

    Raises:
        InputError: the two ``model_type`` differ, or see :func:`merganser.checkpoints.model_config.check_configs`.
    """
    kinds = [checkpoint.config.get("model_type") for checkpoint in (reference, other)]
    if None not in kinds and kinds[0] != kinds[1]:
        if "model_type" in allowed:
            return [f"model_type is {kinds[0]!r:.60} in {reference.label}, {kinds[1]!r:.60} in {other.label}"]
        if common_only:
            return []
        raise InputError(
            f"{reference.label} is of model_type {kinds[0]!r:.60}, {other.label} of {kinds[1]!r:.60}.",
            "Models of one architecture can be merged; to merge what has equal names and shapes anyway, use "
            "--common-only.",
        )
    return check_configs((reference.label, reference.config), (other.label, other.config), allowed, common_only)


Read = Callable[[Path], Vocabulary | None]
"""Reads a file of a vocabulary; ``None`` where its format is unknown."""


def check_vocabularies(checkpoints: Sequence[Checkpoint], read: Read, rows: int | None = None) -> None:
    """Refuse models whose tokenizers give one id to two tokens.

    All pairs are compared: two models may each agree with the base and conflict with each other. The first of
    ``tokenizer.json``, ``vocab.json`` and ``vocab.txt`` that both folders have is compared; files of equal bytes are
    not parsed, others once. Without such files the vocabularies are unknown, and nothing is refused.

    Args:
        checkpoints: models whose rows are merged.
        read: :func:`read_vocabulary`, which reads a file once.
        rows: how many rows are merged, the first ones; by default all.

    Raises:
        InputError: two vocabularies differ; gives the first tokens that do, and both sizes.
    """
    digest = cache(lambda path: hashlib.sha256(_bytes(path)).digest())
    for first, second in combinations(checkpoints, 2):
        _compare(first, second, digest, lambda path: _first_tokens(read(path), rows))


def _compare(
    reference: Checkpoint,
    other: Checkpoint,
    digest: Callable[[Path], bytes],
    read: Read,
) -> None:
    if not reference.config or not other.config or reference.folder == other.folder:
        # Files beside a single .safetensors file need not belong to it.
        return
    for name in _FILES:
        paths = [checkpoint.folder / name for checkpoint in (reference, other)]
        if not all(path.is_file() for path in paths):
            continue
        if digest(paths[0]) == digest(paths[1]):
            return
        first, second = (read(path) for path in paths)
        if first is None or second is None:
            continue
        different = _differences(first, second)
        if different:
            examples = "; ".join(
                f"{token!r:.60} is {_or_none(a)} in {reference.label}, {_or_none(b)} in {other.label}"
                for token, a, b in different[:3]
            )
            more = f"; and {len(different) - 3} more" if len(different) > 3 else ""
            raise InputError(
                f"The vocabularies differ ({len(first.tokens)} tokens in {reference.label}, {len(second.tokens)} in "
                f"{other.label}): {examples}{more}.",
                "Rows of different tokens would be merged; to merge anyway, use --ignore-vocabulary.",
            )
        return


def check_tokenizer_size(checkpoint: Checkpoint, read: Read, rows: int) -> None:
    """Refuse a tokenizer with ids that the embedding has no rows for.

    Args:
        checkpoint: whose tokenizer the result has.
        read: as for :func:`check_vocabularies`.
        rows: of the result's embedding, without those of a second one (``additional_vocab_size``).

    Raises:
        InputError: there are such ids; names one and its token.
    """
    if not checkpoint.config:
        return
    more = checkpoint.config.get("additional_vocab_size")
    rows += more if isinstance(more, int) else 0
    path = next((checkpoint.folder / name for name in _FILES if (checkpoint.folder / name).is_file()), None)
    vocabulary = None if path is None else read(path)
    ids = {} if vocabulary is None else {**vocabulary.tokens, **vocabulary.added}
    settings = checkpoint.folder / "tokenizer_config.json"
    listed = read_json(settings).get("added_tokens_decoder") if settings.is_file() else None
    for number, entry in (listed if isinstance(listed, Mapping) else {}).items():
        if isinstance(entry, Mapping) and str(number).isascii() and str(number).isdigit() and len(str(number)) < 19:
            ids[str(entry.get("content"))] = int(number)
    beyond = sorted((number, token) for token, number in ids.items() if number >= rows)
    if beyond:
        number, token = beyond[0]
        raise InputError(
            f"The tokenizer of {checkpoint.label} has ids beyond the {rows} rows of the result's embedding: "
            f"{token!r:.60} is {number}{f', and {len(beyond) - 1} more' if len(beyond) > 1 else ''}.",
            "A text with such a token would fail. Take the tokenizer of another model (--tokenizer-from), or give the "
            "model a row for every token (resize_token_embeddings of transformers); to merge anyway, use "
            "--ignore-vocabulary.",
        )


def _first_tokens(vocabulary: Vocabulary | None, rows: int | None) -> Vocabulary | None:
    """Keep the tokens of the first rows."""
    if vocabulary is None or rows is None:
        return vocabulary
    parts = vocabulary.tokens, vocabulary.added
    return Vocabulary(*({token: number for token, number in part.items() if number < rows} for part in parts))


def _or_none(number: int | None) -> str:
    return "missing" if number is None else str(number)


def _bytes(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.", "Check its permissions.") from error


def read_vocabulary(path: Path) -> Vocabulary | None:
    """Read the vocabulary in a file; ``None`` where its format is unknown."""
    if path.suffix == ".txt":
        lines = _bytes(path).decode("utf-8", errors="replace").split("\n")
        return Vocabulary({line.rstrip("\r"): number for number, line in enumerate(lines) if line}, {})
    content = read_json(path)
    if path.name == "vocab.json":
        return Vocabulary(tokens, {}) if (tokens := _token_ids(content)) is not None else None
    model, added = content.get("model"), content.get("added_tokens")
    tokens = _token_ids(model.get("vocab")) if isinstance(model, Mapping) else None
    if tokens is None:
        return None
    listed = added if isinstance(added, list) else []
    entries = [entry for entry in listed if isinstance(entry, Mapping) and isinstance(entry.get("content"), str)]
    pairs = {entry["content"]: entry.get("id") for entry in entries}
    return Vocabulary(tokens, _token_ids(pairs) or {})


def _token_ids(vocab: Any) -> dict[str, int] | None:
    """Map token -> id, from such a map or from a list of ``[token, score]`` in the order of the ids."""
    if isinstance(vocab, list) and all(isinstance(row, list) and row and isinstance(row[0], str) for row in vocab):
        return {row[0]: number for number, row in enumerate(vocab)}
    if isinstance(vocab, Mapping) and all(isinstance(number, int) for number in vocab.values()):
        return dict(vocab)
    return None


def _differences(first: Vocabulary, second: Vocabulary) -> list[tuple[str, int | None, int | None]]:
    """List tokens with their two ids where these differ, in the order of the first's ids."""
    if first == second:
        return []
    numbers_of = [{**vocabulary.tokens, **vocabulary.added} for vocabulary in (first, second)]
    tokens_of = [{number: token for token, number in numbers.items()} for numbers in numbers_of]
    different: dict[str, tuple[int | None, int | None]] = {}
    for token in {**numbers_of[0], **numbers_of[1]}:
        numbers = numbers_of[0].get(token), numbers_of[1].get(token)
        # A token learned by one tokenizer must exist in the other, at least as an added token.
        learned = token in first.tokens or token in second.tokens
        if numbers[0] != numbers[1] and (learned or None not in numbers):
            different[token] = numbers
    for number, token in tokens_of[0].items():
        if tokens_of[1].get(number, token) != token:
            different.setdefault(token, (number, numbers_of[1].get(token)))
    return sorted(
        ((token, a, b) for token, (a, b) in different.items()),
        key=lambda row: (row[1] is None, row[1] if row[1] is not None else row[2]),
    )
