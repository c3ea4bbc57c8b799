"""Check AimMerging's arguments, and read examples and collator from the trainer's data loader."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.data import IterableDataset

from merganser.errors import InputError
from merganser.training.aim.config import AimConfig
from merganser.training.determinism import isolated_random
from merganser.training.options import check_batch
from merganser.training.rehearsal import Collator, Dataset, measure_loss, model_loss


def check_settings(config: AimConfig, settings: Mapping[str, Any]) -> AimConfig:
    """Return the configuration with some settings replaced.

    Raises:
        InputError: a value is impossible.
        TypeError: there is no such setting.
    """
    try:
        return config.changed(**settings)
    except ValueError as error:
        raise InputError(f"AimMerging: {error}.", "AimConfig describes every setting.") from error


def check_memory(memory: Dataset, config: AimConfig, probe_groups: Sequence[Hashable]) -> None:
    """Raise InputError if the memory is empty or smaller than a batch, or if there is not one group per example."""
    if len(memory) == 0:
        raise InputError("The rehearsal memory is empty.", "AimMerging needs at least one example of earlier tasks.")
    probe = None if isinstance(config.probe_batch, str) else config.probe_batch
    for name, size in (("batch", config.batch), ("probe_batch", probe)):
        check_batch(name, size, 1, len(memory))
    if probe_groups and len(probe_groups) != len(memory):
        raise InputError(
            f"probe_groups has {len(probe_groups)} groups for {len(memory)} examples of the memory.",
            "Give one group per example, or none.",
        )


def check_loss(model: nn.Module, batch: Mapping[str, Any]) -> None:
    """Raise InputError if the model returns no loss for a batch of the trainer's, as in TRL's ``DPOTrainer``.

    One forward pass without gradients and without dropout; no random numbers are used up.
    """

    def loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        value = model_loss(model, batch)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise TypeError("its first output is not a loss")
        return value

    try:
        with isolated_random(0):
            measure_loss(model, batch, loss)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"The model returns no loss for a batch of this trainer's data ({type(error).__name__}: {error}).",
            "Give AimMerging the trainer's own, as in examples/dpo_trainer.py: "
            "trainer.add_callback(AimMerging(memory, loss=merganser.loss_of(trainer))).",
        ) from error


def check_sharding(model: nn.Module) -> None:
    """Raise InputError for sharded weights that look like full ones: signals and merges would be wrong.

    FSDP version 2 is supported: its shards are distributed tensors.
    """
    for mark, what in (("ds_id", "DeepSpeed ZeRO-3"), ("_is_flat_param", "FSDP version 1")):
        if any(hasattr(parameter, mark) for parameter in model.parameters()):
            raise InputError(
                f"AimMerging does not support the sharded weights of {what}.",
                "Use FSDP version 2 (fsdp_version: 2), DDP, or ZeRO-1 or 2.",
            )


def new_examples(loader: Any, needed: bool) -> Dataset | None:
    """Return the training dataset of a data loader; ``None`` if it is a stream, which cannot be indexed.

    Args:
        needed: whether the examples must support indexing.

    Raises:
        InputError: they must, and the dataset is a stream.
    """
    dataset: Dataset = loader.dataset
    if hasattr(dataset, "__len__") and not isinstance(dataset, IterableDataset):
        return dataset
    if needed:
        raise InputError(
            "The training data is a stream, from which examples cannot be sampled to measure merges.",
            "Use AimMerging(measure_merges=False), or training data that has a length and can be indexed.",
        )
    return None


def collator_of(loader: Any, memory: Dataset) -> Collator:
    """Return the collator of a training data loader, restricted to the columns of the training examples.

    Raises:
        InputError: it cannot make a batch of the memory's examples, because they lack columns.
    """
    collate_all: Collator = loader.collate_fn
    new = new_examples(loader, needed=False)
    # A stream may be read only once, so that its columns are taken from its attribute, where it has one.
    example = None if new is None else new[0]
    names = example if isinstance(example, Mapping) else getattr(loader.dataset, "column_names", None)
    if names is None:
        return collate_all
    columns = set(names)

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
                "Give them in the form of trainer.train_dataset: tokenised, with the same columns.",
            ) from error
    return collate
