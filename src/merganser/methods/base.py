"""The interface of a continual-learning method.

A method defines four things: where the next task starts (:attr:`Method.start`), what happens during a task
(:meth:`Method.callbacks`, :meth:`Method.penalty`), what happens after it (:meth:`Method.after_task`), and what it must
store (:meth:`Method.bytes_kept`). Everything else is shared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from merganser.events import Listener, silent
from merganser.options import StrictOptions
from merganser.streams.answers import AnswerSpec, CandidatePolicy
from merganser.training.options import TrainingOptions
from merganser.training.records import TaskRecords
from merganser.training.state import TaskState

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from merganser.models.base import Backbone
    from merganser.training.data import Mixture
    from merganser.training.rehearsal import Collator
    from merganser.training.trainer import Penalty
    from merganser.weights import Weights

Start = Literal["deployed", "trained", "pretrained"]


class MethodOptions(StrictOptions):
    """Base of every method's options; ``name`` selects the method."""

    name: str

    def memory_values(self) -> dict[str, Any]:
        """Return the options of the ``memory`` section that these options require, by key."""
        return {}

    def memory_defaults(self) -> dict[str, Any]:
        """Return other defaults of the ``memory`` section, for options that can still be set."""
        return {}

    def training_values(self) -> dict[str, Any]:
        """Return the options of the ``training`` section that these options require, by key."""
        return {}

    def training_defaults(self) -> dict[str, Any]:
        """Return other defaults of the ``training`` section, for options that can still be set."""
        return {}


@dataclass(frozen=True, kw_only=True)
class TaskContext:
    """Data and model available to a method while one task is learned.

    Attributes:
        task: name of the task.
        index: its 1-based position in the run.
        backbone: the model, already at the weights the task starts from.
        memory: tokenised examples kept from earlier tasks.
        memory_groups: task and label of each of them, in that order (the label is empty for free text).
        training: how the task is optimised.
        seed: seed of this task.
        features: tokenised examples of the task.
        steps: optimizer steps the task will take.
        spec: how the task's texts are answered among its own labels.
        earlier: task -> the same for the tasks learned before, in order.
        candidates: decides whether answers are chosen from a task's own labels or from all labels learned.
        deployed: reads the trainable weights deployed after a row of the run (0: before any task), in memory of their
            own. Unless the method is of ``per_task_models``, ``runs.keep_weights`` may have removed those of other
            rows than 0 and the last.
        trained: reads the weights of a row's task before any merge, likewise; for methods that start from them.
        listener: receives merges as events.
        mixture: examples of other data that training reads beside the task's.
    """

    task: str
    index: int
    backbone: Backbone
    memory: Sequence[dict[str, Any]]
    training: TrainingOptions
    seed: int
    deployed: Callable[[int], Weights]
    trained: Callable[[int], Weights]
    features: Sequence[dict[str, Any]]
    steps: int
    spec: AnswerSpec = field(default_factory=AnswerSpec)
    earlier: Mapping[str, AnswerSpec] = field(default_factory=dict)
    candidates: CandidatePolicy = field(default_factory=CandidatePolicy)
    memory_groups: Sequence[tuple[str, str]] = ()
    listener: Listener = silent
    mixture: Mixture | None = None

    def collator(self) -> Collator:
        """Return what makes training batches, packed if ``training.packing`` is set.

        Losses on tokens need it. Who looks at the rows of a batch uses ``backbone.collate``, which always pads.
        """
        from merganser.training.packing import training_collator

        return training_collator(self.backbone, self.training)

    def specs(self) -> dict[str, AnswerSpec]:
        """Return how the tasks learned so far and this one are answered, in the order of learning."""
        return {**self.earlier, self.task: self.spec}

    def pretrained(self) -> Weights:
        """Read the pretrained values of the trainable weights, as a copy."""
        return self.deployed(0)

    def before(self) -> Weights:
        """Read the weights deployed before this task (before the first: the pretrained ones), as a copy."""
        return self.deployed(self.index - 1)


OptionsT = TypeVar("OptionsT", bound=MethodOptions)


class Method(Generic[OptionsT]):
    """Base class of the methods.

    Class attributes:
        title, paper, idea: shown by ``merganser methods``.
        stores: what must survive between tasks besides the memory of examples, in words and sizes (P: trainable
            weights).
        grows: whether that grows with the number of tasks.
        start: where a task starts: from the weights in use (*deployed*), from the last task's own weights before any
            merge (*trained*), or from the model as it came (*pretrained*). Options may set another for an instance.
        uses_memory: whether examples of earlier tasks are needed while a later one is learned.
        full_memory: the memory is all training data (an upper bound, not a continual learner).
        joint: all given tasks are learned at once, together with the stored data of earlier ones.
        per_task_models: tasks are answered by different weights (:meth:`answered_by`), so the task of a text must be
            named.
        lora_only: works on the factors of an adapter, not on whole weights.
        selects_best: a task's best weights can take the place of its last ones before :meth:`after_task`; false where
            that looks at the way to the last ones.
        no_preferences: why it cannot learn tasks of preferences (pairs of answers); empty: it can.
        reads_every_trained: reads the weights before any merge of every earlier task (:attr:`TaskContext.trained`), so
            that ``runs.keep_weights`` never removes them.
        supports_distributed: gives the result of one process when several train together; others are refused then.
    """

    Options: ClassVar[type[MethodOptions]]
    title: ClassVar[str]
    paper: ClassVar[str]
    idea: ClassVar[str]
    stores: ClassVar[str] = "the weights (P)"
    grows: ClassVar[bool] = False
    start: Start = "deployed"
    uses_memory: ClassVar[bool] = False
    full_memory: ClassVar[bool] = False
    joint: ClassVar[bool] = False
    per_task_models: ClassVar[bool] = False
    lora_only: ClassVar[bool] = False
    selects_best: ClassVar[bool] = True
    no_preferences: ClassVar[str] = ""
    reads_every_trained: ClassVar[bool] = False
    supports_distributed: ClassVar[bool] = False

    def __init__(self, options: OptionsT) -> None:
        self.options = options
        self.records = TaskRecords()

    def rehearsal_batch(self, training: TrainingOptions, memory_examples: int) -> int | None:
        """Return the examples per batch drawn from a memory of this size; ``None`` if none is drawn.

        Raises:
            InputError: a requested batch is larger than the memory.
        """
        return None

    def check_tasks(self, names: Sequence[str], whole: bool = False) -> str | None:
        """Refuse tasks that the options do not support, before any work.

        Args:
            names: of the tasks learned and to be learned, in order.
            whole: these are all of a stream; otherwise others may be yet to come.

        Returns:
            A remark for the user about options that do not fit the tasks but do no harm; ``None`` without one.

        Raises:
            InputError: an option has values for fewer tasks than the run will have, or names other tasks.
        """
        return None

    def begin_task(self) -> None:
        """Clear the state of the previous task, its records included."""
        self.records.reset()

    def callbacks(self, context: TaskContext) -> list[TrainerCallback]:
        """Return the callbacks of a task, in the order in which they are called."""
        return []

    def penalty(self, context: TaskContext) -> Penalty | None:
        """Return a term added to the loss of every batch; ``None``: none."""
        return None

    def task_state(self) -> TaskState:
        """Return the state within a task, without what :meth:`load` reads, from which training resumes bit for bit.

        The records are a part of every checkpoint anyway.
        """
        return TaskState()

    def load_task_state(self, state: TaskState) -> None:
        """Restore what :meth:`task_state` returned.

        Called when :meth:`callbacks` and :meth:`penalty` were called and training has begun (``on_train_begin``).
        """

    def after_task(self, context: TaskContext) -> None:
        """Merge or change the weights after a task has been trained; the result is deployed."""

    def keeps_pretrained(self, lora: bool) -> bool:
        """Return whether later tasks need the pretrained values of the trainable weights, so that their bytes count.

        Args:
            lora: they are the factors of an adapter.
        """
        return self.start == "pretrained"

    def uses_products(self) -> bool:
        """Return whether the method computes with the updates BA of an adapter, which must be zero before any task.

        DoRA, whose update is another one, and an adapter to begin with (``model.adapter``) are refused then.
        """
        return self.lora_only

    def reads_adam(self) -> bool:
        """Return whether the method reads Adam's moments, so that other optimizers are refused."""
        return False

    def answered_by(self, learned: Mapping[str, int]) -> dict[str, int]:
        """Map each learned task to the row of the run whose weights answer it: by default the last row for all.

        Args:
            learned: task -> row it was learned in, in order.
        """
        last = max(learned.values(), default=0)
        return dict.fromkeys(learned, last)

    def save(self, folder: Path) -> None:
        """Write what the method must keep between tasks, besides the deployed weights and the memory."""

    def load(self, folder: Path) -> None:
        """Read what :meth:`save` wrote."""

    def bytes_kept(self) -> dict[str, int]:
        """Return the bytes stored between tasks besides the deployed weights and the memory, by name."""
        return {}
