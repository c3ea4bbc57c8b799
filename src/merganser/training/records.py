"""Records of a task while it is trained; shared by the trainer, the method, checkpoints and the live view."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from merganser.events import Listener, Merged, silent
from merganser.runs.record import CostRecord, MergeRecord, SignalRecord
from merganser.training.state import TaskState


@dataclass
class TaskRecords:
    """The records of one task, filled step by step.

    Attributes:
        task: name of the task.
        index: its 1-based position in the run.
        listener: receives an event for every merge.
        signals: one record per optimizer step, in order.
        merges: one record per merge, in order.
        cost: seconds and examples spent so far.
        trained: source -> examples, and their tokens, that this process has trained on, counted once per pass.
    """

    task: str = "task"
    index: int = 1
    listener: Listener = silent
    signals: list[SignalRecord] = field(default_factory=list)
    merges: list[MergeRecord] = field(default_factory=list)
    cost: CostRecord = field(default_factory=CostRecord)
    trained: dict[str, list[int]] = field(default_factory=dict)

    def reset(self) -> None:
        """Clear the records; lists that were returned before keep their content."""
        self.signals, self.merges, self.cost, self.trained = [], [], CostRecord(), {}

    def add_trained(self, counts: Mapping[str, Sequence[int]]) -> None:
        """Add numbers of examples and tokens by source."""
        for source, numbers in counts.items():
            so_far = self.trained.get(source, [0, 0])
            self.trained[source] = [a + b for a, b in zip(so_far, numbers, strict=True)]

    def signal(self, step: int) -> SignalRecord:
        """Return the record of the last step, for a callback to complete.

        A trainer that does not record losses, such as a stock ``transformers.Trainer``, has none: it is added then.
        """
        if not self.signals or self.signals[-1].step != step:
            self.signals.append(SignalRecord(step=step))
        return self.signals[-1]

    def add_merge(self, record: MergeRecord) -> None:
        """Append a merge to the records of this task, and notify the listener."""
        self.merges.append(record)
        self.listener(Merged(**{item.name: getattr(record, item.name) for item in dataclasses.fields(Merged)}))

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the seconds spent inside to a field of the cost, such as ``merging_seconds``."""
        started = time.perf_counter()
        try:
            yield
        finally:
            setattr(self.cost, part, getattr(self.cost, part) + time.perf_counter() - started)

    def task_state(self) -> TaskState:
        """Return all records as plain values, without those that differ between processes."""
        return TaskState(
            {
                "signals": [signal.model_dump() for signal in self.signals],
                "merges": [merge.model_dump() for merge in self.merges],
                "cost": self.cost.model_dump(),
            }
        )

    def load_task_state(self, state: TaskState) -> None:
        """Restore what :meth:`task_state` returned."""
        self.signals = [SignalRecord.model_validate(signal) for signal in state.values["signals"]]
        self.merges = [MergeRecord.model_validate(merge) for merge in state.values["merges"]]
        self.cost = CostRecord.model_validate(state.values["cost"])
