"""Refuse labels that a model cannot tell apart: it would always choose the first of them, and score by chance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from merganser.errors import InputError

EQUAL = 1e-5
"""Largest L2 norm of the difference of two unit vectors (fp32) that counts as rounding."""

SHOWN = 3
"""Groups, and labels of a group, that a message names."""


@dataclass(frozen=True)
class LabelTokens:
    """A label as a model reads or writes it.

    Attributes:
        text: of the label.
        whole: token ids of the text, special tokens included.
        kept: those that are left within the longest length.
    """

    text: str
    whole: tuple[int, ...]
    kept: tuple[int, ...]


@dataclass(frozen=True)
class Reading:
    """How a model reads labels, for the message.

    Attributes:
        where: the task, as a message begins.
        option: the option that sets the longest length; empty if the model itself does.
        unknown: id of the unknown token, if there is one.
        remedy: how a label is given another text.
    """

    where: str
    option: str
    unknown: int | None
    remedy: str


def refuse_equal_tokens(labels: Mapping[str, LabelTokens], reading: Reading) -> None:
    """Refuse labels that become the same tokens.

    Args:
        labels: label -> its tokens.

    Raises:
        InputError: naming the labels, why their tokens are equal, and what to do.
    """
    by_tokens: dict[tuple[int, ...], list[str]] = {}
    for label, tokens in labels.items():
        by_tokens.setdefault(tokens.kept, []).append(label)
    groups = [group for group in by_tokens.values() if len(group) > 1]
    if groups:
        cause, remedy = _reason([labels[label] for label in groups[0]], reading)
        raise _indistinguishable(groups, cause, remedy, reading)


def refuse_equal_vectors(labels: Sequence[str], vectors: torch.Tensor, reading: Reading) -> None:
    """Refuse labels whose vectors are equal up to rounding.

    Args:
        vectors: unit vectors (labels x width), fp32.

    Raises:
        InputError: naming the labels.
    """
    if pair := _equal_rows(vectors):
        names = [[labels[i] for i in sorted(pair)]]
        raise _indistinguishable(names, "the encoder gives them the same vector", reading.remedy, reading)


def _equal_rows(vectors: torch.Tensor) -> tuple[int, int] | None:
    """Return two rows that are equal up to rounding, if there are any.

    Their projections on any unit vector are then equal too, so only rows that are neighbours on one fixed random axis
    are compared: many labels take no quadratic time or memory.
    """
    vectors = vectors.detach().float().cpu()
    axis = torch.randn(vectors.shape[1], generator=torch.Generator().manual_seed(0))
    projected, order = (vectors @ (axis / axis.norm())).sort()
    places, rows = projected.tolist(), order.tolist()
    for first in range(len(rows)):
        for second in range(first + 1, len(rows)):
            if places[second] - places[first] > 2 * EQUAL:
                break
            if float((vectors[rows[first]] - vectors[rows[second]]).norm()) <= EQUAL:
                return rows[first], rows[second]
    return None


def _reason(group: Sequence[LabelTokens], reading: Reading) -> tuple[str, str]:
    """Return why the labels of a group have the same tokens, and the remedy."""
    wholes = {tokens.whole for tokens in group}
    if len(wholes) > 1:
        length = len(group[0].kept)
        needed = max(_first_difference(a, b) for a in wholes for b in wholes if a != b) + 2
        limit = f" ({reading.option})" if reading.option else ""
        cause = f"only {length} of their tokens are used{limit}, and these are the same"
        longer = f"Set {reading.option} to at least {needed}, or shorten the labels."
        return cause, longer if reading.option else reading.remedy
    if reading.unknown is not None and reading.unknown in group[0].whole:
        return "they differ in words that the model's vocabulary lacks (unknown tokens)", reading.remedy
    if len({tokens.text.casefold() for tokens in group}) == 1:
        return "they differ in letter case only, which the model's tokenizer removes", reading.remedy
    return "the model's tokenizer turns them into the same tokens", reading.remedy


def _first_difference(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _indistinguishable(groups: Sequence[Sequence[str]], cause: str, remedy: str, reading: Reading) -> InputError:
    named = "; nor ".join(_listed(map(_shown, group)) for group in groups[:SHOWN])
    more = f"; nor those of {len(groups) - SHOWN} more groups" if len(groups) > SHOWN else ""
    return InputError(
        f"{reading.where}: the model cannot tell apart the labels {named}{more}: {cause}.",
        remedy,
    )


def _listed(names: Iterable[str]) -> str:
    names = [f"'{name}'" for name in names]
    if len(names) > SHOWN:
        return f"{', '.join(names[:SHOWN])} and {len(names) - SHOWN} more"
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _shown(label: str) -> str:
    """Return a label with the middle of a long one left out: where the ends differ, both are seen."""
    return label if len(label) <= 60 else f"{label[:30]} ... {label[-25:]}"
