"""Experience replay: a batch of the memory beside each batch of the new task."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from merganser.methods.base import Method, MethodOptions, TaskContext
from merganser.training.determinism import derive_seed
from merganser.training.options import TrainingOptions, check_batch
from merganser.training.state import TaskState

if TYPE_CHECKING:
    from torch import Tensor, nn

    from merganser.training.trainer import Penalty


class ReplayOptions(MethodOptions):
    """Experience replay: rehearse a little of the memory at every step."""

    name: Literal["replay"] = "replay"
    batch: int | None = Field(
        None,
        gt=0,
        description="memory examples per step; null: the size of a training batch, or of the whole memory if smaller",
    )
    weight: float = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description="weight of the loss on the memory, added to the loss on the new task",
    )


class Replay(Method[ReplayOptions]):
    r"""Minimise :math:`L_{new} + \lambda L_{memory}`, with a fresh memory batch at every forward pass.

    Source: experience replay as in Chaudhry et al. 2019, "On Tiny Episodic Memories in Continual Learning"
    (arXiv 1902.10486).
    """

    Options = ReplayOptions
    title = "Experience replay"
    paper = "Chaudhry 2019, arXiv 1902.10486"
    idea = "Add the loss on a batch of stored examples to the loss of every batch (rehearsal)."
    uses_memory = True
    supports_distributed = True

    _draws: int = 0

    def rehearsal_batch(self, training: TrainingOptions, memory_examples: int) -> int | None:
        if memory_examples == 0:
            return None
        return check_batch("method.batch", self.options.batch, training.batch, memory_examples)

    def penalty(self, context: TaskContext) -> Penalty | None:
        from merganser.training.distributed import SplitBatch
        from merganser.training.rehearsal import MemoryBatches, model_loss, to_device

        size = self.rehearsal_batch(context.training, len(context.memory))
        if size is None:
            return None
        batches = MemoryBatches(context.memory, size, derive_seed(context.seed, "replay"))
        device = next(context.backbone.module.parameters()).device
        collate = context.collator()
        self._draws = 0

        def loss_on_memory(
            model: nn.Module, step: int, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]
        ) -> Tensor:
            started = time.perf_counter()
            batch = SplitBatch.of(batches.rehearsal(self._draws), collate)
            self._draws += 1
            terms = [
                self.options.weight * weight * model_loss(model, to_device(part.batch, device))
                for part, weight in zip(batch.parts, batch.weights, strict=True)
            ]
            loss = sum(terms[1:], terms[0])
            self.records.cost.examples_rehearsed += size
            # Only the forward pass can be timed on its own; the backward pass is shared with the new task's batch.
            self.records.cost.rehearsal_seconds += time.perf_counter() - started
            return loss

        return loss_on_memory

    def task_state(self) -> TaskState:
        return TaskState(values={"draws": self._draws})

    def load_task_state(self, state: TaskState) -> None:
        self._draws = int(state.values["draws"])
