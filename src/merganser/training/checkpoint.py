"""Checkpoints in the middle of a task: when they are written, what they hold, and how training resumes from one.

After a step nothing is pending: gradients are zero, the accumulated batches are used up. So the weights, the optimizer,
the schedule, the random generators, the records and the state of the method are all there is. The order of the data is
a function of seed and epoch (:class:`~merganser.training.data.EpochOrder`), and ``Trainer`` skips the batches of the
epoch that were seen.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
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
from merganser.weights import Weights, local, shared_like


class RestoredState(TrainerCallback):
    """A checkpoint that training resumes from, and what it is restored into.

    Args:
        checkpoint: as it was read.
        parts: as in :class:`TaskCheckpoints`.
        records: of the task.
    """

    def __init__(self, checkpoint: Checkpoint, parts: Mapping[str, Resumable], records: TaskRecords) -> None:
        self.checkpoint = checkpoint
        self.parts = parts
        seen = [values["examples_seen"] for values in checkpoint.process_values]
        if checkpoint.same_processes:
            records.examples_seen = seen[processes.rank()]
        else:  # they are summed over the processes at the end
            records.examples_seen = sum(seen) if processes.is_main() else 0

    def _tensors(self, prefix: str) -> dict[str, Tensor]:
        tensors = self.checkpoint.tensors.items()
        return {name.removeprefix(prefix): tensor for name, tensor in tensors if name.startswith(prefix)}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore the state of the method and of everything else that holds some."""
        for name, part in self.parts.items():
            part.load_task_state(TaskState(self.checkpoint.values["parts"][name], self._tensors(f"parts.{name}.")))

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

        Where another number of processes wrote them, the generators of dropout are seeded anew in ranks above 0.
        """
        same = self.checkpoint.same_processes
        own = self.checkpoint.process_values[processes.rank() if same else 0]
        set_random_state(own["random"], self._tensors("random."))
        if not same and not processes.is_main():
            seed = torch.initial_seed() & 0xFFFFFFFF
            torch.manual_seed(derive_seed(seed, "process", processes.rank(), self.checkpoint.step))


class TaskCheckpoints(TrainerCallback):
    """Writes checkpoints of a task; the last of a trainer's callbacks.

    Args:
        folder: where they are written.
        options: ``checkpoint_steps`` and ``checkpoint_minutes`` set how often; there is always one after the last step,
            which needs no optimizer.
        parts: name -> what holds state in the middle of a task besides the trainer: the method, and others.
        records: of the task; they are a part of every checkpoint.
        found: the checkpoint to resume from.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        options: TrainingOptions,
        parts: Mapping[str, Resumable],
        records: TaskRecords,
        found: Checkpoint | None = None,
    ) -> None:
        self.folder = folder
        self.every_steps = options.checkpoint_steps
        self.every_minutes = options.checkpoint_minutes
        self.records = records
        self.parts = {"records": records, **parts}
        self.found = found
        self._began = self._written = 0.0

    def begin(self) -> RestoredState | None:
        """Start the clock; returns the state to resume from, if there is a checkpoint."""
        self._began = time.perf_counter()
        if self.found is None:
            return None
        self._began -= self.found.values["seconds"]
        return RestoredState(self.found, self.parts, self.records)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of training, with those before an interruption up to the checkpoint."""
        return time.perf_counter() - self._began

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._written = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # What other callbacks do at the end of an epoch belongs to the steps before; the checkpoint comes after it.
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
            held = part.task_state()
            values["parts"][name] = held.values
            tensors |= {f"parts.{name}.{key}": tensor for key, tensor in held.tensors.items()}
        values["seconds"] = self.seconds
        # Processes that hold the same weights differ in dropout alone, and in how many examples they read.
        own: dict[str, Any] = {"examples_seen": self.records.examples_seen}
        own["random"], generators = random_state()
        if processes.rank() > 0 and not processes.uses_fsdp():
            tensors = {}
        tensors |= {f"random.{name}": generator for name, generator in generators.items()}
        text, step, folder = json.dumps(asdict(state)), state.global_step, self.folder
        with folder.unfinished(step):
            processes.on_main(lambda: folder.begin(step))
            processes.run_collectively(lambda: folder.add(step, own, tensors))
            processes.on_main(lambda: folder.finish(step, values, text))
        self._written = time.perf_counter()


def optimizer_state(optimizer: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return an optimizer's state as plain values (groups, and what is not a tensor) and tensors named ``number.key``.

    Of sharded moments, those of this process.
    """
    state = optimizer.state_dict()
    plain: dict[str, dict[str, Any]] = {}
    tensors = {}
    for number, held in state["state"].items():
        for key, value in held.items():
            if isinstance(value, Tensor):
                tensors[f"{number}.{key}"] = local(value)
            else:
                plain.setdefault(str(number), {})[key] = value
    return {"groups": state["param_groups"], "plain": plain}, tensors


def load_optimizer_state(optimizer: Any, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Restore what :func:`optimizer_state` returned."""
    state: dict[int, dict[str, Any]] = {int(number): dict(held) for number, held in values["plain"].items()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, tensor in tensors.items():
        number, key = name.split(".", 1)
        parameter = parameters[int(number)]
        shaped = tensor.shape == local(parameter).shape  # the number of a step is a scalar, and never sharded
        state.setdefault(int(number), {})[key] = shared_like(tensor, parameter) if shaped else tensor
    groups = []
    for group, current in zip(values["groups"], optimizer.state_dict()["param_groups"], strict=True):
        # JSON has no tuples.
        groups.append({key: tuple(v) if isinstance(current.get(key), tuple) else v for key, v in group.items()})
    optimizer.load_state_dict({"state": state, "param_groups": groups})
