"""The ``training`` section of a run: how one task is optimised."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from merganser.errors import InputError
from merganser.options import StrictOptions

MAY_CHANGE = frozenset({"checkpoint_steps", "checkpoint_minutes", "report_to", "report_steps"})
"""Options that change no result, and may differ when a run is resumed."""

NOT_IN_A_FIRST_TASK = MAY_CHANGE | {"asymmetric_loss"}
"""Options that change no result of a first task, which has no labels before its own."""

Optimizer = Literal[
    "adamw_torch_fused",
    "adamw_torch",
    "adamw_8bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "ademamix",
    "ademamix_8bit",
    "paged_ademamix_32bit",
    "paged_ademamix_8bit",
    "lion_32bit",
    "lion_8bit",
    "paged_lion_32bit",
    "paged_lion_8bit",
    "adafactor",
    "rmsprop",
    "sgd",
]
"""Optimizers of transformers whose state is of plain tensors and numbers, so that a checkpoint can hold it."""

WITHOUT_BITSANDBYTES = ("adamw_torch_fused", "adamw_torch", "adafactor", "rmsprop", "sgd")

TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]

RehearsalSampling = Literal["epoch", "iid"]
"""How rehearsal batches are drawn from the memory, see :class:`merganser.training.rehearsal.MemoryBatches`."""


Packing = Literal["none", "padding_free", "packed"]
"""How the examples of a batch are laid out, see :mod:`merganser.training.packing`."""


class TrainingOptions(StrictOptions):
    """How one task is optimised. The defaults are AimMerging's for T5-large."""

    epochs: float = Field(10, gt=0, allow_inf_nan=False, description="passes over the task's training examples")
    steps: int | None = Field(None, gt=0, description="optimizer steps instead of epochs")
    batch: int = Field(32, gt=0, description="examples per forward pass, over all processes")
    accumulation: int = Field(1, gt=0, description="batches whose gradients are accumulated for one optimizer step")
    optimizer: Optimizer = Field(
        "adamw_torch_fused",
        description="an optimizer by its name in transformers; names with 8bit, paged and lion need bitsandbytes",
    )
    learning_rate: float = Field(3e-4, gt=0, allow_inf_nan=False, description="peak learning rate")
    weight_decay: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="weight decay: decoupled, except for sgd and rmsprop"
    )
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
    loss_mean: Literal["tokens", "batches"] = Field(
        "tokens",
        description="mean loss of an optimizer step that accumulates batches; tokens: over all its label tokens (or "
        "examples); batches: mean of the batches' means, as in transformers before 4.46",
    )
    asymmetric_loss: bool = Field(
        False,
        description="matcher with candidates: seen; compare a text of the new task with that task's labels alone, and "
        "only texts of the memory with all labels seen (asymmetric cross-entropy, ER-ACE): compared with all, new "
        "texts push every earlier label away. Method aim: true by default",
    )
    group_by_length: bool = Field(True, description="batch texts of similar length together, which saves padding")
    packing: Packing = Field(
        "none",
        description="causal: lay the examples of a batch out without padding and without attention between them; "
        "padding_free: all in one row (fast with flash attention); packed: in rows of pack_length tokens. Steps, "
        "examples and losses stay the same",
    )
    pack_length: int | None = Field(
        None, ge=2, description="packed: tokens of a row; null: those of the longest example of the batch"
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass instead of storing them"
    )
    select_best: bool = Field(
        False,
        description="deploy the weights of the task that did best on the development texts of all tasks seen, instead "
        "of the last ones",
    )
    select_by: Literal["score", "loss"] = Field(
        "score",
        description="select_best: highest mean score of the tasks, or lowest mean loss (each task's over label tokens)",
    )
    select_every: int | None = Field(
        None, gt=0, description="select_best: optimizer steps between two evaluations; null: once per epoch"
    )
    select_texts: int | None = Field(
        None, gt=0, description="select_best: development texts drawn from each task; null: all"
    )
    select_last: bool = Field(
        True, description="select_best: also evaluate the weights after the last step of a task; false: never"
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
    report_to: list[TrackerName] = Field(
        default=[],
        description="experiment trackers that hear of losses, merges and scores: tensorboard, wandb, mlflow, trackio; "
        "a name or a list",
    )
    report_steps: int = Field(10, gt=0, description="optimizer steps between two reports; losses are means over them")

    @field_validator("report_to", mode="before")
    @classmethod
    def _one_tracker(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("report_to")
    @classmethod
    def _each_tracker_once(cls, value: list[TrackerName]) -> list[TrackerName]:
        return list(dict.fromkeys(value))

    @property
    def takes_checkpoints(self) -> bool:
        """Whether an interrupted task can resume from a step within it."""
        return self.checkpoint_steps is not None or self.checkpoint_minutes is not None

    @model_validator(mode="after")
    def _warmup_is_whole(self) -> TrainingOptions:
        if self.warmup >= 1 and self.warmup != int(self.warmup):
            raise ValueError(f"warmup is {self.warmup}; give whole steps, or a fraction of the steps below 1")
        return self

    @model_validator(mode="after")
    def _rows_are_packed(self) -> TrainingOptions:
        if self.pack_length is not None and self.packing != "packed":
            raise ValueError(f"pack_length is for packing: packed, and packing is {self.packing}")
        return self


WARMUP_SHARE = 0.1
"""Share of a task's steps that warm up where the configured warm-up would take all of them."""


def fitting_warmup(options: TrainingOptions, steps: int) -> float:
    """Return the warm-up of a task of so many optimizer steps.

    Returns:
        the configured one; whole steps (rounded down) where the learning rate would never reach its peak with it.
    """
    configured = options.warmup if options.warmup >= 1 else math.ceil(options.warmup * steps)
    return options.warmup if configured < steps or configured == 0 else int(WARMUP_SHARE * steps)


def planned_steps(examples: int, options: TrainingOptions) -> int:
    """Return the number of optimizer steps of a task with this many training examples."""
    return math.ceil(options.epochs * steps_per_epoch(examples, options)) if options.steps is None else options.steps


def steps_per_epoch(examples: int, options: TrainingOptions) -> int:
    """Return the number of optimizer steps of one pass over this many training examples."""
    return math.ceil(math.ceil(examples / options.batch) / options.accumulation)


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
