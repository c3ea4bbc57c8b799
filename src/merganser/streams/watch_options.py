"""``stream.watch``: tasks that are scored after every row and never learned, as types."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from merganser.streams.task_options import Count, OnBadRows, Options, Seed, TaskOptions, TaskSettings, name_problem

Group = Literal["general", "instruction", "safety"]

OF_TRAINING = ("limit", "limit_dev", "mix", "train_turns")
"""Settings of a task that mean nothing without training examples."""

OF_HARNESS = frozenset({"name", "group", "lm_eval", "limit_test"})
"""Settings of a watched task of lm-evaluation-harness, which reads its examples itself."""


class HarnessOptions(Options):
    """A task of lm-evaluation-harness: its name there, and how it is asked."""

    task: str = Field(min_length=1, description="name of a task or of a group of tasks, such as arc_easy")
    folder: str | None = Field(
        default=None,
        min_length=1,
        description="folder with definitions of your own (YAML files; relative paths start from the configuration's "
        "folder); null: the tasks that come with the package",
    )
    metric: str | None = Field(
        default=None, description="one of the task's metrics, a number in [0, 1] per example; null: its first one"
    )
    num_fewshot: int | None = Field(
        default=None, ge=0, description="examples shown before each question; null: the task's own number"
    )
    chat_template: bool = Field(default=False, description="put the questions through the model's chat template")
    limit: int | None = Field(
        default=None, ge=1, description="at most this many examples, the first ones (of each task of a group)"
    )


class WatchOptions(TaskSettings):
    """A task that is scored after every row and never learned. Its file is read as the test file of a task."""

    name: str | None = Field(
        default=None, description="name of the task; may be omitted where lm_eval gives one", validate_default=True
    )
    test: str | None = Field(default=None, min_length=1, description="test examples, in the formats of a task's")
    lm_eval: HarnessOptions | None = Field(
        default=None,
        description="instead of test: a task of lm-evaluation-harness, by name or as a section (needs the extra "
        "lm-eval); for models that write text",
    )
    group: Group | None = Field(
        default=None, description="what it stands for; the groups have a mean change each (general: general ability)"
    )

    @field_validator("lm_eval", mode="before")
    @classmethod
    def _task_by_name(cls, value: Any) -> Any:
        return {"task": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_watch(self) -> WatchOptions:
        if problem := name_problem(self.title) if self.title else "has no 'name'":
            raise ValueError(problem)
        if (self.test is None) == (self.lm_eval is None):
            raise ValueError("needs either 'test', a file, or 'lm_eval', a task of lm-evaluation-harness")
        # Compared with the defaults: the record of a run names every key.
        fields = type(self).model_fields
        defaults = {name: field.get_default(call_default_factory=True) for name, field in fields.items()}
        given = {name for name, default in defaults.items() if getattr(self, name) != default}
        foreign = [name for name in OF_TRAINING if name in given]
        if foreign:
            hint = ": use limit_test" if foreign[0] == "limit" else ", which is of training"
            raise ValueError(f"is never learned, and '{foreign[0]}' was given{hint}")
        if self.lm_eval is not None and (more := sorted(given - OF_HARNESS)):
            raise ValueError(f"of lm-evaluation-harness has its own examples, and '{more[0]}' was given: leave it out")
        return self

    @property
    def title(self) -> str:
        """Return the name, of a task of lm-evaluation-harness perhaps its name there."""
        return self.name or (self.lm_eval.task if self.lm_eval is not None else "")

    def as_task(
        self, test: str, limit_test: Count | None, limit_seed: Seed | None, on_bad_rows: OnBadRows | None
    ) -> TaskOptions:
        """Return the options that read its file as a task's training file: labels and checks are the same.

        Args:
            test: the file.
            limit_test, limit_seed, on_bad_rows: of the stream, where this task has none.
        """
        defaults = {"limit_test": limit_test, "limit_seed": limit_seed, "on_bad_rows": on_bad_rows}
        given = {name: getattr(self, name) for name in self.model_fields_set & set(TaskSettings.model_fields)}
        values = defaults | {name: value for name, value in given.items() if value is not None or name not in defaults}
        values["limit"] = values.pop("limit_test")
        return TaskOptions(name=self.title, train=test, **values)
