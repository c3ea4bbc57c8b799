"""One task's optimisation, on ``transformers.Trainer``."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices

from merganser import processes
from merganser.errors import RunError
from merganser.models.base import IGNORED
from merganser.models.quiet import quiet
from merganser.training.checkpoint import TaskCheckpoints
from merganser.training.determinism import derive_seed, isolated_random
from merganser.training.distributed import (
    PartBatches,
    mean_over_processes,
    num_loss_items,
    rows,
    shared_out,
    shifts_labels,
)
from merganser.training.options import TrainingOptions
from merganser.training.rehearsal import Collator, without_cache

Penalty = Callable[[nn.Module, int, Mapping[str, Any], Mapping[str, Any]], Tensor]
"""``penalty(model, step, inputs, outputs)``: a term added to the loss of every batch.

``step`` counts optimizer steps from 0; ``inputs`` is the batch and ``outputs`` what the model returned for it.
"""


@dataclass
class StepLog:
    """Training loss and learning rate of every optimizer step of a task."""

    losses: list[float] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """What training one task took.

    Attributes:
        log: loss and learning rate per step.
        steps: optimizer steps taken.
        examples: examples trained on, counted once per pass.
        seconds: wall-clock seconds in the training loop, callbacks included; of a task that was interrupted, up to the
            checkpoint it went on from, too.
    """

    log: StepLog
    steps: int
    examples: int
    seconds: float


class FeatureList(torch.utils.data.Dataset):
    """Tokenised examples as a dataset; ``Trainer`` groups by their ``length``."""

    def __init__(self, features: Sequence[dict[str, Any]]) -> None:
        self.features = features

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """An example; a negative index gives one that stands in, see :class:`PartBatches`."""
        return self.features[index] if index >= 0 else {**self.features[-1 - index], "is_padding": True}


class EpochOrder(torch.utils.data.Sampler[int]):
    """The order of the examples in each epoch, a function of the seed and the epoch alone.

    Within windows of 50 batches, examples of similar length come together (all lengths equal: plain shuffling).

    Args:
        lengths: length of every example.
        batch: examples per optimizer step, over all processes.
        seed: with the epoch, decides the order.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        self.lengths = list(lengths)
        self.batch = batch
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the training loop before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "epoch", self.epoch))
        if len(set(self.lengths)) == 1:
            return iter(torch.randperm(len(self.lengths), generator=generator).tolist())
        return iter(get_length_grouped_indices(self.lengths, self.batch, generator=generator))


class TaskTrainer(Trainer):
    """A stock ``Trainer`` that adds a method's penalty to the loss, notes the loss of each step, and stops at a loss
    that is not a number instead of training on. Checkpoints are Merganser's own
    (:class:`~merganser.training.checkpoint.TaskCheckpoints`), for ``Trainer`` pickles some of its own.

    With several processes each reads its part of the batches that one process would read, and losses are weighted so
    that gradients are those of one process.

    Args:
        batch: examples per forward pass, over all processes.
        log, task, penalty: as in :func:`train_task`.
    """

    checkpoints: TaskCheckpoints | None = None

    def __init__(self, *args: Any, batch: int, log: StepLog, task: str, penalty: Penalty | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.batch = batch
        self.step_log = log
        self.task_name = task
        self.penalty = penalty
        self.examples_seen = 0
        self._accumulated = 0.0
        self._batches = 0
        # Whether a model's loss heeds a number of items cannot be told from its signature (T5 takes one and ignores
        # it): it returns the mean over the batch it is given, and the shares are taken here.
        self.model_accepts_loss_kwargs = False
        self._shifted = shifts_labels(self.model)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        grouped = self.args.train_sampling_strategy == "group_by_length"
        size = self.batch * self.args.gradient_accumulation_steps
        lengths = [feature["length"] if grouped else 0 for feature in dataset]
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return EpochOrder(lengths, size, seed)

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        if processes.count() == 1:
            return super().get_train_dataloader()
        order = self._get_train_sampler(self.train_dataset)
        return torch.utils.data.DataLoader(
            self.train_dataset,
            batch_sampler=PartBatches(order, self.batch),
            collate_fn=ignoring_padding(self.data_collator),
            pin_memory=self.args.dataloader_pin_memory,
        )

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """The batches of one optimizer step, and over how many items its loss is a mean, over all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        items = processes.all_reduce_sum([sum(num_loss_items(batch, self._shifted) for batch in batches)])[0]
        return batches, int(items)

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        items = num_loss_items(inputs, self._shifted)
        if items == 0 and "labels" in inputs:  # nothing but a stand-in, and the mean over no label is not a number
            inputs = {**inputs, "labels": inputs["labels"].clamp(min=0)}
        wanted = return_outputs or self.penalty is not None
        result = super().compute_loss(model, inputs, wanted)
        loss, outputs = result if wanted else (result, {})
        # The Trainer divides by the number of batches accumulated, and gradients are averaged over the processes.
        parts = processes.count() * self.current_gradient_accumulation_steps
        loss = (parts * items / num_items_in_batch if num_items_in_batch else 0.0) * loss
        if self.penalty is not None:
            loss = loss + self.penalty(model, self.state.global_step, inputs, outputs)
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        self.examples_seen += rows(inputs) if num_loss_items(inputs) else 0
        loss = super().training_step(model, inputs, num_items_in_batch)
        value = mean_over_processes(float(loss))
        if not math.isfinite(value):
            raise processes.mark_collective(
                RunError(
                    f"The training loss of task '{self.task_name}' became {value} at step "
                    f"{self.state.global_step + 1}.",
                    "Nothing of this task was kept; the run is as it was. Try a lower training.learning_rate, more "
                    "training.warmup or precision: fp32.",
                )
            )
        self._accumulated += value
        self._batches += 1
        if self._batches == self.current_gradient_accumulation_steps:
            self.step_log.losses.append(self._accumulated)
            self.step_log.learning_rates.append(float(self._get_learning_rate()))
            self._accumulated = 0.0
            self._batches = 0
        return loss

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        assert self.checkpoints is not None
        self.checkpoints.put_back_weights(self.model if model is None else model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        assert self.checkpoints is not None
        self.checkpoints.put_back_optimizer(self.optimizer, self.lr_scheduler)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        assert self.checkpoints is not None
        self.checkpoints.put_back_random()

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:
            # Gone on from a checkpoint after the last step: the loop of Trainer would take one more.
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)


def ignoring_padding(collate: Collator) -> Collator:
    """``collate``, with the labels of examples that stand in for others ignored."""

    def collated(features: list[Any]) -> dict[str, Any]:
        batch = dict(collate(features))
        for row, feature in enumerate(features):
            if feature.get("is_padding"):
                batch["labels"][row] = IGNORED
        return batch

    return collated


def planned_steps(examples: int, options: TrainingOptions) -> int:
    """Optimizer steps that a task with this many training examples will take."""
    if options.steps is not None:
        return options.steps
    per_epoch = math.ceil(math.ceil(examples / options.batch) / options.accumulation)
    return math.ceil(options.epochs * per_epoch)


def training_arguments(options: TrainingOptions, *, folder: str, precision: str, seed: int) -> TrainingArguments:
    """The options as ``TrainingArguments``; nothing is saved, logged or reported by the ``Trainer`` itself."""
    return TrainingArguments(
        output_dir=folder,
        num_train_epochs=options.epochs,
        max_steps=options.steps or -1,
        per_device_train_batch_size=max(1, options.batch // processes.count()),
        gradient_accumulation_steps=options.accumulation,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        lr_scheduler_type=options.schedule,
        warmup_steps=options.warmup if options.warmup < 1 else int(options.warmup),
        max_grad_norm=options.clip,
        train_sampling_strategy="group_by_length" if options.group_by_length else "random",
        gradient_checkpointing=options.gradient_checkpointing,
        bf16=precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        data_seed=seed,
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        # Every trained weight takes part in every forward pass, and buffers are the same everywhere.
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        # A sharded model gives its gradients away after every backward pass, as it has no room for whole ones.
        accelerator_config={"gradient_accumulation_kwargs": {"sync_each_batch": True}} if processes.sharded() else None,
    )


def train_task(
    module: nn.Module,
    features: Sequence[dict[str, Any]],
    collate: Collator,
    options: TrainingOptions,
    *,
    task: str,
    seed: int,
    precision: str,
    callbacks: Sequence[TrainerCallback] = (),
    penalty: Penalty | None = None,
    log: StepLog | None = None,
    checkpoints: TaskCheckpoints | None = None,
) -> Outcome:
    """Train ``module`` on one task.

    Args:
        module: its ``forward(**batch)`` returns a mapping with ``loss``.
        features: tokenised examples, each with a ``length``.
        collate: turns a list of features into a batch.
        task: its name, for messages.
        seed: decides the order of the data and, with the number of the process, dropout; nothing else does.
        precision: ``fp32`` or ``bf16`` (autocast; the weights themselves stay as they are).
        callbacks, penalty: what a method does during a task.
        log: filled while training, so that callbacks can read it; a new one by default.
        checkpoints: writes checkpoints, and has the one to go on from.

    Raises:
        RunError: the loss is not finite, or the disk is full.
    """
    log = StepLog() if log is None else log
    started = time.perf_counter()
    with (
        isolated_random(seed),
        quiet(),
        tempfile.TemporaryDirectory(prefix="merganser-") as folder,
        shared_out(module) as trained,
        without_cache(trained),
    ):
        trainer = TaskTrainer(
            model=trained,
            args=training_arguments(options, folder=folder, precision=precision, seed=seed),
            train_dataset=FeatureList(features),
            data_collator=collate,
            callbacks=list(callbacks),
            batch=options.batch,
            log=log,
            task=task,
            penalty=penalty,
        )
        for printing in (transformers.PrinterCallback, transformers.ProgressCallback):
            trainer.remove_callback(printing)
        if processes.rank() > 0:  # dropout of its own on every process
            torch.manual_seed(derive_seed(seed, "process", processes.rank()))
        if checkpoints is not None:
            checkpoints.attach(trainer)
        found = None if checkpoints is None else checkpoints.found
        trainer.train(resume_from_checkpoint=None if found is None else str(found.folder))
    seconds = time.perf_counter() - started if checkpoints is None else checkpoints.seconds
    examples = int(processes.all_reduce_sum([trainer.examples_seen])[0])
    return Outcome(log, trainer.state.global_step, examples, seconds)
