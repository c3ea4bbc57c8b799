"""Rehearsal beside the batches of a new task: how many rows of the memory, how often, with which weight."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from merganser.methods.base import MethodOptions, TaskContext
from merganser.streams.mixing import mixed_before
from merganser.training.determinism import derive_seed
from merganser.training.options import TrainingOptions, check_batch
from merganser.training.records import TaskRecords
from merganser.training.state import TaskState

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import TrainerCallback

    from merganser.training.consistency import Consistency
    from merganser.training.rehearsal import MemoryBatches
    from merganser.training.replay_spacing import ReplaySpacing
    from merganser.training.trainer import Penalty

HELD = "answers to be consistent with"
"""Entry of a batch that the model does not see."""

DAY_STEPS = 24
"""Updates of the first day of model time."""

MOST_STEPS = 8
"""Steps with rehearsal at one moment of model time, at most, where no number is given."""


class RehearsalOptions(MethodOptions):
    """Rows of the memory beside the rows of a training batch."""

    batch: int | None = Field(
        None,
        gt=0,
        description="memory examples per batch; null: the size of a training batch, or of the whole memory if smaller",
    )
    share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="instead of batch: memory examples per batch as a share of the training batch; a fraction of an "
        "example is carried over to the next batch, so that the share holds over the task",
    )
    weight: float = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description="weight of the loss on the memory, added to the loss on the new task",
    )
    consistency: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="weight of the divergence from the answers that the model gave to these texts when the task began, "
        "added to their loss; 0: none",
    )
    spacing: Literal["steps", "model_time"] = Field(
        "steps",
        description="steps: rehearse in every `every`-th optimizer step; model_time: in `burst` steps at 1, 2, 4, 7, "
        "15, 30 days of the task and at every doubling, a day being the distance that the weights travel in the first "
        "`day_steps` steps",
    )
    every: int = Field(1, gt=0, description="spacing steps: optimizer steps from one with rehearsal to the next")
    burst: int | None = Field(
        None,
        gt=0,
        description="spacing model_time: optimizer steps with rehearsal at each moment; null: as many as the memory "
        f"has batches, at most {MOST_STEPS}",
    )
    day_steps: int = Field(DAY_STEPS, gt=0, description="spacing model_time: optimizer steps of the first day")

    @model_validator(mode="after")
    def _rehearsal_fits_together(self) -> RehearsalOptions:
        if self.batch is not None and self.share is not None:
            raise ValueError("gives both batch and share: keep one")
        unused = ("every",) if self.spacing == "model_time" else ("burst", "day_steps")
        for name in unused:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no effect with spacing: {self.spacing}")
        return self

    def most_rows(self, training: TrainingOptions, memory_examples: int) -> int | None:
        """Return the largest number of memory examples in a batch; ``None`` without a memory.

        Raises:
            InputError: ``batch`` is larger than the memory.
        """
        if memory_examples == 0:
            return None
        if self.share is not None:
            return min(math.ceil(Fraction(repr(self.share)) * training.batch), memory_examples)
        return check_batch("method.batch", self.batch, training.batch, memory_examples)

    def rows_before(self, batch: int, number: int) -> int:
        """Return the memory examples that ``share`` puts beside the training batches before ``number``, from 0."""
        assert self.share is not None
        return mixed_before(number * batch, self.share)


class Rehearsal:
    """The loss on the memory beside the loss of a task's batches, as the options say, and its state within the task.

    Args:
        options: how many rows, how often.
        purpose: names the draws, with the seed of the task.
        on_loss: called with the loss on every batch of the memory (nats, this rank's term of its mean), without
            consistency and weight.
        batches_per_pass: with ``share``, training batches whose memory examples are read in one pass, beside the last
            of them; the loss then counts once for every batch that has any.
    """

    def __init__(
        self,
        options: RehearsalOptions,
        purpose: str,
        on_loss: Callable[[float], None] | None = None,
        batches_per_pass: int = 1,
    ) -> None:
        self.options = options
        self.purpose = purpose
        self.on_loss = on_loss
        self.batches_per_pass = batches_per_pass
        self._batches_drawn = 0
        self._spacing: ReplaySpacing | None = None

    def callbacks(self, context: TaskContext, records: TaskRecords) -> list[TrainerCallback]:
        """Return what measures model time, where rehearsal is spaced by it; called before :meth:`penalty`."""
        from merganser.training.replay_spacing import ReplaySpacing

        most = self.options.most_rows(context.training, len(context.memory))
        if most is None or self.options.spacing == "steps":
            return []
        burst = self.options.burst or min(MOST_STEPS, -(-len(context.memory) // most))
        self._spacing = ReplaySpacing(records, self.options.day_steps, burst)
        return [self._spacing]

    def penalty(self, context: TaskContext, records: TaskRecords) -> Penalty | None:
        """Return the term of the loss; ``None`` without a memory.

        Args:
            context: of the task.
            records: of the task; receive seconds and examples.
        """
        import torch

        from merganser.training.rehearsal import MemoryBatches

        most = self.options.most_rows(context.training, len(context.memory))
        if most is None:
            return None
        most = min(most * self.batches_per_pass, len(context.memory))
        batches = MemoryBatches(context.memory, most, derive_seed(context.seed, self.purpose))
        device = next(context.backbone.module.parameters()).device
        with records.timed("rehearsal_seconds"):
            loss_of = self._loss(context)

        def loss_on_memory(
            model: nn.Module, step: int, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]
        ) -> Tensor:
            started = time.perf_counter()
            if not self._rehearses(step):
                return torch.zeros((), device=device)
            rows, times = self._rows(batches, context.training.batch)
            self._batches_drawn += 1
            if not rows:
                return torch.zeros((), device=device)
            loss = self.options.weight * times * loss_of(model, rows)
            records.cost.examples_rehearsed += len(rows)
            # Only the forward pass can be timed on its own; the backward pass is shared with the new task's batch.
            records.cost.rehearsal_seconds += time.perf_counter() - started
            return loss

        return loss_on_memory

    def _rows(self, batches: MemoryBatches, batch: int) -> tuple[list[Any], int]:
        """Return the memory examples beside the next training batch of ``batch`` examples, and how often they count."""
        if self.options.share is None:
            return batches.rehearsal(self._batches_drawn), 1
        after = self._batches_drawn + 1
        if after % self.batches_per_pass:
            return [], 0
        before = [self.options.rows_before(batch, number) for number in range(after - self.batches_per_pass, after + 1)]
        rows = batches.rows(before[0], min(before[-1] - before[0], batches.batch_size))
        return rows, sum(second > first for first, second in pairwise(before))

    def _loss(self, context: TaskContext) -> Callable[[nn.Module, list[Any]], Tensor]:
        """Return the loss on examples of the memory; answers to be consistent with are computed here."""
        from merganser.training.distributed import SplitBatch
        from merganser.training.rehearsal import model_loss, to_device

        device = next(context.backbone.module.parameters()).device
        if not self.options.consistency:
            collate, consistency = context.collator(), None
        else:  # answers are found by the rows of a padded batch
            collate, consistency = context.backbone.collate, self._consistency(context)

        def collate_examples(examples: list[Any]) -> Mapping[str, Any]:
            held = None if consistency is None else consistency.of(examples)
            return collate(examples) if held is None else {**collate(examples), HELD: held}

        def loss_of(model: nn.Module, rows: list[Any]) -> Tensor:
            batch = SplitBatch.of(rows, collate_examples)
            losses, terms = [], []
            for part, weight in zip(batch.parts, batch.weights, strict=True):
                inputs = to_device(part.batch, device)
                held = inputs.pop(HELD, None)
                if held is None or consistency is None:
                    loss = weight * model_loss(model, inputs)
                    terms.append(loss)
                else:
                    outputs = model(**inputs)
                    loss = weight * outputs["loss"]
                    divergence = consistency.divergence(outputs, inputs, held)
                    terms += [loss, self.options.consistency * weight * divergence]
                losses.append(loss)
            if self.on_loss is not None:
                self.on_loss(float(sum(losses[1:], losses[0]).detach()))
            return sum(terms[1:], terms[0])

        return loss_of

    def _consistency(self, context: TaskContext) -> Consistency:
        """Return the answers that the model is held to, as it gives them now."""
        from merganser.training.consistency import Consistency

        return Consistency(context.backbone, context.memory)

    def _rehearses(self, step: int) -> bool:
        """Return whether optimizer step ``step``, from 0, has rehearsal."""
        return (step + 1) % self.options.every == 0 if self._spacing is None else self._spacing.left > 0

    def task_state(self) -> TaskState:
        """Return the number of batches drawn, and the model time where it is measured."""
        values = {"draws": self._batches_drawn}
        return TaskState(values if self._spacing is None else values | {"spacing": self._spacing.task_state().values})

    def load_task_state(self, state: TaskState) -> None:
        """Restore :meth:`task_state`."""
        self._batches_drawn = int(state.values["draws"])
        if self._spacing is not None:
            self._spacing.load_task_state(TaskState(state.values["spacing"]))
