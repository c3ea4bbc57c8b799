"""AimMerging as a callback of a stock ``transformers.Trainer``.

Source: Feng et al., "AIMMerging: Adaptive Iterative Model Merging Using Training Trajectories for Language Model
Continual Learning", EMNLP 2025 (arXiv 2509.17348).
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from merganser import processes
from merganser.control import Merge, MergeController
from merganser.errors import MerganserError, RunError
from merganser.events import Listener, Merged, silent
from merganser.runs.record import CostRecord, MergeRecord
from merganser.training.aim.arguments import check_memory, check_settings, check_sharing, collator_of, new_examples
from merganser.training.aim.checkpoint import (
    Identity,
    checkpoint_folder,
    identifying_settings,
    read_state,
    where_to_look,
    write_state,
)
from merganser.training.aim.config import AimConfig
from merganser.training.aim.fusion import fuse
from merganser.training.aim.guard import Losses, OptimizerCopy, refusal
from merganser.training.aim.importance import Importance
from merganser.training.aim.probing import Probes
from merganser.training.distributed import LocalBatch, shifts_labels
from merganser.training.options import check_batch
from merganser.training.rehearsal import (
    Collator,
    Dataset,
    LossFunction,
    MemoryBatches,
    measure_loss,
    model_loss,
    rehearse_step,
    to_device,
)
from merganser.training.state import TaskState
from merganser.weights import Weights


class AimMerging(TrainerCallback):
    r"""Merges the model being trained with what it knew, when and as strongly as its own trajectory says.

    After every optimizer step the loss on a batch of the memory is probed (the forgetting signal) and given to a
    :class:`~merganser.MergeController`. When it decides to merge, the memory is rehearsed for some optimizer steps and
    the weights become :math:`\theta_0 + w_{new} \Delta_{new} + w_{old} \Delta_{old}` (see
    :func:`merganser.merging.trajectory.merge_two_phases`). Works with any model whose ``forward`` returns a loss::

        trainer = Trainer(model, args, train_dataset=new_task, callbacks=[AimMerging(memory=old_examples)])

    Args:
        memory: examples of earlier tasks, in the form of the training dataset (tokenised).
        config: the numbers; :class:`~merganser.training.aim.config.AimConfig` lists them with their defaults.
        collator: turns examples into a batch; default: the one of the training data loader.
        loss: ``loss(model, batch)``; default: the loss the model returns.
        probe_groups: one group (such as task and label) per example of the memory, over which a fixed probe set is
            spread; default: no groups, any examples.
        resume_from: the checkpoint that the trainer resumes from, if it is not in its ``output_dir``.
        task, task_index: written into the records.
        listener: receives an event for every merge.
        **settings: fields of ``AimConfig`` that replace those of ``config``, as in
            ``AimMerging(memory, threshold_factor=1.5)``.

    One instance serves one task. Where training starts at the first step again, the instance starts over, too.

    Attributes:
        config: the numbers used.
        controller: takes the decisions.
        merges: one :class:`~merganser.runs.record.MergeRecord` per merge.
        probes: step -> (probe loss or ``None``, planned interval, threshold or ``None``).
        cost: seconds and examples spent.

    Raises:
        InputError: the memory is empty or smaller than a batch, a setting is impossible, or groups are not one per
            example; when training begins: the memory has not the form of the training data, which is a stream while
            merges are to be measured on it, or the checkpoint has no state to resume from, or one of other settings.
        TypeError: there is no such setting.
        RunError: while training, a loss or the weights are not finite, and not because of a merge.
    """

    def __init__(
        self,
        memory: Dataset,
        config: AimConfig | None = None,
        *,
        collator: Collator | None = None,
        loss: LossFunction = model_loss,
        probe_groups: Sequence[Hashable] = (),
        resume_from: str | Path | None = None,
        task: str = "task",
        task_index: int = 1,
        listener: Listener = silent,
        **settings: Any,
    ) -> None:
        self.config = check_settings(config or AimConfig(), settings)
        check_memory(memory, self.config, probe_groups)
        self.memory = memory
        self.collator = collator
        self.loss = loss
        self.probe_groups = probe_groups
        self.resume_from = resume_from
        self.task = task
        self.task_index = task_index
        self.listener = listener
        self._begin()

    def _begin(self) -> None:
        """Hold what a fresh instance holds."""
        self.controller = MergeController(self.config)
        self.merges: list[MergeRecord] = []
        self.probes: dict[int, tuple[float | None, int, float | None]] = {}
        self.cost = CostRecord()
        self._draws = 0
        self._importance: Importance | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model, loader = kwargs["model"], kwargs["train_dataloader"]
        check_sharing(model)
        config = self.config
        if state.global_step == 0:  # a trainer may start over, and another one may start with this instance
            self._begin()
        default = args.per_device_train_batch_size * processes.count()
        size = check_batch("batch", config.batch, default, len(self.memory))
        probe = check_batch("probe_batch", config.probe_batch, size, len(self.memory))
        seed = args.seed if config.seed is None else config.seed
        self._rehearsal = MemoryBatches(self.memory, size, seed, config.rehearsal_sampling)
        self._new = new_examples(loader, config.measure_merges)
        self._seed = seed
        self._collate = self.collator or collator_of(loader, self.memory)
        self._device = next(model.parameters()).device
        self._shifts_labels = shifts_labels(model)
        self._weights = Weights.of(model)
        self._start = self._weights.snapshot()
        if config.fusion == "importance_masks":
            self._importance = Importance(model, config.importance_smoothing)
        self._probing = Probes(self.memory, probe, seed, self._batch, config.probe_set, self.probe_groups)
        if config.checkpoints and state.global_step > 0:
            folders = where_to_look(self.resume_from, args, state)
            self.load_task_state(read_state(folders, self._identity(state)))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.config.checkpoints:
            write_state(checkpoint_folder(args, state), self._identity(state), self.task_state())

    def _identity(self, state: TrainerState) -> Identity:
        """Called in every process: each may hold a part of the weights."""
        settings = identifying_settings(self.config)
        return Identity(state.global_step, self._weights.l1(), self._weights.sharded, settings)

    def task_state(self) -> TaskState:
        """What it holds after a step: decisions, draws, records, and the weights after the last merge."""
        return TaskState(
            values={
                "controller": self.controller.state_dict(),
                "draws": self._draws,
                "merges": [merge.model_dump() for merge in self.merges],
                "probes": [[step, *probe] for step, probe in self.probes.items()],
                "cost": self.cost.model_dump(),
            },
            tensors=dict(self._start) | ({} if self._importance is None else self._importance.state_tensors()),
        )

    def load_task_state(self, state: TaskState) -> None:
        """Go on from what :meth:`task_state` returned, with the weights of that step in the model.

        Raises:
            ValueError: the state is not of this model or not of this version.
        """
        values = state.values
        self.controller.load_state_dict(values["controller"])
        self._draws = int(values["draws"])
        self.merges = [MergeRecord.model_validate(merge) for merge in values["merges"]]
        self.probes = {step: (probe, interval, threshold) for step, probe, interval, threshold in values["probes"]}
        self.cost = CostRecord.model_validate(values["cost"])
        self._start.copy_(Weights({name: state.tensors[name] for name in self._start}))
        if self._importance is not None:
            self._importance.load_state_tensors(state.tensors)

    @property
    def merges_at_end(self) -> bool:
        """Whether there is a merge after the last step of the task."""
        return self.config.merge_at_end or self.config.only_at_end

    @contextlib.contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            setattr(self.cost, part, getattr(self.cost, part) + time.perf_counter() - started)

    def _spent(self) -> float:
        cost = self.cost
        return cost.probing_seconds + cost.rehearsal_seconds + cost.merging_seconds + cost.merge_eval_seconds

    def _batch(self, examples: list[Any]) -> LocalBatch:
        return LocalBatch.of(examples, lambda part: to_device(self._collate(part), self._device), self._shifts_labels)

    def _measure(self, model: nn.Module, share: LocalBatch, dropout: bool = False) -> float:
        return share.mean(measure_loss(model, share.batch, self.loss, dropout=dropout))

    def _diverged(self, what: str) -> MerganserError:
        remedy = "Training has diverged; try a lower learning rate or precision fp32."
        return processes.mark_collective(RunError(f"{what} of task '{self.task}'.", remedy))

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._importance is not None:
            self._observe_importance()

    def _observe_importance(self) -> None:
        assert self._importance is not None
        with self._timed("merging_seconds"):
            self._importance.observe()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        began, spent = time.perf_counter(), self._spent()
        model, step = kwargs["model"], state.global_step
        probe: float | None = None
        if self.controller.wants_probe():
            batch = self._probing.batch(step)
            with self._timed("probing_seconds"):
                probe = self._measure(model, batch, self.config.probe_dropout)
            self.cost.examples_probed += self._probing.batch_size
            if not math.isfinite(probe):
                raise self._diverged(f"the loss on the memory became {probe} after step {step}")
        decision = self.controller.observe(step, probe)
        self.probes[step] = (probe, self.controller.interval, self.controller.threshold)
        if decision is None and self.merges_at_end and (step >= state.max_steps or control.should_training_stop):
            decision = self.controller.finish(step)
        if decision is not None:
            self._merge(decision, model, kwargs["optimizer"], args.max_grad_norm, probe)
        self.cost.bookkeeping_seconds += time.perf_counter() - began - (self._spent() - spent)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Stopped after a step was over, by an evaluation for example: its updates are not merged yet. Weights that the
        # trainer has put back are not those at the end of these updates.
        put_back = args.load_best_model_at_end and state.best_model_checkpoint is not None
        decision = self.controller.finish(state.global_step) if self.merges_at_end and not put_back else None
        if decision is not None:
            self._merge(decision, kwargs["model"], kwargs["optimizer"], args.max_grad_norm, None)

    def _merge(
        self,
        decision: Merge,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        clip: float,
        probe: float | None,
    ) -> None:
        """Rehearse, merge, take it back if it did harm, and write down what happened.

        Args:
            probe: the probe loss of this very step, if any.
        """
        # Without dropout the probe was the same forward pass.
        before = self._losses(model, decision.step, None if self.config.probe_dropout else probe)
        with self._timed("merging_seconds"):
            after_new = self._weights.snapshot()
            change_new = after_new.minus(self._start)
            learning_signal = change_new.l1() / decision.interval
        # What is wrong before the merge is not its doing, and taking it back would not help.
        for name, value in zip(("loss on the task", "loss on the memory"), before, strict=True):
            if value is not None and not math.isfinite(value):
                raise self._diverged(f"the {name} became {value} after step {decision.step}")
        if not math.isfinite(learning_signal):
            raise self._diverged(f"the weights are not finite at the merge after step {decision.step}")
        with self._timed("merging_seconds"):
            optimizer_before = OptimizerCopy(optimizer)
            scores_new = None if self._importance is None else self._importance.end_phase()
        rehearsal_steps = decision.rehearsal_steps
        if decision.cause == "end" and not any(group["lr"] for group in optimizer.param_groups):
            rehearsal_steps = 0  # a schedule that has come to 0 would move nothing
        for _ in range(rehearsal_steps):
            share = self._batch(self._rehearsal.rehearsal(self._draws))
            self._draws += 1
            with self._timed("rehearsal_seconds"):
                observe = None if self._importance is None else self._observe_importance
                rehearse_step(model, optimizer, share.batch, clip, self.loss, share.weight, observe)
            self.cost.examples_rehearsed += self._rehearsal.batch_size
        with self._timed("merging_seconds"):
            change_old = self._weights.minus(after_new)
            norm_new, norm_old = change_new.l2(), change_old.l2()
            cosine = change_new.cosine(change_old) if math.isfinite(norm_old) else None
            scores = None
            if self._importance is not None and scores_new is not None:
                scores = scores_new, self._importance.end_phase()
            weights = self._weights, self._start, after_new
            weight_new, weight_old = fuse(decision, *weights, scores, self.config.important_share)
            finite = math.isfinite(norm_old) and self._weights.is_finite()
        after = self._losses(model, decision.step) if finite else (None, None)
        reason = refusal(before, after, finite, self.config.guard_factor)
        with self._timed("merging_seconds"):
            if reason is not None:
                self._weights.copy_(after_new)
                optimizer_before.put_back()
            self._start.copy_(self._weights)
        next_interval = self.controller.record(learning_signal)
        record = MergeRecord(
            task=self.task,
            task_index=self.task_index,
            merge=len(self.merges) + 1,
            step=decision.step,
            cause=decision.cause,
            status="applied" if reason is None else "refused",
            reason=reason,
            alarms=decision.alarms,
            interval=decision.interval,
            next_interval=next_interval,
            threshold=decision.threshold,
            learning_signal=learning_signal,
            forgetting_signal=decision.probe_loss,
            rehearsal_steps=rehearsal_steps,
            weight_new=weight_new,
            weight_old=weight_old,
            norm_new=norm_new,
            norm_old=_finite(norm_old),
            cosine=cosine,
            loss_new_before=before[0],
            loss_new_after=_finite(after[0]),
            loss_old_before=before[1],
            loss_old_after=_finite(after[1]),
        )
        self.merges.append(record)
        self.listener(Merged(**{item.name: getattr(record, item.name) for item in fields(Merged)}))

    def _losses(self, model: nn.Module, step: int, loss_old: float | None = None) -> Losses:
        """Losses on a batch of the new task and on the probe's batch, dropout off; the same batches at one step.

        Args:
            loss_old: the second loss, where it is known already.
        """
        if not self.config.measure_merges or self._new is None:
            return None, None
        generator = np.random.default_rng([self._seed, 3, step])
        size = min(self._probing.batch_size, len(self._new))
        chosen = generator.choice(len(self._new), size, replace=False)
        new_batch = self._batch([self._new[int(index)] for index in chosen])
        old_batch = self._probing.batch(step) if loss_old is None else None
        with self._timed("merge_eval_seconds"):
            loss_new = self._measure(model, new_batch)
            return loss_new, loss_old if old_batch is None else self._measure(model, old_batch)


def _finite(value: float | None) -> float | None:
    """The value, as far as it can be written down."""
    return value if value is not None and math.isfinite(value) else None
