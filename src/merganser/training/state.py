"""What must be carried over when a task is interrupted in the middle."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class TaskState:
    """What something holds in the middle of a task.

    Attributes:
        values: plain JSON values; finite numbers only.
        tensors: name -> tensor; no two share memory.
    """

    values: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


class Resumable(Protocol):
    """Something that can go on bit for bit from what it held at an earlier step."""

    def task_state(self) -> TaskState:
        """What it holds now, besides what it is given when a task begins."""
        ...

    def load_task_state(self, state: TaskState) -> None:
        """Hold what :meth:`task_state` returned; called when training has begun (``on_train_begin``)."""
        ...
