"""Splits of one data set's classes into tasks."""

from __future__ import annotations

from pathlib import Path

import pytest

from merganser.errors import InputError
from merganser.streams.loading import load_stream
from merganser.streams.options import StreamOptions


def split(**values: object) -> StreamOptions:
    base = {"train": "train-images-idx3-ubyte.gz", "classes": ["zero", "one", "two"]}
    return StreamOptions.model_validate({"split": {**base, **values}})


def test_a_split_gives_each_task_some_classes(idx_files: Path) -> None:
    stream = load_stream(split(classes_per_task=2, test_share=0.25), idx_files)
    assert [task.name for task in stream.tasks] == ["classes-01", "classes-02"]
    assert [task.spec.labels for task in stream.tasks] == [("zero", "one"), ("two",)]
    first = stream.tasks[0]
    assert len(first.train) == 6
    assert len(first.test) == 2
    assert {example.output for example in first.test} == {"zero", "one"}
    names = [example.input for task in stream.tasks for part in (task.train, task.test) for example in part]
    assert len(set(names)) == 12


def test_the_order_of_classes_is_listed_read_or_drawn(idx_files: Path) -> None:
    def order(**values: object) -> list[str]:
        stream = load_stream(split(classes_per_task=1, **values), idx_files)
        return [label for task in stream.tasks for label in task.spec.labels or ()]

    assert order() == ["zero", "one", "two"]
    assert order(order=["two", "zero", "one"]) == ["two", "zero", "one"]
    (idx_files / "order.txt").write_text("one\ntwo\nzero\n")
    assert order(order="order.txt") == ["one", "two", "zero"]
    assert order(exclude=["one"]) == ["zero", "two"]
    drawn = [tuple(order(order_seed=seed)) for seed in range(6)]
    assert drawn == [tuple(order(order_seed=seed)) for seed in range(6)]
    assert len(set(drawn)) > 1
    for wrong, message in (
        ({"order": ["two", "zero"]}, "lacks 1 of the classes, first 'one'"),
        ({"order": ["two", "zero", "zero", "one"]}, "'zero' occurs twice"),
        ({"order": ["two", "zero", "ten"]}, "there is no class 'ten'"),
        ({"order": "absent.txt"}, "there is no such file"),
        ({"exclude": ["tow"]}, "there is no class 'tow'"),
        ({"exclude": ["zero", "one", "two"]}, "leaves no class"),
    ):
        with pytest.raises(InputError, match=message):
            order(**wrong)


def test_a_split_into_a_number_of_tasks(idx_files: Path) -> None:
    stream = load_stream(split(tasks=2, prefix="t"), idx_files)
    assert [(task.name, task.spec.labels) for task in stream.tasks] == [("t-01", ("zero", "one")), ("t-02", ("two",))]
    with pytest.raises(InputError, match="4 tasks for 3 classes"):
        load_stream(split(tasks=4), idx_files)
    with pytest.raises(InputError, match="neither 'tasks' nor"):
        load_stream(split(), idx_files)


def test_a_split_of_texts(tmp_path: Path) -> None:
    rows = "\n".join(f"text {i},{label}" for i in range(4) for label in "abcd")
    (tmp_path / "t.csv").write_text(f"input,output\n{rows}\n")
    values = {"train": "t.csv", "classes_per_task": 2, "labels": {label: f"letter {label}" for label in "abcd"}}
    stream = load_stream(StreamOptions.model_validate({"split": values, "limit": 6}), tmp_path)
    assert [task.spec.labels for task in stream.tasks] == [("a", "b"), ("c", "d")]
    assert stream.tasks[1].spec.text_of("c") == "letter c"
    assert [len(task.train) for task in stream.tasks] == [6, 6]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"split": {"classes_per_task": 2}}, "'split' needs 'train'"),
        ({"split": {"train": "x", "tasks": 2, "classes_per_task": 2}}, "gives both 'tasks' and 'classes_per_task'"),
        ({"split": {"train": "x", "order": ["a"], "order_seed": 1}}, "gives both 'order' and 'order_seed'"),
        ({"split": {"train": "x", "test": "y", "test_share": 0.1}}, "gives both 'test' and 'test_share'"),
        ({"split": {"train": "x", "dev_share": 0.6, "test_share": 0.4}}, "nothing to train on"),
        ({"split": {"train": "x", "prefix": "/"}}, "cannot name a folder"),
        ({"split": {"train": "x", "labels": None}}, "cannot be none"),
        ({"split": {"train": "x"}, "tasks": [{"name": "a", "train": "b"}]}, "gives both 'tasks' and 'split'"),
        ({"name": "cifar100-5", "overrides": {"a": {}}}, "do not apply to a split"),
        ({"name": "cifar100-6"}, "cifar100-5"),
    ],
)
def test_impossible_splits(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StreamOptions.model_validate(values)
