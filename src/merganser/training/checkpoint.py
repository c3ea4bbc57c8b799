"""Checkpoints in the middle of a task: when they are taken, what they hold, and how training goes on from one.

After a step nothing is pending: gradients are zero, the batches accumulated are used up. So the weights, the optimizer,
the schedule, the random generators, the numbers logged and what the method holds are all there is. The order of the
data is a function of seed and epoch (:class:`~merganser.training.trainer.EpochOrder`), and ``Trainer`` skips the
batches of the epoch that were seen.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from merganser import processes
from merganser.runs.checkpoint import Checkpoint, CheckpointFolder
from merganser.training.determinism import derive_seed, random_state, set_random_state
from merganser.training.options import TrainingOptions
from merganser.training.state import Resumable, TaskState
from merganser.weights import Weights, local, shared_like

if TYPE_CHECKING:
    from merganser.training.trainer import TaskTrainer


class TaskCheckpoints(TrainerCallback):
    """Writes checkpoints of a task and puts one back; the last of a trainer's callbacks.

    Args:
        folder: where they are written.
        options: ``checkpoint_steps`` and ``checkpoint_minutes`` say how often; there is always one after the last step,
            which needs no optimizer.
        parts: name -> what holds something in the middle of a task besides the trainer: the method, and others.
        found: the checkpoint to go on from.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        options: TrainingOptions,
        parts: Mapping[str, Resumable],
        found: Checkpoint | None = None,
    ) -> None:
        self.folder = folder
        self.every_steps = options.checkpoint_steps
        self.every_minutes = options.checkpoint_minutes
        self.parts = dict(parts)
        self.found = found
        self._trainer: TaskTrainer | None = None
        self._began = self._written = 0.0

    def attach(self, trainer: TaskTrainer) -> None:
        """Work for this trainer, which goes on from :attr:`found` if there is one."""
        self._trainer = trainer
        trainer.checkpoints = self
        trainer.add_callback(self)
        self._began = time.perf_counter()
        if self.found is not None:
            values = self.found.values
            self._began -= values["seconds"]
            seen = [own["examples_seen"] for own in self.found.own]
            if self.found.same_processes:
                trainer.examples_seen = seen[processes.rank()]
            else:  # they are added up at the end
                trainer.examples_seen = sum(seen) if processes.is_main() else 0
            trainer.step_log.losses[:] = values["losses"]
            trainer.step_log.learning_rates[:] = values["learning_rates"]

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of training, with those before an interruption up to the checkpoint."""
        return time.perf_counter() - self._began

    # -- writing ----------------------------------------------------------------------------------------------------

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # What other callbacks do at the end of an epoch belongs to the steps before; the checkpoint is taken after it.
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
        # Clocks differ from process to process: one of them decides.
        return processes.on_main(lambda: time.perf_counter() - self._written >= 60 * minutes)

    def _write(self, state: TrainerState, kwargs: Mapping[str, Any]) -> None:
        assert self._trainer is not None
        values: dict[str, Any] = {
            "losses": self._trainer.step_log.losses,
            "learning_rates": self._trainer.step_log.learning_rates,
        }
        tensors = {f"weights.{name}": weight for name, weight in Weights.of(self._trainer.model).items()}
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
        own: dict[str, Any] = {"examples_seen": self._trainer.examples_seen}
        own["random"], generators = random_state()
        if processes.rank() > 0 and not processes.sharded():
            tensors = {}
        tensors |= {f"random.{name}": generator for name, generator in generators.items()}
        text, step, folder = json.dumps(asdict(state)), state.global_step, self.folder
        with folder.unfinished(step):
            processes.on_main(lambda: folder.begin(step))
            processes.run_collectively(lambda: folder.add(step, own, tensors))
            processes.on_main(lambda: folder.finish(step, values, text))
        self._written = time.perf_counter()

    # -- putting back -----------------------------------------------------------------------------------------------

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._written = time.perf_counter()
        if self.found is None:
            return
        for name, part in self.parts.items():
            part.load_task_state(TaskState(self.found.values["parts"][name], self._tensors(f"parts.{name}.")))

    def _tensors(self, prefix: str) -> dict[str, Tensor]:
        assert self.found is not None
        return {name.removeprefix(prefix): t for name, t in self.found.tensors.items() if name.startswith(prefix)}

    def put_back_weights(self, model: torch.nn.Module) -> None:
        """The trainable weights, in place."""
        Weights.of(model).copy_(Weights(self._tensors("weights.")))

    def put_back_optimizer(self, optimizer: Any, schedule: Any) -> None:
        """Moments and learning rates; a checkpoint after the last step has none."""
        assert self.found is not None
        if "optimizer" in self.found.values:
            load_optimizer_state(optimizer, self.found.values["optimizer"], self._tensors("optimizer."))
            schedule.load_state_dict(self.found.values["schedule"])

    def put_back_random(self) -> None:
        """The states of the random generators; where another number of processes wrote them, those of dropout begin
        anew in other processes than the first."""
        assert self.found is not None
        own = self.found.own[processes.rank() if self.found.same_processes else 0]
        set_random_state(own["random"], self._tensors("random."))
        if not self.found.same_processes and not processes.is_main():
            seed = torch.initial_seed() & 0xFFFFFFFF
            torch.manual_seed(derive_seed(seed, "process", processes.rank(), self.found.step))


def optimizer_state(optimizer: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """An optimizer's state as plain values (groups, and what is not a tensor) and tensors named ``number.key``; of what
    is shared out over processes, this one's shards."""
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
    """Put back what :func:`optimizer_state` returned."""
    state: dict[int, dict[str, Any]] = {int(number): dict(held) for number, held in values["plain"].items()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, tensor in tensors.items():
        number, key = name.split(".", 1)
        parameter = parameters[int(number)]
        shaped = tensor.shape == local(parameter).shape  # a step's number is shared out by nobody
        state.setdefault(int(number), {})[key] = shared_like(tensor, parameter) if shaped else tensor
    groups = []
    for group, own in zip(values["groups"], optimizer.state_dict()["param_groups"], strict=True):
        # JSON has no tuples.
        groups.append({key: tuple(v) if isinstance(own.get(key), tuple) else v for key, v in group.items()})
    optimizer.load_state_dict({"state": state, "param_groups": groups})
