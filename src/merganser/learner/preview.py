"""A run that is not on disk: a session with tasks that are assumed to be learned, for a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from merganser.learner.checks import sample
from merganser.learner.session import Session
from merganser.runs.rows import Row
from merganser.streams.memory import in_force
from merganser.streams.task import Example, Task
from merganser.weights import Weights


class Preview(Session):
    """A session that writes nothing, after tasks that were not learned; all else is the session's.

    Args:
        session: of a run, or of a folder that is not there.
        assumed: tasks as if they were learned after those of the run; their memory is sampled as it will be.
    """

    def __init__(self, session: Session, assumed: Sequence[Task] = ()) -> None:
        self.__dict__.update(vars(session))
        self.assumed = list(assumed)

    @property
    def rows(self) -> list[Row]:
        return self.directory.rows if self.directory.exists(self.directory.path) else []

    def known_tasks(self, examples: str = "test") -> dict[str, Task]:
        known = super().known_tasks(examples)
        return known | {
            task.name: replace(task, train=(), test=task.dev if examples == "dev" else task.test)
            for task in self.assumed
        }

    def memory(self) -> Sequence[tuple[str, Example]]:
        sampled = [(task.name, example) for task in self.assumed for example in sample(self, task)]
        return in_force([*self.examples("memory"), *sampled], self.memory_total)

    def deployed(self, row: int) -> Weights:
        """Return the weights of a row; those in the model where there is no such row yet."""
        return super().deployed(row) if row < len(self.rows) else Weights.of(self.backbone.module).snapshot()

    def trained(self, row: int) -> Weights:
        """Return the weights before any merge, likewise."""
        return super().trained(row) if row < len(self.rows) else Weights.of(self.backbone.module).snapshot()
