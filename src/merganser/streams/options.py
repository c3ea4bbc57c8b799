"""The ``stream`` and ``memory`` sections of a configuration, as types. Their descriptions are the published schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from merganser.errors import first_repeated, nearest
from merganser.streams.bad_rows import STREAM_CHOICE, OnBadRows
from merganser.streams.builtin import BUILTIN, DEMO
from merganser.streams.images.image_sets import IMAGE_SETS
from merganser.streams.task_options import (
    Count,
    Fraction,
    MixOptions,
    Options,
    Seed,
    TaskOptions,
    TaskOverrides,
    TaskSettings,
    as_label,
    name_problem,
)
from merganser.streams.watch_options import WatchOptions

__all__ = ["MemoryOptions", "SplitOptions", "StreamOptions", "TaskOptions"]


class SplitOptions(TaskSettings):
    """Class-incremental learning: the classes of one data set, a few per task. The data are given as for a task."""

    train: str | None = Field(
        default=None,
        min_length=1,
        description="training examples, in the formats of a task's; required unless 'name' is a built-in set of images",
    )
    dev: str | None = Field(default=None, min_length=1, description="development examples; optional")
    test: str | None = Field(default=None, min_length=1, description="test examples; optional")
    dev_share: Fraction = Field(
        default=None,
        description="without 'dev': fraction of each class's training examples that is held out for development",
    )
    test_share: Fraction = Field(
        default=None,
        description="without 'test': fraction of each class's training examples that is held out for testing",
    )
    classes_per_task: Count | None = Field(
        default=None, description="classes per task; the last task has the remaining ones. Give this or 'tasks'"
    )
    tasks: Count | None = Field(
        default=None, description="number of tasks; their numbers of classes differ by one at most"
    )
    exclude: list[str] = Field(default_factory=list, description="classes to omit")
    order: list[str] | str | None = Field(
        default=None,
        description="the classes in order of learning: a list, or a text file with one per line; default: as in "
        "'labels' where those are listed, else sorted by name (IDX: as in 'classes')",
    )
    order_seed: Seed | None = Field(default=None, description="instead of 'order': shuffle the classes with this seed")
    prefix: str = Field(default="classes", description="tasks are called PREFIX-01, PREFIX-02, ...")

    @field_validator("exclude", mode="before")
    @classmethod
    def _read_exclude(cls, value: Any) -> Any:
        return [as_label(label) for label in value] if isinstance(value, list) else value

    @field_validator("order", mode="before")
    @classmethod
    def _read_order(cls, value: Any) -> Any:
        return [as_label(label) for label in value] if isinstance(value, list) else value

    @model_validator(mode="after")
    def _check_split(self) -> SplitOptions:
        if problem := name_problem(f"{self.prefix}-01"):
            raise ValueError(problem)
        for first, second in (
            ("dev", "dev_share"),
            ("test", "test_share"),
            ("tasks", "classes_per_task"),
            ("order", "order_seed"),
        ):
            if getattr(self, first) is not None and getattr(self, second) is not None:
                raise ValueError(f"gives both '{first}' and '{second}': keep one")
        if (self.dev_share or 0) + (self.test_share or 0) >= 1:
            raise ValueError("dev_share and test_share leave nothing to train on")
        if self.labels is None:
            raise ValueError("a split needs classes, so 'labels' cannot be none")
        return self


class StreamOptions(Options):
    """The tasks, in order: exactly one of ``tasks``, ``split``, ``folder`` + ``order``, a built-in ``name``."""

    name: str | None = Field(
        default=None,
        description="a built-in order (needs 'folder'): "
        + ", ".join(BUILTIN)
        + f"; or '{DEMO}': five real tasks from an installed package; or a built-in set of images: "
        + ", ".join(IMAGE_SETS)
        + "; with 'tasks', 'split' or 'order': a title",
    )
    folder: str | None = Field(
        default=None,
        description="folder with train/, dev/ and test/, each with files NAME_T5.json; of a built-in set of images: "
        "with train/ and test/, each with a folder per class",
        min_length=1,
    )
    order: list[str] | None = Field(
        default=None, description="names of the folder's tasks, in order of learning", min_length=1
    )
    tasks: list[TaskOptions] | None = Field(default=None, description="the tasks, in order of learning", min_length=1)
    split: SplitOptions | None = Field(
        default=None,
        description="class-incremental: the classes of one data set, a few per task; with a built-in set of images: "
        "settings that differ from its defaults",
    )
    limit: Count | None = Field(default=None, description="default of every task's limit")
    limit_dev: Count | None = Field(default=None, description="default of every task's limit_dev")
    limit_test: Count | None = Field(default=None, description="default of every task's limit_test")
    limit_seed: Seed | None = Field(default=None, description="default of every task's limit_seed")
    on_bad_rows: OnBadRows | None = Field(default=None, description=STREAM_CHOICE)
    mix: MixOptions | None = Field(default=None, description="default of every task's mix")
    overrides: dict[str, TaskOverrides] = Field(
        default_factory=dict, description="task name -> settings of that task, such as the texts of its labels"
    )
    watch: list[WatchOptions] = Field(
        default_factory=list,
        description="tasks that are scored before training and after every task, and never learned: what the "
        "pretrained model knew and should keep. Without any tasks beside it, for `merganser learn --config`",
    )

    @model_validator(mode="after")
    def _check_source(self) -> StreamOptions:
        image_set = self.name is not None and self.name in IMAGE_SETS
        builtin = image_set or (self.name is not None and self.name in (*BUILTIN, DEMO))
        sources = [
            what
            for what, is_set in (
                ("tasks", self.tasks is not None),
                ("order", self.order is not None),
                ("split", self.split is not None and not image_set),
                (f"name: {self.name}", builtin),
            )
            if is_set
        ]
        if len(sources) > 1:
            raise ValueError(f"gives both '{sources[0]}' and '{sources[1]}': keep one")
        if not sources and self.watch and self.name is None:
            sources = ["watch"]
        if not sources:
            if self.name is not None:
                hint = nearest(self.name, [*BUILTIN, DEMO, *IMAGE_SETS])
                raise ValueError(f"{self.name!r} is not a built-in stream. {hint or 'Known: ' + ', '.join(BUILTIN)}")
            raise ValueError("names no tasks: give 'tasks', 'split', 'folder' and 'order', or a built-in 'name'")
        if self.split is not None and not image_set and self.split.train is None:
            raise ValueError("'split' needs 'train': the examples whose classes are split")
        needs_folder = self.order is not None or (builtin and not image_set and self.name != DEMO)
        if needs_folder and self.folder is None:
            raise ValueError(f"'{sources[0]}' needs 'folder': where train/, dev/ and test/ are")
        if not needs_folder and not image_set and self.folder is not None:
            raise ValueError(f"'folder' has no effect with '{sources[0]}'" + ("; give 'order'" if self.tasks else ""))
        if self.name == DEMO and (self.overrides or self.mix is not None):
            raise ValueError(f"'{'overrides' if self.overrides else 'mix'}' does not apply to the demo")
        if (self.split is not None or image_set) and self.overrides:
            raise ValueError("'overrides' do not apply to a split; give its settings in 'split'")
        names = self.task_names()
        watched = [task.title for task in self.watch]
        if (twice := first_repeated([*(names or []), *watched])) is not None:
            raise ValueError(f"task {twice!r} occurs twice")
        for name in names or []:
            if problem := name_problem(name):
                raise ValueError(problem)
        for name in self.overrides:
            if names is not None and name not in names:
                raise ValueError(f"overrides: {name!r} is not a task of the stream. {nearest(name, names)}".strip())
        return self

    def task_names(self) -> list[str] | None:
        """Return the names of the tasks in order; ``None`` for the demo and for splits, which name their own."""
        if self.tasks is not None:
            return [task.name for task in self.tasks]
        if self.order is not None:
            return list(self.order)
        return list(BUILTIN[self.name].tasks) if self.name in BUILTIN else None


Sampler = Literal["per_label", "uniform", "surprise", "mixed", "reference"]
DEFAULT_SHARE = 0.02


class MemoryOptions(Options):
    """How much of each learned task is kept for rehearsal, and which texts."""

    share: float | None = Field(
        default=None,
        description=f"fraction of each task's training examples that is kept, above 0 and at most 1; {DEFAULT_SHARE} "
        "when neither share, number nor total is given",
    )
    number: int | None = Field(default=None, description="instead of share: number of examples kept per task")
    total: int | None = Field(
        default=None,
        description="instead of share: number of examples kept of all tasks together; every task gets as many as the "
        "others, so that earlier ones give up some with every new one",
    )
    sampler: Sampler = Field(
        default="per_label",
        description="per_label: as evenly over the labels as possible, within the budget; uniform: at random, within "
        "the budget; surprise: those with the highest loss under the model; mixed: half of them at random as "
        "per_label, half by surprise; reference: as AimMerging's released code, at least one per distinct output",
    )
    surprise_when: Literal["before", "after"] = Field(
        default="before", description="surprise, mixed: measure the loss before or after the task is learned"
    )
    source: Literal["data", "self"] = Field(
        default="data",
        description="data: training examples; self: texts that a causal model writes after a task, and its answers to "
        "them, so that no training example is kept",
    )
    minimum_per_label: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="per_label: keep at least this many examples of every label even if that exceeds share or number; "
        "surprise, mixed: as many examples, of whichever labels",
    )
    allow_excess: bool = Field(
        default=False,
        description="reference: let the sampler keep more than share or number, as the released code does on free "
        "text; refused otherwise",
    )

    @model_validator(mode="before")
    @classmethod
    def _default_share(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and all(values.get(key) is None for key in ("share", "number", "total")):
            return {**values, "share": DEFAULT_SHARE}
        return values

    @model_validator(mode="after")
    def _check_budget(self) -> MemoryOptions:
        given = [key for key in ("share", "number", "total") if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"gives both {given[0]} and {given[1]}: keep one")
        if self.share is not None and not 0 < self.share <= 1:
            raise ValueError(f"share {self.share} is not above 0 and at most 1; a method without rehearsal needs none")
        if self.number is not None and self.number < 1:
            raise ValueError(f"number {self.number} keeps nothing; a method without rehearsal needs no memory")
        if self.total is not None:
            self._check_total(self.total)
        if self.source == "self" and (self.sampler != "per_label" or self.minimum_per_label):
            raise ValueError("source self chooses among no examples: leave sampler and minimum_per_label out")
        if self.minimum_per_label and self.sampler not in ("per_label", "surprise", "mixed"):
            raise ValueError(f"minimum_per_label works with sampler per_label, surprise or mixed, not {self.sampler}")
        if self.allow_excess and self.sampler != "reference":
            raise ValueError(f"allow_excess works with sampler reference; {self.sampler} never exceeds its budget")
        if self.surprise_when != "before" and not self.reads_surprise:
            raise ValueError(f"surprise_when works with sampler surprise or mixed, not {self.sampler}")
        return self

    def _check_total(self, total: int) -> None:
        if total < 1:
            raise ValueError(f"total {total} keeps nothing; a method without rehearsal needs no memory")
        if self.sampler == "reference":
            raise ValueError("total works with all samplers but reference, whose memory is not bounded")
        if self.minimum_per_label:
            raise ValueError("gives both total and minimum_per_label, which could exceed it: keep one")

    @property
    def reads_surprise(self) -> bool:
        """Whether the sampler needs the loss of every training example."""
        return self.sampler in ("surprise", "mixed")
