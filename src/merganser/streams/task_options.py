"""How a task's files are read and its answers scored, as types. Their descriptions are the published schema."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from merganser.errors import InputError, first_repeated
from merganser.files.temporary_names import PARTIAL
from merganser.options import StrictOptions
from merganser.streams.answers import AnswerMode
from merganser.streams.bad_rows import TASK_CHOICE, OnBadRows
from merganser.streams.dpo import DpoOptions
from merganser.streams.metric_source import MetricOption
from merganser.streams.prompts import prompt_fields

_NAME = re.compile(r"\w[\w.-]*")
NAME_BYTES = 100

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
Fraction = Annotated[float | None, Field(gt=0, lt=1)]
RowFormat = Literal[
    "auto", "fields", "messages", "sharegpt", "alpaca", "prompt_completion", "question_answer", "superni"
]
"""The forms of rows, see :mod:`merganser.streams.row_formats`."""
LabelSet = list[str] | dict[str, str] | Literal["auto", "train"] | None


def name_problem(name: str) -> str:
    """Return why ``name`` cannot name a task (and a folder of the run), or an empty string."""
    if not _NAME.fullmatch(name):
        return (
            f"task name {name!r} cannot name a folder: use letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit"
        )
    if name.casefold().endswith(PARTIAL):
        return f"task name '{name}' ends with '{PARTIAL}', as the names of unfinished folders in a run do"
    if len(name.encode()) > NAME_BYTES:
        return f"task name '{name[:20]}...' is longer than {NAME_BYTES} bytes"
    return ""


class Options(StrictOptions):
    """Base of the options: unknown keys are an error, values never change."""

    model_config = ConfigDict(frozen=True)


class MixOptions(Options):
    """Other data that a task is trained on beside its own."""

    file: str = Field(
        min_length=1,
        description="examples in any format that a task's text can have: a file, or hub:owner/name[:config][:split]",
    )
    share: float = Field(
        gt=0, lt=1, description="fraction of the training rows that are theirs; batches hold it to within one row"
    )
    format: RowFormat = Field(default="auto", description="form of the rows, as of a task")
    input: str | list[str] = Field(default="input", description="field or fields with the text, as of a task")
    output: str = Field(default="output", description="field with the answer")
    prompt: str = Field(default="{input}", description="text the model reads, as of a task")
    on_bad_rows: OnBadRows | None = Field(default=None, description="refuse (also null) or skip, as of a task")

    @model_validator(mode="after")
    def _check_reading(self) -> MixOptions:
        self.as_task()
        return self

    def as_task(self) -> TaskOptions:
        """Return how the file is read, as options of a task with free text; of preferences, the fields that are named.

        Raises:
            pydantic.ValidationError: they contradict each other.
        """
        reading = {name: getattr(self, name) for name in ("format", "input", "output", "prompt", "on_bad_rows")}
        return TaskOptions(name="mix", train=self.file, kind="answers", labels=None, **reading)


class TaskSettings(Options):
    """How a task's rows become examples: everything but the name and the files."""

    kind: Literal["answers", "preference"] | None = Field(
        default=None,
        description="answers: rows with a text and its correct answer; preference: rows with a prompt, a chosen and a "
        "rejected answer; null: preference if the rows have the fields 'chosen' and 'rejected' and no output",
    )
    chosen: str = Field(default="chosen", min_length=1, description="preference: field with the preferred answer")
    rejected: str = Field(
        default="rejected",
        min_length=1,
        description="preference: field with the other answer. The prompt is in the field 'input' or 'prompt'; without "
        "one it is the beginning that both answers share",
    )
    dpo: DpoOptions = Field(default_factory=DpoOptions, description="preference: how it is learned")
    format: RowFormat = Field(
        default="auto",
        description="form of the rows: fields (those named by input, output and prompt), messages (role and content), "
        "sharegpt (conversations with from and value), alpaca (instruction, input, output), prompt_completion, "
        "question_answer, superni; auto: fields where any is named, else what the first rows look like",
    )
    train_turns: Literal["all", "last"] = Field(
        default="all", description="conversations: the assistant's turns that have a loss, all or the last one"
    )
    input: str | list[str] = Field(
        default="input",
        description="field with the text, or a list of fields, which are joined by line breaks; "
        "not needed when the prompt names its fields itself",
    )
    image: str | None = Field(
        default=None,
        min_length=1,
        description="field with an image instead of a text: a path (relative to the file), or the image itself in "
        "Parquet files and hub data sets. Not needed for folders of images and IDX files",
    )
    classes: list[str] | None = Field(
        default=None, min_length=1, description="IDX files: names of the classes, in the order of their numbers"
    )
    output: str = Field(default="output", description="field with the answer; surrounding white space is removed")
    metric: MetricOption | None = Field(
        default=None,
        description="how answers are scored: accuracy, exact_match, rouge_l, f1, one that an installed package offers, "
        "or a function of your own (module:function); default: accuracy when there is a label set, else rouge_l "
        "(folders in AimMerging's layout: exact_match when there is a label set, as in the paper)",
    )
    labels: LabelSet = Field(
        default="auto",
        description="the closed set of answers: a list; or a mapping label -> text that an encoder reads instead; "
        "'train': all outputs of the training file; 'auto' (default): the same if each of them occurs at least "
        "twice and they are not sentences with few examples each, else free text; null or 'none': free text",
    )
    prompt: str = Field(
        default="{input}",
        description="text the model reads: {input} is the text of the 'input' field(s), {name} that of any other field "
        "of the row; {{ and }} are literal braces. Plain field names only",
    )
    answer: AnswerMode = Field(
        default="generate",
        description="text-to-text models: 'generate' the answer, or 'rank' the labels by likelihood (needs a label "
        "set). An encoder (matcher) always ranks",
    )
    limit: Count | None = Field(
        default=None,
        description="at most this many training examples, sampled at random (one of each label first), in file order; "
        "the sample depends on limit_seed alone, so that runs with different seeds use the same examples",
    )
    limit_dev: Count | None = Field(
        default=None, description="at most this many development examples, sampled at random"
    )
    limit_test: Count | None = Field(default=None, description="at most this many test examples, sampled at random")
    limit_seed: Seed | None = Field(default=None, description="seed of these samples; default 0")
    on_bad_rows: OnBadRows | None = Field(default=None, description=TASK_CHOICE)
    mix: MixOptions | None = Field(
        default=None,
        description="other data that training reads as well, such as general instructions: {file: general.jsonl, "
        "share: 0.05}. They are cycled through, and none is kept for rehearsal",
    )

    @field_validator("labels", mode="before")
    @classmethod
    def _read_labels(cls, value: Any) -> Any:
        if value == "none":
            return None
        if isinstance(value, Mapping):
            return {as_label(key): as_label(text) for key, text in value.items()}
        if isinstance(value, list | tuple):
            return [as_label(label) for label in value]
        if isinstance(value, str) and value not in ("auto", "train"):
            raise ValueError(f"labels {value!r} is not a list, a mapping, 'auto', 'train' or 'none'")
        return value

    @field_validator("labels")
    @classmethod
    def _check_labels(cls, value: LabelSet) -> LabelSet:
        if isinstance(value, list | dict):
            if len(value) < 2:
                raise ValueError("a label set needs at least two labels")
            if any(not label for label in value):
                raise ValueError("a label is empty")
        if isinstance(value, list) and (twice := first_repeated(value)) is not None:
            raise ValueError(f"label {twice!r} occurs twice")
        if isinstance(value, dict):
            seen: dict[str, str] = {}
            for label, text in value.items():
                if not text:
                    raise ValueError(f"the text of label {label!r} is empty")
                if text in seen:
                    raise ValueError(f"labels {seen[text]!r} and {label!r} have the same text {text!r}")
                seen[text] = label
        return value

    @field_validator("input")
    @classmethod
    def _check_input(cls, value: str | list[str]) -> str | list[str]:
        if not value:
            raise ValueError("names no field")
        return value

    def foreign_to_preferences(self) -> list[str]:
        """Return the settings that were given and have no meaning for a task of preferences."""
        defaults = {name: field.default for name, field in TaskSettings.model_fields.items()}
        names = ("format", "train_turns", "image", "classes", "output", "metric", "answer")
        foreign = [name for name in names if getattr(self, name) != defaults[name]]
        return [*foreign, "labels"] if self.labels not in ("auto", None) else foreign

    @model_validator(mode="after")
    def _check_prompt(self) -> TaskSettings:
        if self.kind == "preference" and (foreign := self.foreign_to_preferences()):
            raise ValueError(f"kind 'preference' has no '{foreign[0]}'")
        if self.image is not None and (self.prompt != "{input}" or self.input != "input"):
            raise ValueError("gives an 'image' and also an 'input' or a 'prompt': an image is read without a text")
        try:
            fields = prompt_fields(self.prompt)
        except InputError as error:
            raise ValueError(str(error)) from error
        if not fields:
            raise ValueError("the prompt has no {input} and no other field: all texts would be the same")
        inputs = [self.input] if isinstance(self.input, str) else self.input
        if self.output in fields or ("input" in fields and self.output in inputs):
            hint = "; for conversations leave 'input' and 'output' out, or use format: messages"
            raise ValueError(
                f"the prompt shows the answer (field {self.output!r}){hint if fields == ('input',) else ''}"
            )
        self._check_format()
        if self.answer == "rank" and self.labels is None:
            raise ValueError("answer 'rank' needs labels")
        if self.metric == "accuracy" and self.labels is None:
            raise ValueError("metric 'accuracy' needs labels; for free text use exact_match, f1 or rouge_l")
        return self

    @property
    def names_fields(self) -> bool:
        """Whether the options name any field of the rows, or the form of the text."""
        return (self.input, self.output, self.prompt) != ("input", "output", "{input}")

    def _check_format(self) -> None:
        if self.format in ("auto", "fields"):
            return
        if self.image is not None:
            raise ValueError(f"gives an 'image' and format '{self.format}', which has texts")
        whole = self.format in ("messages", "sharegpt")
        named = [name for name, usual in (("output", "output"), ("prompt", "{input}")) if getattr(self, name) != usual]
        if isinstance(self.input, list) or (self.input != "input" and not whole):
            named.insert(0, "input")
        if named:
            hint = "'input' may name the field of the conversation" if whole else "to name fields, use format: fields"
            raise ValueError(
                f"format '{self.format}' has its own fields, and '{named[0]}' is given: leave it out; {hint}"
            )


class TaskOptions(TaskSettings):
    """One task: its files and how they are read."""

    name: str = Field(description="name of the task, unique in the run; also the name of a folder")
    train: str = Field(
        description="training examples: a .json, .jsonl, .csv, .tsv or .parquet file (relative paths start from the "
        "configuration's folder), or hub:owner/name[:config][:split]; for images also a folder with a sub-folder per "
        "class, or an IDX file ...images-idx3-ubyte[.gz] with its labels beside it",
        min_length=1,
    )
    dev: str | None = Field(
        default=None, description="development examples, in the same formats; optional", min_length=1
    )
    test: str | None = Field(default=None, description="test examples, in the same formats; optional", min_length=1)

    @field_validator("name")
    @classmethod
    def _check_name(cls, value: str) -> str:
        if problem := name_problem(value):
            raise ValueError(problem)
        return value


class TaskOverrides(TaskSettings):
    """Settings of one task of a folder or built-in stream that differ from its defaults; omitted keys keep them."""


def as_label(value: Any) -> str:
    """Return a label as text; refuse a boolean, as which YAML reads a bare yes, no, on, off, true or false."""
    if isinstance(value, bool):
        raise ValueError(f"label {value} is a truth value, not a text: put the word in quotes")
    if isinstance(value, int | float):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"label {value!r} is not a text: put it in quotes")
    return value.strip()
