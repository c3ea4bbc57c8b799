"""Tied weights: names of one checkpoint that share one parameter.

A tied model stores its input embedding once, or again under the name of its output layer (and, in encoder-decoders, of
both stacks). A file that lacks such a name means the matrix it is tied to, as in ``transformers``
(``PreTrainedModel.tie_weights``), which ties names that a configuration ties and the file does not contradict.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from merganser.checkpoints.adapters.updated_tensor import UpdatedTensor
from merganser.checkpoints.source import Checkpoint
from merganser.checkpoints.vocabularies.tied_names import (
    EMBEDDING,
    OUTPUT,
    may_be_one,
    tie_setting,
    tied_to,
    vocabulary_names,
)
from merganser.errors import InputError
from merganser.files.safetensors_file import Tensor

_CHUNK = 8 << 20

Groups = Mapping[str, tuple[str, ...]]
"""Name -> all names of its parameter, that of the input embedding first; without names that share nothing."""


def share_tied(checkpoints: Sequence[Checkpoint]) -> tuple[list[Checkpoint], Groups]:
    """Give every checkpoint the names that tying defines and another one holds, and find the names of one parameter.

    Args:
        checkpoints: the reference first, then those that are merged into its layout.

    Returns:
        The checkpoints; the reference has a further name only where that is a matrix of its own in another model. And
        the groups of names that are one parameter in every checkpoint that has them.

    Raises:
        InputError: a file cannot be read.
    """
    names = dict.fromkeys(name for checkpoint in checkpoints for name in vocabulary_names(checkpoint.tensors))
    if len(names) < 2:
        return list(checkpoints), {}
    settings = [tie_setting(checkpoint.config) for checkpoint in checkpoints]
    known = next((setting for setting in settings if setting is not None), None)
    ties = [known if setting is None else setting for setting in settings]
    whole = [
        _with_aliases(checkpoint, names, checkpoints, tied) for checkpoint, tied in zip(checkpoints, ties, strict=True)
    ]
    groups = _groups([name for name in names if name in whole[0].tensors], whole, ties)
    in_file = checkpoints[0].tensors
    whole[0] = replace(
        whole[0],
        tensors={
            name: tensor
            for name, tensor in whole[0].tensors.items()
            if name in in_file or not any(other in in_file for other in groups.get(name, ()))
        },
    )
    return whole, groups


def share_fisher(extra: Checkpoint, groups: Groups) -> Checkpoint:
    """Give every name of a tied parameter the same tensor of a file of Fisher information: that of the first it has."""
    tensors = dict(extra.tensors)
    for name, group in groups.items():
        first = next((other for other in group if other in extra.tensors), None)
        if first is not None:
            tensors[name] = replace(extra.tensors[first], name=name)
    return replace(extra, tensors=tensors)


def is_untied(reference: Checkpoint, groups: Groups) -> bool:
    """Return whether the reference ties its output layer, and the result has one of its own."""
    names = vocabulary_names(reference.tensors)
    outputs = [name for name in names if OUTPUT.search(name)]
    apart = [name for name in outputs if not any(EMBEDDING.search(other) for other in groups.get(name, ()))]
    return bool(apart and any(map(EMBEDDING.search, names)) and tie_setting(reference.config))


def _with_aliases(
    checkpoint: Checkpoint, names: Iterable[str], holders: Sequence[Checkpoint], tied: bool | None
) -> Checkpoint:
    """Add the names that the checkpoint lacks, another one holds and tying defines.

    Without a configuration a name is tied if all files that hold it have a copy under it.
    """
    tensors = dict(checkpoint.tensors)
    for name in names:
        holder = next((other for other in holders if name in other.tensors), None)
        if name in tensors or holder is None:
            continue
        sources = tied_to(name, checkpoint.tensors, tied is not False)
        if tied is None:
            having = [other.tensors for other in holders if name in other.tensors]
            sources = [s for s in sources if all(s in other and _equal(other[name], other[s]) for other in having)]
        sources = [s for s in sources if len(checkpoint.tensors[s].shape) == len(holder.tensors[name].shape)]
        first = sources[0] if sources else None
        if first is not None and all(_equal(checkpoint.tensors[first], checkpoint.tensors[s]) for s in sources[1:]):
            tensors[name] = replace(checkpoint.tensors[first], name=name)
    return replace(checkpoint, tensors=tensors)


def _groups(names: Sequence[str], checkpoints: Sequence[Checkpoint], ties: Sequence[bool | None]) -> Groups:
    """Group the names that are one parameter in every checkpoint."""
    groups: dict[str, set[str]] = {name: {name} for name in names}
    for first, second in combinations(names, 2):
        if second not in groups[first] and all(
            _one_parameter(checkpoint.tensors, first, second, tied)
            for checkpoint, tied in zip(checkpoints, ties, strict=True)
        ):
            joined = groups[first] | groups[second]
            groups.update(dict.fromkeys(joined, joined))
    return {name: tuple(sorted(group, key=_rank)) for name, group in groups.items() if len(group) > 1}


def _rank(name: str) -> tuple[Any, ...]:
    """Order the names of a parameter, whichever file holds them: the input embedding first, `shared` before others."""
    return OUTPUT.search(name) is not None, name.count("."), name


def _one_parameter(tensors: Mapping[str, Tensor], first: str, second: str, tied: bool | None) -> bool:
    if first not in tensors or second not in tensors or not may_be_one(first, second):
        return False
    if tied is False and not (EMBEDDING.search(first) and EMBEDDING.search(second)):
        return False  # equal by chance, as at the start of a training
    return _equal(tensors[first], tensors[second])


def _equal(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors have equal type, shape and bytes."""
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    updates = [tensor.update if isinstance(tensor, UpdatedTensor) else None for tensor in (first, second)]
    if updates[0] is not updates[1]:
        return False  # one of them has been trained apart
    if (first.path, first.offset) == (second.path, second.offset):
        return True
    try:
        with open(first.path, "rb") as first_file, open(second.path, "rb") as second_file:
            first_file.seek(first.offset)
            second_file.seek(second.offset)
            for start in range(0, first.nbytes, _CHUNK):
                count = min(_CHUNK, first.nbytes - start)
                if first_file.read(count) != second_file.read(count):
                    return False
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}.", "Check the disk.") from error
    return True
