"""What the options refuse and what they default to."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from merganser.streams.options import MemoryOptions, StreamOptions
from merganser.streams.task_options import TaskOptions

TASK = {"name": "t", "train": "t.json"}


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ({"trian": "x"}, "Extra inputs are not permitted"),
        ({"name": "../up"}, "cannot name a folder"),
        ({"name": ".."}, "cannot name a folder"),
        ({"name": "a/b"}, "cannot name a folder"),
        ({"name": "a.partial"}, "ends with '.partial', as the names of unfinished folders in a run do"),
        ({"name": "a.old.Partial"}, "ends with '.partial'"),
        ({"name": "x" * 101}, "longer than 100 bytes"),
        ({"labels": "all"}, "is not a list"),
        ({"labels": ["only"]}, "at least two"),
        ({"labels": ["a", "b", "a"]}, "label 'a' occurs twice"),
        ({"labels": ["a", " "]}, "a label is empty"),
        ({"labels": [True, False]}, "label True is a truth value, not a text: put the word in quotes"),
        ({"labels": [None, "a"]}, "is not a text"),
        ({"labels": {"a": "same", "b": "same"}}, "labels 'a' and 'b' have the same text 'same'"),
        ({"labels": {"a": "", "b": "x"}}, "the text of label 'a' is empty"),
        ({"labels": None, "answer": "rank"}, "answer 'rank' needs labels"),
        ({"labels": None, "metric": "accuracy"}, "metric 'accuracy' needs labels"),
        ({"prompt": "no field"}, "all texts would be the same"),
        ({"prompt": "{input.x}"}, "not a plain field name"),
        ({"prompt": "{input} {output}"}, "shows the answer"),
        ({"input": ["text", "output"]}, "shows the answer"),
        ({"input": []}, "names no field"),
        ({"limit": 0}, "greater than or equal to 1"),
        ({"limit": True}, "true is not allowed here"),
        ({"metric": "bleu"}, "there is no metric 'bleu'"),
        ({"limit_seed": -1}, "greater than or equal to 0"),
        ({"train": ""}, "at least 1 character"),
    ],
)
def test_task_options_refuse(values: dict[str, Any], cause: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TaskOptions.model_validate({**TASK, **values})
    assert cause in str(caught.value)


def test_labels_as_yaml_gives_them() -> None:
    assert TaskOptions.model_validate({**TASK, "labels": [0, 1]}).labels == ["0", "1"]
    assert TaskOptions.model_validate({**TASK, "labels": {0: "bad", 1: "good"}}).labels == {"0": "bad", "1": "good"}
    assert TaskOptions.model_validate({**TASK, "labels": "none"}).labels is None
    assert TaskOptions.model_validate(TASK).labels == "auto"


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ({}, "names no tasks"),
        ({"folder": "d"}, "names no tasks"),
        ({"order": ["a"]}, "'order' needs 'folder'"),
        ({"name": "superni-1"}, "'name: superni-1' needs 'folder'"),
        ({"name": "superni-3", "folder": "d"}, "'superni-3' is not a built-in stream. Did you mean 'superni-2'?"),
        ({"name": "xyz"}, "Known: standard-cl-1"),
        ({"name": "superni-1", "folder": "d", "order": ["a"]}, "gives both 'order' and 'name: superni-1'"),
        ({"tasks": [TASK], "order": ["a"], "folder": "d"}, "gives both 'tasks' and 'order'"),
        ({"tasks": [TASK], "folder": "d"}, "'folder' has no effect with 'tasks'; give 'order'"),
        ({"name": "demo", "folder": "d"}, "'folder' has no effect"),
        ({"name": "demo", "overrides": {"reuters-r8": {"limit": 3}}}, "does not apply to the demo"),
        ({"tasks": [TASK, TASK]}, "task 't' occurs twice"),
        ({"folder": "d", "order": ["a", "b", "a"]}, "task 'a' occurs twice"),
        ({"folder": "d", "order": ["../a"]}, "cannot name a folder"),
        ({"folder": "d", "order": []}, "at least 1 item"),
        ({"tasks": [TASK], "overrides": {"tt": {}}}, "'tt' is not a task of the stream"),
        ({"tasks": [TASK], "overrides": {"t": {"train": "x"}}}, "Extra inputs"),
    ],
)
def test_stream_options_refuse(values: dict[str, Any], cause: str) -> None:
    with pytest.raises(ValidationError) as caught:
        StreamOptions.model_validate(values)
    assert cause in str(caught.value)


def test_stream_sources() -> None:
    assert StreamOptions.model_validate({"name": "standard-cl-1", "folder": "d"}).task_names() == [
        "dbpedia",
        "amazon",
        "yahoo",
        "agnews",
    ]
    assert StreamOptions.model_validate({"name": "my title", "tasks": [TASK]}).task_names() == ["t"]
    assert StreamOptions(name="demo").task_names() is None


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ({"share": 0}, "share 0.0 is not above 0"),
        ({"share": 1.5}, "share 1.5 is not above 0 and at most 1"),
        ({"share": float("nan")}, "share nan is not above 0"),
        ({"share": True}, "true is not allowed here"),
        ({"number": 0}, "number 0 keeps nothing"),
        ({"number": -3}, "number -3 keeps nothing"),
        ({"share": 0.1, "number": 3}, "both share and number"),
        (
            {"sampler": "uniform", "minimum_per_label": 1},
            "surprise or mixed, not uniform",
        ),
        ({"sampler": "uniform", "allow_excess": True}, "works with sampler reference"),
        ({"sampler": "random"}, "'per_label', 'uniform', 'surprise', 'mixed' or 'reference'"),
    ],
)
def test_memory_options_refuse(values: dict[str, Any], cause: str) -> None:
    with pytest.raises(ValidationError) as caught:
        MemoryOptions.model_validate(values)
    assert cause in str(caught.value)


def test_memory_defaults_survive_a_round_trip() -> None:
    assert MemoryOptions().share == 0.02
    assert MemoryOptions(number=5).share is None
    for options in (MemoryOptions(), MemoryOptions(number=5)):
        assert MemoryOptions.model_validate(options.model_dump()) == options


def test_options_and_command_load_nothing_heavy() -> None:
    code = (
        "import sys, merganser.streams.options, merganser.streams.loading, merganser.cli.streams; "
        "print(sorted({'torch', 'transformers', 'datasets', 'pyarrow', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
