"""Which old texts stand beside a batch, how many, and to whose answers the model is held."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from merganser.methods.base import TaskContext
from merganser.methods.shared.rehearsal import Rehearsal
from merganser.models.base import eval_mode
from merganser.models.precision import autocast
from merganser.training.consistency import Answers, Consistency, answer_logits, divergence, keep
from merganser.training.determinism import derive_seed
from merganser.training.rehearsal import MemoryBatches, to_device
from merganser.weights import Weights
from merganser_tried.losses import LEAST, TaskLosses, by_task
from merganser_tried.options import AimTriedOptions

EVERY = 4
"""Training batches between two measurements of what the memory has lost."""

EVENLY = 0.1
"""Part of the texts drawn evenly with ``by_forgetting``: a task that has lost nothing is still read."""


class TriedRehearsal(Rehearsal):
    """Old texts beside the batches as :class:`AimTriedOptions` says.

    Args:
        tried: what is tried.
        context: of the task; its memory is what is rehearsed.
        slow: the moving average of the weights, with ``consistent_with: slow``.

    Attributes:
        last_losses: on old texts and on new ones (nats); whoever knows the second sets it.
    """

    def __init__(self, *args: Any, tried: AimTriedOptions, context: TaskContext, slow: Weights | None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._tried = tried
        self._context = context
        self._slow = slow
        self._losses = TaskLosses(context, most=4) if tried.old_texts in ("by_forgetting", "by_need") else None
        self._by_task = by_task(context.memory, context.memory_groups)
        self._seed = derive_seed(context.seed, "which old texts")
        self._carried = 0.0
        self._position = 0
        self._lost: dict[str, float] = {}
        self.last_losses = [1.0, 1.0]
        if tried.old_texts == "by_loss":
            self.on_loss = self._remember(self.on_loss)

    def _remember(self, listener: Callable[[float], None] | None) -> Callable[[float], None]:
        def remember(loss: float) -> None:
            self.last_losses[0] = loss
            if listener is not None:
                listener(loss)

        return remember

    def _rows(self, batches: MemoryBatches, batch: int) -> tuple[list[Any], int]:
        how = self._tried.old_texts
        if how in ("evenly", "in_bursts"):
            return super()._rows(batches, batch)
        if self._losses is not None and self._batches_drawn % EVERY == 0:
            now = self._losses.measure(self._context.backbone.module)
            self._lost = {task: max(0.0, loss - self._losses.start[task]) for task, loss in now.items()}
        assert self.options.share is not None
        self._carried += batch * self.options.share * self._factor()
        number = min(int(self._carried), batches.batch_size)
        self._carried -= int(self._carried)
        if how == "by_forgetting":
            return self._drawn(number), 1
        self._position += number
        return batches.rows(self._position - number, number), 1

    def _factor(self) -> float:
        """Return by what the share of old texts is multiplied."""
        if self._tried.old_texts == "by_need":
            assert self._losses is not None
            started = max(sum(self._losses.start.values()), LEAST)
            return 2 * min(1.0, sum(self._lost.values()) / started)
        if self._tried.old_texts == "by_loss":
            return 2 * self.last_losses[0] / max(sum(self.last_losses), LEAST)
        return 1.0

    def _drawn(self, number: int) -> list[Any]:
        """Draw old texts, each task in proportion to what it has lost."""
        tasks, lost = list(self._by_task), np.array([self._lost.get(task, 0.0) for task in self._by_task])
        even = np.full(len(tasks), 1 / len(tasks))
        odds = even if lost.sum() == 0 else EVENLY * even + (1 - EVENLY) * lost / lost.sum()
        rng = np.random.default_rng([self._seed, self._batches_drawn])
        chosen = [self._by_task[tasks[i]] for i in rng.choice(len(tasks), number, p=odds)]
        return [examples[rng.integers(len(examples))] for examples in chosen]

    def _loss(self, context: TaskContext) -> Callable[[nn.Module, list[Any]], Tensor]:
        of_old = super()._loss(context)
        if not self._tried.new_beside_old:
            return of_old
        beside = new_texts_with_all_labels(context)
        rng = np.random.default_rng(derive_seed(context.seed, "new beside old"))

        def with_new(model: nn.Module, rows: list[Any]) -> Tensor:
            return of_old(model, [*rows, *(beside[i] for i in rng.integers(len(beside), size=len(rows)))])

        return with_new

    def _consistency(self, context: TaskContext) -> Consistency:
        held = self._tried.consistent_with
        if held == "start":
            return super()._consistency(context)
        if held == "slow":
            assert self._slow is not None
            return SlowConsistency(context.backbone, context.memory, self._slow)
        return PartialConsistency(context.backbone, context.memory, context, held)


def new_texts_with_all_labels(context: TaskContext) -> list[Any]:
    """Return the new task's texts for an encoder, compared with the labels of all tasks."""
    known: list[int] = []
    for spec in context.specs().values():
        known += [row for row in context.backbone.label_rows(spec) if row not in known]
    return [
        {**feature, "candidates": known, "label": known.index(feature["candidates"][feature["label"]])}
        for feature in context.features
    ]


class SlowConsistency(Consistency):
    """The answers of a moving average of the weights, computed whenever they are asked for."""

    def __init__(self, backbone: Any, memory: Sequence[Any], slow: Weights) -> None:
        super().__init__(backbone, [])
        self._backbone = backbone
        self._slow = slow

    def of(self, examples: Sequence[Any]) -> list[Answers] | None:
        with eval_mode(self._backbone.module), torch.no_grad():
            self._keep(self._backbone, list(examples))
        return [self._answers[id(example)] for example in examples]

    def _logits(self, backbone: Any, batch: Mapping[str, Tensor]) -> Tensor:
        # The weights themselves must stay as they are: the loss on the new texts is not differentiated yet.
        outputs = torch.func.functional_call(backbone.module, dict(self._slow), kwargs=dict(batch))
        return answer_logits(outputs, batch, self._kind)


class PartialConsistency(Consistency):
    """Consistency on texts that were answered rightly, or among the labels that were known, alone.

    Args:
        context: of the task, whose labels are new.
        held: ``right``, ``known`` or ``right_and_known``.
    """

    def __init__(self, backbone: Any, memory: Sequence[Any], context: TaskContext, held: str) -> None:
        self._right: dict[int, bool] = {}
        self._only_right = held != "known"
        matcher = backbone.kind == "matcher" and held != "right"
        self._new = torch.tensor(backbone.label_rows(context.spec)) if matcher else None
        super().__init__(backbone, memory)

    def _keep(self, backbone: Any, examples: list[Any]) -> None:
        batch = to_device(backbone.collate(examples), self._device)
        with autocast(self._device, backbone.precision):
            logits = self._masked(self._logits(backbone, batch), batch)
        position = 0
        for example, number in zip(examples, self._numbers(batch), strict=True):
            of_example = logits[position : position + number]
            if self._kind == "matcher":
                of_example = of_example[:, : len(example["candidates"])]
                wanted = torch.tensor([example["label"]])
            else:
                wanted = torch.tensor([token for token in example["labels"] if token >= 0])[:number]
            self._right[id(example)] = bool((of_example.argmax(-1).cpu() == wanted).all())
            self._answers[id(example)] = keep(of_example)
            position += number

    def _masked(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        if self._new is None:
            return logits
        return logits.masked_fill(torch.isin(batch["candidates"], self._new.to(logits.device)), float("-inf"))

    def of(self, examples: Sequence[Any]) -> list[Answers] | None:
        self._asked = [self._right[id(example)] or not self._only_right for example in examples]
        return super().of(examples)

    def divergence(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor], held: Sequence[Answers]) -> Tensor:
        logits = self._masked(answer_logits(outputs, batch, self._kind), batch)
        terms, position, counted = [], 0, 0
        for answers, asked in zip(held, self._asked, strict=True):
            number = len(answers.choices)
            if asked:
                terms.append(number * divergence(logits[position : position + number], answers))
                counted += number
            position += number
        return torch.stack(terms).sum() / counted if terms else logits.nan_to_num(neginf=0.0).sum() * 0.0
