"""Test texts that are also training texts."""

from __future__ import annotations

from pathlib import Path

from merganser.streams.loading import load_task
from merganser.streams.overlap import overlap_remarks
from merganser.streams.task import Example, Task
from merganser.streams.task_options import TaskOptions

TRAIN = [Example(f"text {i}", "x") for i in range(10)]


def beginnings(task: Task) -> list[str]:
    return [remark.partition(":")[0] for remark in overlap_remarks(task)]


def test_shared_texts_are_counted() -> None:
    new = [Example("new", "x"), Example("newer", "x")]
    assert beginnings(Task("t", TRAIN, dev=new, test=new)) == []
    assert beginnings(Task("t", TRAIN, test=[*TRAIN[:3], *new])) == ["3 of 5 test texts are also training texts"]
    assert beginnings(Task("t", TRAIN, test=[Example("text 1", "y"), *new])) == [
        "1 of 3 test texts are also training texts"
    ], "another answer to the same text counts too"
    assert beginnings(Task("t", TRAIN, dev=TRAIN[4:6], test=new)) == ["all 2 dev texts are also training texts"]


def test_one_file_as_both(tmp_path: Path) -> None:
    rows = "\n".join(f"text {i},x" for i in range(9))
    for name in ("a.csv", "copy.csv"):
        (tmp_path / name).write_text(f"input,output\n{rows}\n")
    values = {"name": "t", "train": "a.csv", "test": "a.csv", "dev": "copy.csv", "limit": 3, "limit_test": 1}
    task = load_task(TaskOptions.model_validate(values), tmp_path)
    assert beginnings(task) == ["train and dev are the same file", "train and test are the same file"]
