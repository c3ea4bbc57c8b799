"""The content of a run directory as typed records: the files of a run are these records in JSON.

``run.yaml``                     :class:`RunInfo`
``tasks/NN-name/row.json``       :class:`RowFile`: the tasks learned in this row of the matrix, its scores, and the
                                 SHA-256 of its other files
``tasks/NN-name/answers.jsonl``  one :class:`KeptAnswers` per task that was scored
``tasks/NN-name/signals.jsonl``  one :class:`SignalRecord` per optimizer step
``tasks/NN-name/merges.jsonl``   one :class:`MergeRecord` per merge
``tasks/NN-name/memory.jsonl``   one :class:`KeptExample` per example kept for rehearsal
``tasks/NN-name/test.jsonl``     one :class:`KeptExample` per test example, so that later rows can be measured anywhere
``tasks/NN-name/watch.jsonl``    one :class:`KeptExample` per example of tasks that are watched from this row on
``tasks/NN-name/dev.jsonl``      likewise its development texts, where ``training.select_best`` needs them
``tasks/NN-name/images.safetensors``  the encoded images of those examples, if they are images, each under its SHA-256
``tasks/NN-name/prototypes.safetensors``  frozen label vectors that nothing can make again (image encoders without text)
``tasks/NN-name/adapter/``       the weights as deployed after it
``tasks/NN-name/method/``        what the method keeps besides
``tasks/NN-name/weights-removed.json``  :class:`~merganser.runs.removal.Removal`: weights were removed to save space
``ledger.jsonl``                 all merges in order
``scores.json``                  :class:`ScoresFile`: all rows, references, summary
``references.json``              scores of single-task models, when they were measured
``tags.json``                    :class:`~merganser.runs.tags.Tag` by name: names of rows
``undone/NAME/``                 rows that undo took away and kept, with :class:`~merganser.runs.undone.UndoneFile`
``model/``                       the weights to use now, with their card

``tasks/00-start`` holds the row before any training and the weights the run started from. The folders under ``tasks/``
are the truth: each is renamed into place when it is complete, and the files beside ``tasks/`` are made from them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from merganser.lineage import Lineage
from merganser.metrics.continual import Metric
from merganser.metrics.course import TaskCourse, courses, courses_frame, courses_html, loss_sentence
from merganser.metrics.paired import PairedChange
from merganser.metrics.retained import Outcomes
from merganser.metrics.score import Score, ScoreRow
from merganser.streams.answers import AnswerSpec
from merganser.streams.memory import MemorySummary
from merganser.streams.watch_options import Group, HarnessOptions
from merganser.tables import frame

if TYPE_CHECKING:
    from pandas import DataFrame

Against = Literal["learned", "previous"]
"""Row that a task's answers are compared with: the one right after it was learned, or the one before the last."""

Comparer = Callable[[Against], dict[str, PairedChange]]
"""Compares the answers of the last row with those of earlier ones: task -> its change."""

Table = Literal["tasks", "merges", "signals", "costs"]
"""What :meth:`RunRecord.to_pandas` gives a row to: each task, merge, inner step, or task's cost."""

FORMAT = 2
"""Version of the layout of a run directory; a run with another number is refused."""


class Record(BaseModel):
    """Base of all records: unknown keys are an error, so that a damaged or newer file is noticed."""

    model_config = ConfigDict(extra="forbid")


class RunInfo(Record):
    """``run.yaml``: what was asked, fully resolved, and with what it was made."""

    format: int = FORMAT
    created: str = Field(description="UTC time, ISO 8601")
    command: str = Field(description="the command line, or 'python' when opened from Python")
    seed: int
    processes: int = Field(1, description="processes that began it together; others may continue it")
    config: dict[str, Any] = Field(description="model, method, memory, training, evaluation, stream; fully resolved")
    versions: dict[str, str] = Field(description="merganser, python, torch, transformers, peft, ... and the processor")


class MergeRecord(Record):
    """One merge. Every number that decided it and every number that describes its effect."""

    task: str
    task_index: int = Field(description="1-based position of the task in the run")
    merge: int = Field(description="1-based number of the merge within its task")
    step: int = Field(description="1-based inner optimizer step of the task after which it fired")
    cause: Literal["due", "early", "forced", "end"] = Field(description="'end': after the last step of the task")
    status: Literal["applied", "refused"] = Field(
        "applied", description="refused: it did harm; weights and optimizer are as when it fired"
    )
    reason: str | None = Field(None, description="why it was refused")
    alarms: int = 0
    interval: int = Field(description="planned interval when it fired (inner steps)")
    next_interval: int = Field(description="planned interval afterwards")
    threshold: float | None = Field(None, description="probe loss at and above which an alarm is raised")
    learning_signal: float = Field(description="sum of |weight change| since the last merge / planned interval")
    forgetting_signal: float | None = Field(None, description="probe loss on the memory when it fired (nats)")
    rehearsal_steps: int = Field(description="optimizer steps on the memory before merging")
    weight_new: float
    weight_old: float
    norm_new: float = Field(
        description="L2 norm of the change made by the inner steps; 'end': of the task's update as a whole"
    )
    norm_old: float | None = Field(
        None,
        description="L2 norm of the change made by the rehearsal steps; 'end': of the update of the model so far; None "
        "when it is not finite",
    )
    cosine: float | None = Field(None, description="cosine between the two changes; None when one of them is zero")
    loss_new_before: float | None = Field(
        None, description="loss on a batch of the new task before rehearsal and merge"
    )
    loss_new_after: float | None = Field(None, description="the same batch after the merge")
    loss_old_before: float | None = Field(None, description="loss on a batch of the memory before rehearsal and merge")
    loss_old_after: float | None = Field(None, description="the same batch after the merge")


class SignalRecord(Record):
    """One inner step of a task."""

    step: int
    loss: float | None = Field(
        None, description="training loss of the step's batch (nats); None: not recorded (another program's Trainer)"
    )
    learning_rate: float | None = Field(None, description="None: likewise")
    probe: float | None = Field(None, description="loss on a batch of the memory after the step; None if not probed")
    interval: int | None = Field(None, description="planned merge interval in force at this step")
    threshold: float | None = Field(None, description="alarm threshold in force at this step, if armed")
    change: float | None = Field(
        None,
        description="sum of |weight change| per step over the interval that ends here; only without merges",
    )


class CostRecord(Record):
    """Wall-clock seconds and examples of one task; the page lists the fields with a title as its parts."""

    seconds: float = Field(0.0, description="the whole task: encoding, training, evaluating, writing")
    inner_seconds: float = Field(
        0.0, title="inner steps", description="forward, backward and optimizer on the task's own batches"
    )
    probing_seconds: float = Field(
        0.0, title="probing", description="forward passes on the memory that yield the forgetting signal"
    )
    rehearsal_seconds: float = Field(0.0, title="rehearsal", description="optimizer steps on the memory")
    merging_seconds: float = Field(
        0.0, title="merging", description="arithmetic on the weights: snapshots, differences, Fishers, merging"
    )
    merge_eval_seconds: float = Field(
        0.0, title="merge losses", description="forward passes that measure losses before and after a merge"
    )
    bookkeeping_seconds: float = Field(
        0.0, title="bookkeeping", description="deciding, drawing batches, writing records"
    )
    evaluating_seconds: float = Field(0.0, title="evaluating", description="answering the test examples")
    memory_seconds: float = Field(
        0.0, description="choosing the memory: losses of the training texts, or texts that the model writes"
    )
    steps: int = Field(0, description="inner optimizer steps")
    examples_trained: int = 0
    examples_rehearsed: int = 0
    examples_probed: int = 0
    examples_evaluated: int = 0


class TrainedRecord(Record):
    """What a task was trained on from one source."""

    source: str = Field(description="'task': its own examples; else the file that was mixed in, with its SHA-256")
    share: float | None = Field(None, description="share of the rows that was asked for; None: the task's own")
    examples: int = Field(description="examples in the source")
    rows: int = Field(description="rows trained on, counted once per pass")
    tokens: int = Field(description="tokens of these rows, inputs and answers")


class TaskRecord(Record):
    """One task as it was learned."""

    name: str
    index: int = Field(description="1-based position in the run")
    row: int = Field(description="row of the score matrix measured after it (tasks learned together share a row)")
    seed: int
    fingerprint: str = Field(description="SHA-256 of the task's data and settings")
    train_examples: int
    dev_examples: int = 0
    test_examples: int = 0
    truncated: dict[str, int] = Field(
        default_factory=dict,
        description="inputs longer than training.max_input and answers longer than training.max_target, which are cut: "
        "train_inputs, train_answers, dev_inputs, ... test_answers, mix_inputs, mix_answers; zeros are omitted",
    )
    spec: AnswerSpec = Field(description="labels, prompt, metric, and whether answers are written or ranked")
    source: dict[str, str] = Field(default_factory=dict)
    remarks: list[str] = Field(
        default_factory=list,
        description="what to know about the data: rows skipped, of which kind, and test texts that are training texts",
    )
    memory: MemorySummary = Field(default_factory=MemorySummary)
    cost: CostRecord = Field(default_factory=CostRecord)
    trained: list[TrainedRecord] = Field(
        default_factory=list,
        description="what it was trained on, by source; the first of tasks learned together has the sum",
    )
    selected_step: int | None = Field(None, description="training.select_best: step whose weights were deployed")
    dev_scores: dict[int, float] = Field(
        default_factory=dict, description="training.select_best: step -> mean score on the development texts"
    )
    method_bytes: dict[str, int] = Field(
        default_factory=dict, description="what the method keeps after this task, by name (memory, weights, ...)"
    )
    finished: str = Field(description="UTC time, ISO 8601")


class WatchRecord(Record):
    """One watched task: scored after every row and never learned."""

    name: str
    group: Group | None = Field(None, description="what it stands for")
    fingerprint: str = Field(description="SHA-256 of its examples and settings")
    test_examples: int
    truncated: dict[str, int] = Field(default_factory=dict, description="as of a task: test_inputs, test_answers")
    spec: AnswerSpec = Field(description="as of a task; of a task of lm-evaluation-harness only a placeholder")
    harness: HarnessOptions | None = Field(
        None, description="the task of lm-evaluation-harness that scores; its folder is on this machine"
    )
    source: dict[str, str] = Field(default_factory=dict)
    remarks: list[str] = Field(default_factory=list)


class KeptExample(Record):
    """One example in ``memory.jsonl``, ``test.jsonl`` or ``watch.jsonl``."""

    task: str
    input: str = Field("", description="the text as the model reads it; empty where there are messages")
    output: str
    id: str = ""
    image: str = Field("", description="SHA-256 of its image in images.safetensors; empty for a text")
    messages: list[dict[str, Any]] = Field(
        default_factory=list,
        description="the turns of a conversation, of which the last is the answer; train: false "
        "marks turns without a loss",
    )
    tools: list[Any] = Field(default_factory=list, description="tools that a conversation's template describes")
    rejected: str | None = Field(None, description="of a pair: the rejected answer; the output is the chosen one")


class KeptAnswers(Record):
    """One line of ``answers.jsonl``: how the weights of a row answered a task's test set, in the order of its file."""

    row: int = Field(description="row whose weights answered: this one, or an earlier one for a task new in this one")
    task: str
    answers: list[str] = Field(description="one per test example; empty for pairs, of which none is written")
    scores: list[float] = Field(description="of each example, in [0, 1]")


class RowFile(Record):
    """``row.json``: what one row of the matrix learned, and how every task scored after it."""

    format: int = FORMAT
    row: int
    tasks: list[TaskRecord] = Field(description="tasks learned in this row; empty for row 0")
    scores: ScoreRow
    earlier: dict[int, dict[str, Score]] = Field(
        default_factory=dict, description="row -> scores of tasks that were not known when that row was measured"
    )
    metrics: dict[str, str] = Field(description="text score used for each task in the row")
    watched: list[WatchRecord] = Field(
        default_factory=list, description="tasks that are watched from this row on; they have columns as others"
    )
    against_start: dict[str, Outcomes] = Field(
        default_factory=dict,
        description="watched task -> its answers compared with those of row 0, as far as answers are kept",
    )
    lines: dict[str, int] = Field(
        default_factory=dict, description="lines of each .jsonl file beside it, so that one cut short is found"
    )
    sha256: dict[str, str] = Field(
        default_factory=dict, description="SHA-256 of every other file of the row, by path; empty: none was recorded"
    )
    run_sha256: str = Field("", description="SHA-256 of run.yaml; empty: none was recorded")
    lineage: Lineage | None = Field(
        None,
        description="hashes of base, tokenizer, quantisation, this row's data and weights; None: none was recorded",
    )
    checksum: str = Field("", description="SHA-256 of this file with this value left empty; empty: none was recorded")


class WatchedColumn(Record):
    """What ``scores.json`` has of a watched task beside its column of the matrix."""

    name: str
    group: Group | None = None
    against_start: Outcomes | None = Field(
        None, description="its answers in the last row compared with those of row 0; null: not kept, or nothing learned"
    )


class ScoresFile(Record):
    """``scores.json``."""

    format: int = FORMAT
    tasks: list[str] = Field(
        description="columns of the matrix, in order of learning, then those not yet learned, then watched ones"
    )
    watched: list[WatchedColumn] = Field(
        default_factory=list, description="the columns that are watched: scored in every row and never learned"
    )
    metrics: dict[str, str] = Field(description="text score used for each task")
    rows: list[ScoreRow]
    references: dict[str, Score] = Field(
        default_factory=dict, description="score of a fresh model trained on that task alone, when measured"
    )
    summary: list[Metric] = Field(default_factory=list)


class RunRecord(Record):
    """A whole run as read from its directory."""

    path: str
    info: RunInfo
    tasks: list[TaskRecord]
    scores: ScoresFile
    merges: list[MergeRecord]
    signals: dict[str, list[SignalRecord]] = Field(description="task name -> one record per inner step")
    _compare: Comparer | None = PrivateAttr(None)
    _changes: dict[Against, dict[str, PairedChange]] = PrivateAttr(default_factory=dict)

    def compare_by(self, compare: Comparer) -> RunRecord:
        """Let :meth:`changes` compare answers in this way; they are read when it is first asked."""
        self._compare = compare
        return self

    @property
    def comparer(self) -> Comparer | None:
        """What :meth:`compare_by` was given."""
        return self._compare

    def changes(self, against: Against = "learned") -> dict[str, PairedChange]:
        """Return the change of each earlier and watched task up to the last row, over the same test examples.

        A task whose answers were not kept has none. Watched tasks count as learned before any training.

        Raises:
            InputError: the files with the answers are damaged.
        """
        if against not in self._changes:
            self._changes[against] = {} if self._compare is None else self._compare(against)
        return self._changes[against]

    def courses(self) -> list[TaskCourse]:
        """Return what became of each learned and then each watched task, with its change and the interval of that."""
        return courses(self.scores.rows, self.changes(), [task.name for task in self.scores.watched])

    def to_pandas(self, table: Table = "tasks") -> DataFrame:
        """Return a frame of pandas; scores are fractions.

        Args:
            table: ``tasks``: what became of each task; ``merges``: the ledger; ``signals``: a row per inner step;
                ``costs``: seconds and examples of each task. The matrix of scores is ``Learner.scores.to_pandas()``.

        Raises:
            InputError: pandas is not installed.
        """
        if table == "tasks":
            return courses_frame(self.courses())
        if table == "merges":
            return _frame_of({}, MergeRecord, self.merges)
        if table == "signals":
            steps = [(name, signal) for name, signals in self.signals.items() for signal in signals]
            return _frame_of({"task": [name for name, _ in steps]}, SignalRecord, [signal for _, signal in steps])
        return _frame_of({"task": [task.name for task in self.tasks]}, CostRecord, [task.cost for task in self.tasks])

    def _repr_html_(self) -> str:
        tasks = self.courses()
        count = sum(not task.watched for task in tasks)
        title = f"{self.path}: {count} {'task' if count == 1 else 'tasks'} learned. {loss_sentence(tasks)}"
        return courses_html(tasks, title.strip())


def _frame_of(first: dict[str, list[str]], kind: type[Record], records: Sequence[Record]) -> DataFrame:
    return frame(first | {name: [getattr(record, name) for record in records] for name in kind.model_fields})
