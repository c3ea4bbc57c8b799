"""State of the parts of a training within a task, for checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class TaskState:
    """The state of one part of the training, between two steps.

    Attributes:
        values: plain JSON values; finite numbers only.
        tensors: name -> tensor; no two share memory.
    """

    values: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


class Resumable(Protocol):
    """An object whose state between two steps can be saved; restored, it continues bit for bit."""

    def task_state(self) -> TaskState:
        """Return the current state, without what is passed in when a task begins."""
        ...

    def load_task_state(self, state: TaskState) -> None:
        """Restore what :meth:`task_state` returned; called in ``on_train_begin``."""
        ...
