"""The ``training`` section of a run: how one task is optimised."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from merganser.errors import InputError
from merganser.options import StrictOptions

MAY_CHANGE = frozenset({"checkpoint_steps", "checkpoint_minutes"})
"""Options that change no result, and may differ when a run is resumed."""

RehearsalSampling = Literal["epoch", "iid"]
"""How rehearsal batches are drawn from the memory, see :class:`merganser.training.rehearsal.MemoryBatches`."""


class TrainingOptions(StrictOptions):
    """How one task is optimised. The defaults are AimMerging's for T5-large."""

    epochs: float = Field(10, gt=0, allow_inf_nan=False, description="passes over the task's training examples")
    steps: int | None = Field(None, gt=0, description="optimizer steps instead of epochs")
    batch: int = Field(32, gt=0, description="examples per forward pass, over all processes")
    accumulation: int = Field(1, gt=0, description="batches whose gradients are accumulated for one optimizer step")
    learning_rate: float = Field(3e-4, gt=0, allow_inf_nan=False, description="peak learning rate of AdamW")
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False, description="decoupled weight decay of AdamW")
    schedule: Literal["linear", "cosine", "constant_with_warmup", "inverse_sqrt"] = Field(
        "linear", description="learning-rate schedule of a task (a scheduler name of transformers)"
    )
    warmup: float = Field(
        50, ge=0, allow_inf_nan=False, description="warm-up steps; a number below 1 is a fraction of the task's steps"
    )
    clip: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="norm at which gradients are clipped; 0: no clipping"
    )
    max_input: int | None = Field(
        None,
        ge=2,
        description="tokens at which inputs are truncated; null: 1024, or the number of positions of the model",
    )
    max_target: int = Field(128, ge=2, description="tokens at which targets and generated answers are truncated")
    group_by_length: bool = Field(True, description="batch texts of similar length together, which saves padding")
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass instead of storing them"
    )
    select_best: bool = Field(
        False,
        description="deploy the weights of the task with the best score on the development texts of all tasks seen, "
        "instead of the last ones",
    )
    select_every: int | None = Field(
        None, gt=0, description="select_best: optimizer steps between two evaluations; null: once per epoch"
    )
    checkpoint_steps: int | None = Field(
        None, gt=0, description="optimizer steps between two checkpoints of the current task"
    )
    checkpoint_minutes: float | None = Field(
        10,
        gt=0,
        allow_inf_nan=False,
        description="minutes between two checkpoints of the current task; both null: no checkpoints",
    )

    @property
    def takes_checkpoints(self) -> bool:
        """Whether an interrupted task can resume from a step within it."""
        return self.checkpoint_steps is not None or self.checkpoint_minutes is not None

    @model_validator(mode="after")
    def _warmup_is_whole(self) -> TrainingOptions:
        if self.warmup >= 1 and self.warmup != int(self.warmup):
            raise ValueError(f"warmup is {self.warmup}; give whole steps, or a fraction of the steps below 1")
        return self


def check_batch(key: str, size: int | None, default: int, memory_examples: int) -> int:
    """Resolve the size of a batch drawn from the memory, and check it.

    Args:
        key: of the size in the configuration, for messages.
        size: the configured size, or ``None`` for ``default`` or the whole memory, whichever is smaller.
        memory_examples: size of the memory, at least 1.

    Raises:
        InputError: the configured size is larger than the memory, or less than 1.
    """
    if size is None:
        return min(default, memory_examples)
    if size < 1:
        raise InputError(f"The option {key} is {size} examples.", f"Use at least 1, or omit {key}.")
    if size > memory_examples:
        raise InputError(
            f"The option {key} is {size}, but the memory holds {memory_examples} examples.",
            f"Use at most {memory_examples}, omit {key}, or keep more (memory.share, memory.number, "
            "memory.minimum_per_label).",
        )
    return size
