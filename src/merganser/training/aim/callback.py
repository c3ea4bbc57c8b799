"""AimMerging as a callback of a stock ``transformers.Trainer``.

Source: Feng et al., "AIMMerging: Adaptive Iterative Model Merging Using Training Trajectories for Language Model
Continual Learning", EMNLP 2025 (arXiv 2509.17348).
"""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from merganser import processes
from merganser.control import Merge, MergeController
from merganser.errors import MerganserError, RunError
from merganser.runs.record import CostRecord, MergeRecord, SignalRecord
from merganser.training.aim.arguments import (
    check_loss,
    check_memory,
    check_settings,
    check_sharding,
    collator_of,
    new_examples,
)
from merganser.training.aim.checkpoint import (
    Identity,
    candidate_folders,
    checkpoint_folder,
    identifying_settings,
    read_state,
    write_state,
)
from merganser.training.aim.config import AimConfig
from merganser.training.aim.fusion import Update, fusion_rule
from merganser.training.aim.guard import Losses, OptimizerCopy, refusal
from merganser.training.aim.probing import Probes, ReplayedLosses
from merganser.training.distributed import SplitBatch, shifts_labels
from merganser.training.options import check_batch
from merganser.training.records import TaskRecords
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
    r"""Merges updates of the new task with updates of rehearsal, controlled by the training trajectory.

    After every optimizer step the loss on a batch of the memory is probed (the forgetting signal) and given to a
    :class:`~merganser.MergeController`. When it decides to merge, the memory is rehearsed for some optimizer steps and
    the weights become :math:`\theta_0 + w_{new} \Delta_{new} + w_{old} \Delta_{old}` (see
    :func:`merganser.merging.trajectory.merge_two_phases`). Works with any model whose ``forward`` returns a loss::

        trainer = Trainer(model, args, train_dataset=new_task, callbacks=[AimMerging(memory=old_examples)])

    Args:
        memory: examples of earlier tasks, in the form of the training dataset (tokenised).
        config: settings; :class:`~merganser.training.aim.config.AimConfig` lists them with their defaults.
        collator: turns examples into a batch; default: the one of the training data loader.
        loss: ``loss(model, batch)``, such as :func:`merganser.loss_of` of the trainer; default: the loss the model
            returns. If it has a method ``collate``, that is the default of ``collator``.
        probe_groups: one group (such as task and label) per example of the memory, over which a fixed probe set is
            spread; default: no groups, any examples.
        resume_from: the checkpoint that the trainer resumes from, if it is not in its ``output_dir``.
        records: filled while training, with the name of the task and a listener; by default new ones.
        **settings: fields of ``AimConfig`` that replace those of ``config``, as in
            ``AimMerging(memory, threshold_factor=1.5)``.

    Use one instance per task. If training starts at the first step again, its state is reset.

    Attributes:
        config: the settings in use.
        controller: decides when and how to merge.
        records: of the task.
        replayed: whoever puts examples of the memory beside the training batches adds their losses here, for
            ``probe_set: replayed``.

    Raises:
        InputError: the memory is empty or smaller than a batch, a setting is impossible, or groups are not one per
            example; when training begins: the memory does not have the form of the training data, the training data is
            a stream although merges are to be measured, or the checkpoint has no state or one of other settings.
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
        records: TaskRecords | None = None,
        **settings: Any,
    ) -> None:
        self.config = check_settings(config or AimConfig(), settings)
        check_memory(memory, self.config, probe_groups)
        self.memory = memory
        self.collator = collator or getattr(loss, "collate", None)
        self.loss = loss
        self.probe_groups = probe_groups
        self.resume_from = resume_from
        self.replayed = ReplayedLosses()
        self.records = records or TaskRecords()
        self.controller = MergeController(self.config)
        self._batches_drawn = 0

    @property
    def merges(self) -> list[MergeRecord]:
        """One record per merge."""
        return self.records.merges

    @property
    def signals(self) -> list[SignalRecord]:
        """One record per optimizer step."""
        return self.records.signals

    @property
    def cost(self) -> CostRecord:
        """Seconds and examples spent."""
        return self.records.cost

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model, loader, config = kwargs["model"], kwargs["train_dataloader"], self.config
        check_sharding(model)
        if state.global_step == 0:  # train() may be called again, or another trainer may use this instance
            self.records.reset()
            self.controller = MergeController(config)
            self.replayed.load_state([0.0, 0])
            self._batches_drawn = 0
        self._accumulation = args.gradient_accumulation_steps
        self._training_batch = args.train_batch_size * processes.world_size()
        default = self._training_batch * self._accumulation
        size = check_batch("batch", config.batch, default, len(self.memory))
        probe = check_batch("probe_batch", config.probe_examples(size), size, len(self.memory))
        seed = args.seed if config.seed is None else config.seed
        self._rehearsal = MemoryBatches(self.memory, size, seed, config.rehearsal_sampling)
        self._new = new_examples(loader, config.measure_merges)
        self._seed = seed
        self._collate = self.collator or collator_of(loader, self.memory)
        self._device = next(model.parameters()).device
        self._shifts_labels = shifts_labels(model)
        if self.loss is model_loss and self.collator is None:
            twice = [self.memory[0]] * 2 * processes.world_size()  # so that one loss is told from one per example
            check_loss(model, self._batch(twice).parts[0].batch)
        self._weights = Weights.of(model)
        self._start = self._weights.snapshot()
        self._fusion = fusion_rule(config, model, self._start)
        self._probing = Probes(self.memory, probe, seed, self._batch, config.probe_set, self.probe_groups)
        if config.checkpoints and state.global_step > 0:
            folders = candidate_folders(self.resume_from, args, state)
            saved = read_state(folders, self._identity(state))
            self.records.load_task_state(TaskState(saved.values["records"]))
            self.load_task_state(TaskState(saved.values["callback"], saved.tensors))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.config.checkpoints:
            task_state = self.task_state()
            values = {"callback": task_state.values, "records": self.records.task_state().values}
            write_state(checkpoint_folder(args, state), self._identity(state), TaskState(values, task_state.tensors))

    def _identity(self, state: TrainerState) -> Identity:
        """Describe the state for its checks; runs on every rank, since each may hold a shard of the weights."""
        settings = identifying_settings(self.config)
        return Identity(state.global_step, self._weights.l1(), self._weights.sharded, settings)

    def task_state(self) -> TaskState:
        """Return the state without the records: controller, rehearsal counter, weights after the last merge."""
        values = {
            "controller": self.controller.state_dict(),
            "draws": self._batches_drawn,
            "replayed": self.replayed.state(),
        }
        return TaskState(values, dict(self._start) | self._fusion.state_tensors())

    def load_task_state(self, state: TaskState) -> None:
        """Restore what :meth:`task_state` returned, with the weights of that step in the model.

        Raises:
            ValueError: the state is of another model or another version.
        """
        self.controller.load_state_dict(state.values["controller"])
        self._batches_drawn = int(state.values["draws"])
        self.replayed.load_state(state.values["replayed"])
        self._start.copy_(Weights({name: state.tensors[name] for name in self._start}))
        self._fusion.load_state_tensors(state.tensors)

    @property
    def _merges_at_end(self) -> bool:
        return self.config.merge_at_end or self.config.only_at_end

    def _spent(self) -> float:
        cost = self.cost
        return cost.probing_seconds + cost.rehearsal_seconds + cost.merging_seconds + cost.merge_eval_seconds

    def _batch(self, examples: list[Any]) -> SplitBatch:
        # Whoever accumulates gradients may have no memory for more than a training batch at a time.
        split = self._accumulation > 1 and self.config.rehearsal_gradient == "mean"
        return SplitBatch.of(
            examples,
            lambda part: to_device(self._collate(part), self._device),
            self._shifts_labels,
            self._training_batch if split else None,
        )

    def _measure(self, model: nn.Module, batch: SplitBatch, dropout: bool = False) -> float:
        return batch.mean([measure_loss(model, part.batch, self.loss, dropout=dropout) for part in batch.parts])

    def _diverged(self, what: str) -> MerganserError:
        remedy = "Training has diverged; try a lower learning rate or precision fp32."
        return processes.mark_collective(RunError(f"{what} of task '{self.records.task}'.", remedy))

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._observe_step()

    def _observe_step(self) -> None:
        with self.records.timed("merging_seconds"):
            self._fusion.observe()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        began, spent = time.perf_counter(), self._spent()
        model, step = kwargs["model"], state.global_step
        probe = self._probe(model, step) if self.controller.wants_probe() else None
        decision = self.controller.observe(step, probe)
        signal = self.records.signal(step)
        signal.probe, signal.interval, signal.threshold = probe, self.controller.interval, self.controller.threshold
        if decision is None and self._merges_at_end and (step >= state.max_steps or control.should_training_stop):
            decision = self.controller.finish(step)
        if decision is not None:
            self._merge(decision, model, kwargs["optimizer"], args.max_grad_norm, probe)
        self.cost.bookkeeping_seconds += time.perf_counter() - began - (self._spent() - spent)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Stopped between steps, by an evaluation for example: the last updates are not merged yet. Weights that the
        # trainer has restored are not those after these updates.
        restored = args.load_best_model_at_end and state.best_model_checkpoint is not None
        decision = self.controller.finish(state.global_step) if self._merges_at_end and not restored else None
        if decision is not None:
            self._merge(decision, kwargs["model"], kwargs["optimizer"], args.max_grad_norm, None)

    def _probe(self, model: nn.Module, step: int) -> float:
        """Measure the forgetting signal: the loss on a batch of the memory.

        Raises:
            RunError: it is not finite.
        """
        probe = self.replayed.take() if self.config.probe_set == "replayed" else None
        if probe is None:
            batch = self._probing.batch(step)
            with self.records.timed("probing_seconds"):
                probe = self._measure(model, batch, self.config.probe_dropout)
            self.cost.examples_probed += self._probing.batch_size
        if not math.isfinite(probe):
            raise self._diverged(f"The loss on the memory became {probe} after step {step}")
        return probe

    def _merge(
        self, decision: Merge, model: nn.Module, optimizer: torch.optim.Optimizer, clip: float, probe: float | None
    ) -> None:
        """Rehearse, merge, undo a harmful merge, and record the result.

        Args:
            probe: the probe loss of this step, if any.
        """
        timed = self.records.timed
        # Without dropout the probe was the same forward pass, unless it was none.
        same = not self.config.probe_dropout and self.config.probe_set != "replayed"
        before = self._losses(model, decision.step, probe if same else None)
        with timed("merging_seconds"):
            after_new = self._weights.snapshot()
            change_new = after_new.minus(self._start)
            learning_signal = change_new.l1() / decision.interval
        self._check_finite(decision.step, before, learning_signal)
        with timed("merging_seconds"):
            optimizer_before = OptimizerCopy(optimizer)
            self._fusion.begin_rehearsal()
        rehearsal_steps = self._rehearse(decision, model, optimizer, clip)
        with timed("merging_seconds"):
            update = self._fuse(decision, after_new, change_new)
        after = self._losses(model, decision.step) if update.finite else (None, None)
        reason = refusal(before, after, update.finite, self.config.guard_factor)
        with timed("merging_seconds"):
            if reason is not None:
                self._weights.copy_(after_new)
                optimizer_before.restore()
            elif self.config.moments == "empty":
                optimizer_before.empty()
            self._start.copy_(self._weights)
        next_interval = self.controller.record(learning_signal)
        self.records.add_merge(
            MergeRecord(
                task=self.records.task,
                task_index=self.records.index,
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
                weight_new=update.weight_new,
                weight_old=update.weight_old,
                norm_new=update.norm_new,
                norm_old=_finite(update.norm_old),
                cosine=update.cosine,
                loss_new_before=before[0],
                loss_new_after=_finite(after[0]),
                loss_old_before=before[1],
                loss_old_after=_finite(after[1]),
            )
        )

    def _check_finite(self, step: int, losses: Losses, learning_signal: float) -> None:
        """Raise RunError if losses or weights are not finite before a merge: undoing the merge would not help."""
        for name, value in zip(("loss on the task", "loss on the memory"), losses, strict=True):
            if value is not None and not math.isfinite(value):
                raise self._diverged(f"The {name} became {value} after step {step}")
        if not math.isfinite(learning_signal):
            raise self._diverged(f"The weights are not finite at the merge after step {step}")

    def _rehearse(self, decision: Merge, model: nn.Module, optimizer: torch.optim.Optimizer, clip: float) -> int:
        """Take optimizer steps on the memory; returns their number."""
        steps = decision.rehearsal_steps
        if decision.cause == "end" and not any(group["lr"] for group in optimizer.param_groups):
            steps = 0  # at a learning rate of 0 they would change nothing
        factor = 1 / self._accumulation if self.config.rehearsal_gradient == "divided" else 1.0
        for _ in range(steps):
            batch = self._batch(self._rehearsal.rehearsal(self._batches_drawn))
            self._batches_drawn += 1
            with self.records.timed("rehearsal_seconds"):
                rehearse_step(model, optimizer, batch, clip, self.loss, factor, self._observe_step)
            self.cost.examples_rehearsed += self._rehearsal.batch_size
        return steps

    def _fuse(self, decision: Merge, after_new: Weights, change_new: Weights) -> Update:
        """Merge the updates of the two phases in place."""
        change_old = self._weights.minus(after_new)
        norm_new, norm_old = change_new.l2(), change_old.l2()
        cosine = change_new.cosine(change_old) if math.isfinite(norm_old) else None
        weight_new, weight_old = self._fusion.fuse(decision, self._weights, self._start, after_new)
        finite = math.isfinite(norm_old) and self._weights.is_finite()
        return Update(weight_new, weight_old, norm_new, norm_old, cosine, finite)

    def _losses(self, model: nn.Module, step: int, loss_old: float | None = None) -> Losses:
        """Measure the losses on a batch of the new task and on the probe's batch, dropout off; fixed batches per step.

        Args:
            loss_old: the second loss, if it is known already.
        """
        if not self.config.measure_merges or self._new is None:
            return None, None
        generator = np.random.default_rng([self._seed, 3, step])
        size = min(self._probing.batch_size, len(self._new))
        chosen = generator.choice(len(self._new), size, replace=False)
        new_batch = self._batch([self._new[int(index)] for index in chosen])
        old_batch = self._probing.batch(step) if loss_old is None else None
        with self.records.timed("merge_eval_seconds"):
            loss_new = self._measure(model, new_batch)
            return loss_new, loss_old if old_batch is None else self._measure(model, old_batch)


def _finite(value: float | None) -> float | None:
    """Return the value if it is finite, else ``None``."""
    return value if value is not None and math.isfinite(value) else None
