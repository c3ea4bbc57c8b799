"""Checkpoints within a task: when they are written, their content, and resuming from one.

Checkpoints are written between optimizer steps, when gradients are zero and no accumulated batch is pending. So the
state consists of the weights, the optimizer, the schedule, the random generators, the records and the state of the
method. The order of the data is a function of seed and epoch (:class:`~merganser.training.data.EpochOrder`), and
``Trainer`` skips the batches of the epoch that were read.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from merganser import processes
from merganser.runs.checkpoint import Checkpoint, CheckpointFolder
from merganser.training.determinism import derive_seed, random_state, set_random_state
from merganser.training.options import TrainingOptions
from merganser.training.records import TaskRecords
from merganser.training.state import Resumable, TaskState
from merganser.weights import Weights, local_shard, to_dtensor_like


class RestoredState(TrainerCallback):
    """Restores a checkpoint when training resumes from it.

    Args:
        checkpoint: the checkpoint to restore.
        parts: as in :class:`TaskCheckpoints`.
        records: of the task.
    """

    def __init__(self, checkpoint: Checkpoint, parts: Mapping[str, Resumable], records: TaskRecords) -> None:
        self.checkpoint = checkpoint
        self.parts = parts
        trained = [values["trained"] for values in checkpoint.process_values]
        if checkpoint.same_processes:
            trained = [trained[processes.rank()]]
        elif not processes.is_main():  # they are summed over the processes at the end
            trained = []
        records.trained = {}
        for counts in trained:
            records.add_trained(counts)

    def _tensors(self, prefix: str) -> dict[str, Tensor]:
        return _with_prefix(self.checkpoint, prefix)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore the state of the method and of all other parts."""
        for name, part in self.parts.items():
            part.load_task_state(part_state(self.checkpoint, name))

    def restore_weights(self, model: torch.nn.Module) -> None:
        """Restore the trainable weights, in place."""
        Weights.of(model).copy_(Weights(self._tensors("weights.")))

    def restore_optimizer(self, optimizer: Any, schedule: Any) -> None:
        """Restore moments and learning rates; a checkpoint after the last step has none."""
        values = self.checkpoint.values
        if "optimizer" in values:
            load_optimizer_state(optimizer, values["optimizer"], self._tensors("optimizer."))
            schedule.load_state_dict(values["schedule"])

    def restore_random(self) -> None:
        """Restore the states of the random generators.

        If another number of processes wrote them, ranks above 0 seed their dropout generators anew.
        """
        same = self.checkpoint.same_processes
        rank_state = self.checkpoint.process_values[processes.rank() if same else 0]
        set_random_state(rank_state["random"], self._tensors("random."))
        if not same and not processes.is_main():
            seed = torch.initial_seed() & 0xFFFFFFFF
            torch.manual_seed(derive_seed(seed, "process", processes.rank(), self.checkpoint.step))


class TaskCheckpoints(TrainerCallback):
    """Writes checkpoints of a task; must be the last of a trainer's callbacks.

    Args:
        folder: the folder of the checkpoints.
        options: ``checkpoint_steps`` and ``checkpoint_minutes`` set the interval; one is always written after the last
            step, without the optimizer.
        parts: name -> object with state within a task besides the trainer, such as the method.
        records: of the task; they are a part of every checkpoint.
        resume_from: the checkpoint to resume from; ``None``: start at the first step.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        options: TrainingOptions,
        parts: Mapping[str, Resumable],
        records: TaskRecords,
        resume_from: Checkpoint | None = None,
    ) -> None:
        self.folder = folder
        self.every_steps = options.checkpoint_steps
        self.every_minutes = options.checkpoint_minutes
        self.records = records
        self.parts = {"records": records, **parts}
        self.resume_from = resume_from
        self._began = self._written = 0.0

    def begin(self) -> RestoredState | None:
        """Start the clock; returns the state to resume from, if there is a checkpoint."""
        self._began = time.perf_counter()
        if self.resume_from is None:
            return None
        self._began -= self.resume_from.values["seconds"]
        return RestoredState(self.resume_from, self.parts, self.records)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of training, including those of an interrupted run up to the checkpoint."""
        return time.perf_counter() - self._began

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._written = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # Other callbacks may act at the end of an epoch; the checkpoint is written after them.
        ends_epoch = state.epoch is not None and float(state.epoch).is_integer()
        if not ends_epoch and state.global_step < state.max_steps and self._is_due(state.global_step):
            self._write(state, kwargs)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step >= state.max_steps or self._is_due(state.global_step):
            self._write(state, kwargs)

    def _is_due(self, step: int) -> bool:
        if self.every_steps is not None and step % self.every_steps == 0:
            return True
        minutes = self.every_minutes
        if minutes is None:
            return False
        # Clocks differ from process to process: rank 0 decides.
        return processes.on_main(lambda: time.perf_counter() - self._written >= 60 * minutes)

    def _write(self, state: TrainerState, kwargs: Mapping[str, Any]) -> None:
        values: dict[str, Any] = {}
        tensors = {f"weights.{name}": weight for name, weight in Weights.of(kwargs["model"]).items()}
        if state.global_step < state.max_steps:
            values["optimizer"], moments = optimizer_state(kwargs["optimizer"])
            values["schedule"] = kwargs["lr_scheduler"].state_dict()
            tensors |= {f"optimizer.{name}": moment for name, moment in moments.items()}
        values["parts"] = {}
        for name, part in self.parts.items():
            part_state = part.task_state()
            values["parts"][name] = part_state.values
            tensors |= {f"parts.{name}.{key}": tensor for key, tensor in part_state.tensors.items()}
        values["seconds"] = self.seconds
        # Processes with full weights differ only in their random state and in the numbers of examples read.
        rank_state: dict[str, Any] = {"trained": self.records.trained}
        rank_state["random"], generators = random_state()
        if processes.rank() > 0 and not processes.uses_fsdp():
            tensors = {}
        tensors |= {f"random.{name}": generator for name, generator in generators.items()}
        text, step, folder = json.dumps(asdict(state)), state.global_step, self.folder
        with folder.unfinished(step):
            processes.on_main(lambda: folder.begin(step))
            processes.run_collectively(lambda: folder.add(step, rank_state, tensors))
            processes.on_main(lambda: folder.finish(step, values, text))
        self._written = time.perf_counter()


def part_state(checkpoint: Checkpoint, name: str) -> TaskState:
    """Return the state of one part of the training as a checkpoint has it."""
    return TaskState(checkpoint.values["parts"].get(name, {}), _with_prefix(checkpoint, f"parts.{name}."))


def _with_prefix(checkpoint: Checkpoint, prefix: str) -> dict[str, Tensor]:
    tensors = checkpoint.tensors.items()
    return {name.removeprefix(prefix): tensor for name, tensor in tensors if name.startswith(prefix)}


def optimizer_state(optimizer: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Split an optimizer's state into plain values and tensors named ``number.key``.

    Sharded moments are returned as this process's shards.
    """
    state = optimizer.state_dict()
    plain: dict[str, dict[str, Any]] = {}
    tensors = {}
    for number, moments in state["state"].items():
        for key, value in _flat(moments):
            if isinstance(value, Tensor):
                tensors[f"{number}.{key}"] = local_shard(value)
            else:
                plain.setdefault(str(number), {})[key] = value
    return {"groups": state["param_groups"], "plain": plain}, tensors


def _flat(moments: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the values of a parameter; bitsandbytes puts some in a mapping within, and reads them without it, too."""
    for key, value in moments.items():
        if isinstance(value, Mapping):
            yield from _flat(value)
        else:
            yield key, value


def load_optimizer_state(optimizer: Any, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Restore what :func:`optimizer_state` returned."""
    state: dict[int, dict[str, Any]] = {int(number): dict(moments) for number, moments in values["plain"].items()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, tensor in tensors.items():
        number, key = name.split(".", 1)
        parameter = parameters[int(number)]
        shaped = tensor.shape == local_shard(parameter).shape  # the step count is a scalar, and never sharded
        state.setdefault(int(number), {})[key] = to_dtensor_like(tensor, parameter) if shaped else tensor
    groups = []
    for group, current in zip(values["groups"], optimizer.state_dict()["param_groups"], strict=True):
        # JSON has no tuples.
        groups.append({key: tuple(v) if isinstance(current.get(key), tuple) else v for key, v in group.items()})
    optimizer.load_state_dict({"state": state, "param_groups": groups})
