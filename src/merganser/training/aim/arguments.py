"""What AimMerging is given, checked before any work, and what it takes from the trainer's data loader."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.utils.data import IterableDataset

from merganser.errors import InputError
from merganser.training.options import FUSIONS, PROBE_SETS, REHEARSAL_SAMPLINGS, check_batch
from merganser.training.rehearsal import Collator, Dataset


def check_arguments(
    memory: Dataset,
    batch_sizes: Mapping[str, int | None],
    *,
    rehearsal_sampling: str,
    probe_set: str,
    probe_groups: Sequence[Hashable],
    fusion: str,
    important_share: float,
    importance_smoothing: float,
    guard_factor: float | None,
) -> None:
    """InputError where an argument of :class:`~merganser.training.aim.callback.AimMerging` is impossible.

    Args:
        batch_sizes: argument -> examples of the memory per batch, ``None`` for the default.
    """
    if len(memory) == 0:
        raise InputError("The rehearsal memory is empty.", "AimMerging needs at least one example of earlier tasks.")
    for name, asked in batch_sizes.items():
        check_batch(name, asked, 1, len(memory))
    choices = (
        ("rehearsal_sampling", rehearsal_sampling, REHEARSAL_SAMPLINGS),
        ("probe_set", probe_set, PROBE_SETS),
        ("fusion", fusion, FUSIONS),
    )
    for name, chosen, known in choices:
        if chosen not in known:
            raise InputError(f"There is no {name} '{chosen}'.", f"Known: {', '.join(known)}.")
    if probe_groups and len(probe_groups) != len(memory):
        raise InputError(
            f"probe_groups names {len(probe_groups)} groups for {len(memory)} examples of the memory.",
            "Give one group per example, or none.",
        )
    if not 0 < important_share <= 1:
        raise InputError(f"important_share is {important_share}.", "Give a share above 0 and at most 1.")
    if not 0 <= importance_smoothing < 1:
        raise InputError(f"importance_smoothing is {importance_smoothing}.", "Give a share of at least 0 and below 1.")
    if guard_factor is not None and not 1 < guard_factor < math.inf:
        raise InputError(
            f"guard_factor is {guard_factor}; it says how many times what it was a loss may be after a merge.",
            "Give a finite number above 1, or None to refuse only what is not finite.",
        )


def check_sharing(model: nn.Module) -> None:
    """InputError where weights are shared out in a way that looks like whole ones: signals and merges would be wrong.

    FSDP version 2 is fine: its shards are distributed tensors.
    """
    for mark, what in (("ds_id", "DeepSpeed ZeRO-3"), ("_is_flat_param", "FSDP version 1")):
        if any(hasattr(parameter, mark) for parameter in model.parameters()):
            raise InputError(
                f"{what} shares the weights out in a way that AimMerging cannot read.",
                "Use FSDP version 2 (fsdp_version: 2), DDP, or ZeRO-1 or 2.",
            )


def new_examples(loader: Any, needed: bool) -> Dataset | None:
    """The training examples behind a data loader; ``None`` if they are a stream, of which none can be drawn.

    Args:
        needed: whether examples must be drawn.

    Raises:
        InputError: they must, and cannot be.
    """
    dataset: Dataset = loader.dataset
    if hasattr(dataset, "__len__") and not isinstance(dataset, IterableDataset):
        return dataset
    if needed:
        raise InputError(
            "The training data is a stream, of which no examples can be drawn to measure merges on.",
            "Give AimMerging(measure_merges=False), or training data that has a length and can be indexed.",
        )
    return None


def collator_of(loader: Any, memory: Dataset) -> Collator:
    """The collator of a training data loader, given only the columns that the training examples have.

    Raises:
        InputError: it cannot make a batch of the memory's examples, which lack some of these columns.
    """
    collate_all: Collator = loader.collate_fn
    new = new_examples(loader, needed=False)
    # A stream may be read only once: it is asked for its columns, and may not know them.
    example = None if new is None else new[0]
    known = example if isinstance(example, Mapping) else getattr(loader.dataset, "column_names", None)
    if known is None:
        return collate_all
    columns = set(known)

    def collate(examples: list[Any]) -> Mapping[str, Any]:
        return collate_all([{key: value for key, value in item.items() if key in columns} for item in examples])

    first = memory[0]
    missing = columns - set(first if isinstance(first, Mapping) else ())
    if missing:  # the collator may not need them
        try:
            collate([first])
        except Exception as error:
            raise InputError(
                f"No batch can be made of the memory's examples: they have no {', '.join(sorted(missing))}.",
                "Give them in the form of the training data as the trainer has it (trainer.train_dataset): tokenised, "
                "with the same columns.",
            ) from error
    return collate
