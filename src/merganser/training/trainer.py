"""Training of one task on ``transformers.Trainer``."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import transformers
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from merganser import processes
from merganser.devices import model_device, pins_memory
from merganser.errors import RunError
from merganser.files.temporary_folder import temporary_folder
from merganser.models.library_output import silence_libraries
from merganser.models.pairs import is_pairs
from merganser.runs.record import SignalRecord
from merganser.streams.mixing import rows_with_mix
from merganser.training.checkpoint import RestoredState, TaskCheckpoints
from merganser.training.data import (
    MIX,
    OWN,
    TRAINED,
    EpochOrder,
    FeatureList,
    MixedOrder,
    Mixture,
    count_trained,
    ignore_padding,
)
from merganser.training.determinism import derive_seed, isolated_random
from merganser.training.distributed import (
    LocalBatches,
    loss_weight,
    mean_over_processes,
    num_loss_items,
    sharded_as_launched,
    shifts_labels,
)
from merganser.training.dpo import preference_loss
from merganser.training.options import TrainingOptions, fitting_warmup
from merganser.training.options import planned_steps as planned_steps
from merganser.training.options import steps_per_epoch as steps_per_epoch
from merganser.training.packing import training_collator
from merganser.training.records import TaskRecords
from merganser.training.rehearsal import without_cache

Penalty = Callable[[nn.Module, int, Mapping[str, Any], Mapping[str, Any]], Tensor]
"""``penalty(model, step, inputs, outputs)``: a term added to the loss of every batch.

``step`` counts optimizer steps from 0; ``inputs`` is the batch and ``outputs`` the model's output for it.
"""


class Trainable(Protocol):
    """A model to train, such as a :class:`~merganser.models.base.Backbone`.

    Attributes:
        module: its ``forward(**batch)`` returns a mapping with ``loss``.
        precision: ``fp32`` or ``bf16`` (autocast; the weights keep their type).
    """

    @property
    def module(self) -> nn.Module: ...

    @property
    def precision(self) -> str: ...

    def collate(self, features: list[dict[str, Any]], /) -> Mapping[str, Any]:
        """Turn a list of features into a batch."""
        ...


@dataclass(frozen=True)
class TaskHooks:
    """Hooks of a method into the training of a task.

    Attributes:
        callbacks: in the order in which they are called.
        penalty: a term added to the loss of every batch; ``None``: none.
    """

    callbacks: Sequence[TrainerCallback] = ()
    penalty: Penalty | None = None


@dataclass(frozen=True)
class Outcome:
    """Steps, examples and time of training one task.

    Attributes:
        steps: optimizer steps taken.
        trained: source -> examples trained on, and their tokens, counted once per pass.
        seconds: wall-clock seconds in the training loop, callbacks included; for a resumed task, including those up to
            the checkpoint.
    """

    steps: int
    trained: Mapping[str, tuple[int, int]]
    seconds: float

    @property
    def examples(self) -> int:
        """Return the examples trained on, from whatever source."""
        return sum(examples for examples, _ in self.trained.values())


class TaskTrainer(Trainer):
    """A ``Trainer`` that adds a penalty to the loss, records every step, and stops at a loss that is not finite.

    With several processes, every rank reads its part of the batches that one process would read, and losses are
    weighted so that gradients are those of one process. docs/architecture.md lists the overridden methods and why.

    Args:
        options: how the task is optimised.
        records: receives the loss and the learning rate of every step.
        penalty: as in :class:`TaskHooks`.
    """

    def __init__(
        self, *args: Any, options: TrainingOptions, records: TaskRecords, penalty: Penalty | None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.batch = options.batch
        self.loss_mean = options.loss_mean
        self.records = records
        self.penalty = penalty
        self._accumulated = 0.0
        self._batches = 0
        # A model's signature does not show whether its loss uses the number of items (T5 takes one and ignores
        # it): models return the mean over their batch, and the weights of parts are applied here.
        self.model_accepts_loss_kwargs = False
        self._shifted = shifts_labels(self.model)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset: FeatureList = self.train_dataset if train_dataset is None else train_dataset
        grouped = self.args.train_sampling_strategy == "group_by_length"
        size = self.batch * self.args.gradient_accumulation_steps
        lengths = [feature["length"] if grouped else 0 for feature in dataset]
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        order = EpochOrder(lengths, size, seed)
        return order if dataset.mixture is None else MixedOrder(order, dataset.mixture)

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        if processes.world_size() == 1:
            return super().get_train_dataloader()
        order = self._get_train_sampler(self.train_dataset)
        return torch.utils.data.DataLoader(
            self.train_dataset,
            batch_sampler=LocalBatches(order, self.batch),
            collate_fn=ignore_padding(self.data_collator),
            pin_memory=self.args.dataloader_pin_memory,
        )

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """Return the batches of one optimizer step, and the number of loss items in them, over all ranks."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        items = processes.all_reduce_sum([sum(num_loss_items(batch, self._shifted) for batch in batches)])[0]
        return batches, int(items)

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        items = num_loss_items(inputs, self._shifted)
        if items == 0 and "labels" in inputs:  # only a padding example: the mean over no label would be NaN
            inputs = {**inputs, "labels": inputs["labels"].clamp(min=0)}
        needs_outputs = return_outputs or self.penalty is not None
        if is_pairs(inputs):
            loss, outputs = preference_loss(model, inputs)
        else:
            result = super().compute_loss(model, inputs, needs_outputs)
            loss, outputs = result if needs_outputs else (result, {})
        loss = self._weight(items, num_items_in_batch) * loss
        if self.penalty is not None:
            loss = loss + self.penalty(model, self.state.global_step, inputs, outputs)
        return (loss, outputs) if return_outputs else loss

    def _weight(self, items: int, num_items_in_batch: Any) -> float:
        """Return the factor on the mean loss of ``items`` items, of ``num_items_in_batch`` in the optimizer step.

        The Trainer divides by the number of accumulated batches, and gradients are averaged over the ranks.
        """
        if self.loss_mean == "batches":
            return loss_weight(items, int(processes.all_reduce_sum([items])[0]))
        parts = processes.world_size() * self.current_gradient_accumulation_steps
        return float(parts * items / num_items_in_batch) if num_items_in_batch else 0.0

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        self.records.add_trained(inputs.pop(TRAINED))
        loss = super().training_step(model, inputs, num_items_in_batch)
        value = mean_over_processes(float(loss))
        if not math.isfinite(value):
            raise processes.mark_collective(
                RunError(
                    f"The training loss of task '{self.records.task}' became {value} at step "
                    f"{self.state.global_step + 1}.",
                    "Nothing of this task was saved; the run is unchanged. Try a lower training.learning_rate, more "
                    "training.warmup or precision: fp32.",
                )
            )
        self._accumulated += value
        self._batches += 1
        if self._batches == self.current_gradient_accumulation_steps:
            rate = float(self._get_learning_rate())
            step = self.state.global_step + 1
            self.records.signals.append(SignalRecord(step=step, loss=self._accumulated, learning_rate=rate))
            self._accumulated = 0.0
            self._batches = 0
        return loss


class ResumedTrainer(TaskTrainer):
    """A :class:`TaskTrainer` that resumes from a checkpoint of Merganser's own; those of ``Trainer`` are pickled.

    Args:
        restored: the checkpoint.
    """

    def __init__(self, *args: Any, restored: RestoredState, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.restored = restored

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.restored.restore_weights(self.model if model is None else model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        self.restored.restore_optimizer(self.optimizer, self.lr_scheduler)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        self.restored.restore_random()

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:
            # Resumed after the last step: Trainer's loop would take one more.
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)


def training_arguments(options: TrainingOptions, *, folder: str, precision: str, seed: int) -> TrainingArguments:
    """Return the options as ``TrainingArguments``; nothing is saved, logged or reported by the ``Trainer`` itself."""
    arguments = TrainingArguments(
        output_dir=folder,
        num_train_epochs=options.epochs,
        max_steps=options.steps or -1,
        per_device_train_batch_size=max(1, options.batch // processes.world_size()),
        gradient_accumulation_steps=options.accumulation,
        optim=options.optimizer,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        lr_scheduler_type=options.schedule,
        warmup_steps=options.warmup if options.warmup < 1 else int(options.warmup),
        max_grad_norm=options.clip,
        train_sampling_strategy="group_by_length" if options.group_by_length else "random",
        gradient_checkpointing=options.gradient_checkpointing,
        bf16=precision == "bf16",
        use_cpu=model_device().type == "cpu",
        seed=seed,
        data_seed=seed,
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=pins_memory(model_device()),
        # Every forward pass uses every trained weight, and buffers are the same on every rank.
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        # A sharded model reduces its gradients after every backward pass: it has no room for full ones.
        accelerator_config={"gradient_accumulation_kwargs": {"sync_each_batch": True}}
        if processes.uses_fsdp()
        else None,
    )
    # One device per process: a Trainer would split every batch over all that one process sees (DataParallel).
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def train_task(
    model: Trainable,
    features: Sequence[dict[str, Any]],
    options: TrainingOptions,
    *,
    seed: int,
    records: TaskRecords,
    hooks: TaskHooks = TaskHooks(),
    checkpoints: TaskCheckpoints | None = None,
    mixture: Mixture | None = None,
) -> Outcome:
    """Train a model on one task.

    Args:
        model: its module is trained in place.
        features: tokenised examples, each with a ``length``.
        options: how the task is optimised; a warm-up as long as the task, or longer, is shortened
            (:func:`~merganser.training.options.fitting_warmup`).
        seed: decides the order of the data and, with the rank of the process, dropout; nothing else does.
        records: filled while training, so that callbacks can read them.
        hooks: what a method does during the task.
        checkpoints: writes checkpoints, and holds the one to resume from.
        mixture: other examples that training reads as well.

    Raises:
        RunError: the loss is not finite, or the disk is full.
    """
    started = time.perf_counter()
    rows = len(features) if mixture is None else rows_with_mix(len(features), mixture.share)
    warmup = fitting_warmup(options, planned_steps(rows, options))
    options = options.model_copy(update={"warmup": warmup})
    with (
        isolated_random(seed),
        silence_libraries(),
        temporary_folder() as folder,
        sharded_as_launched(model.module) as trained,
        without_cache(trained),
    ):
        restored = None if checkpoints is None else checkpoints.begin()
        kind = TaskTrainer if restored is None else functools.partial(ResumedTrainer, restored=restored)
        trainer = kind(
            model=trained,
            args=training_arguments(options, folder=str(folder), precision=model.precision, seed=seed),
            train_dataset=FeatureList(features, mixture),
            data_collator=count_trained(training_collator(model, options)),
            callbacks=[*hooks.callbacks, *(callback for callback in (restored, checkpoints) if callback is not None)],
            options=options,
            records=records,
            penalty=hooks.penalty,
        )
        for printing in (transformers.PrinterCallback, transformers.ProgressCallback):
            trainer.remove_callback(printing)
        if processes.rank() > 0:  # every process draws its own dropout masks
            torch.manual_seed(derive_seed(seed, "process", processes.rank()))
        trainer.train(resume_from_checkpoint=None if restored is None else str(restored.checkpoint.folder))
    seconds = time.perf_counter() - started if checkpoints is None else checkpoints.seconds
    return Outcome(trainer.state.global_step, _over_processes(records, mixture), seconds)


def _over_processes(records: TaskRecords, mixture: Mixture | None) -> dict[str, tuple[int, int]]:
    """Return source -> examples and tokens that all processes have trained on."""
    sources = [OWN] if mixture is None else [OWN, MIX]
    numbers = [number for source in sources for number in records.trained.get(source, (0, 0))]
    total = list(map(int, processes.all_reduce_sum(numbers)))
    return {source: (total[2 * i], total[2 * i + 1]) for i, source in enumerate(sources)}
