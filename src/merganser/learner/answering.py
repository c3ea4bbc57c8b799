"""What inference needs: a run, or an exported model."""

from __future__ import annotations

from typing import Protocol

from merganser.config import RunConfig
from merganser.events import Listener
from merganser.models.base import Backbone
from merganser.streams.answers import CandidatePolicy
from merganser.streams.task import Task


class Answering(Protocol):
    """A model with the tasks that it answers; its members are those of :class:`~merganser.learner.session.Session`."""

    @property
    def backbone(self) -> Backbone: ...

    @property
    def config(self) -> RunConfig: ...

    @property
    def candidates(self) -> CandidatePolicy: ...

    @property
    def listener(self) -> Listener: ...

    def known_tasks(self) -> dict[str, Task]: ...

    def require_learned(self) -> dict[str, Task]: ...

    def answered_by(self) -> dict[str, int]: ...

    def use_task(self, name: str) -> None: ...
