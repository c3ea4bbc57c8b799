"""Rows that cannot be used: all kinds are named at once, or skipped and counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from merganser import processes
from merganser.errors import InputError
from merganser.streams.bad_rows import BadRows, BadRowsError, Problem, settle
from merganser.streams.loading import load_stream, load_task
from merganser.streams.options import StreamOptions
from merganser.streams.task import Task
from merganser.streams.task_options import TaskOptions

GOOD = [{"input": f"text {i}", "output": "ab"[i % 2]} for i in range(4)]
ODD: list[Any] = [
    {"input": "x", "output": " "},
    {"input": "x"},
    {"input": ["x"], "output": "a"},
    {"input": "half \ud83d", "output": "a"},
    {"input": "x", "output": ""},
    7,
    {"input": "x", "output": "a", "id": "\udc80"},
]


def load(folder: Path, **more: Any) -> Task:
    return load_task(TaskOptions.model_validate({"name": "t", "train": "train.json", **more}), folder)


def put(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")


def test_all_kinds_are_named_at_once_with_counts_and_first_places(tmp_path: Path) -> None:
    put(tmp_path / "train.json", [*GOOD, *ODD])
    put(tmp_path / "test.json", [*GOOD[:1], {"input": "y", "output": "c"}, {"input": "z", "output": "d"}])
    with pytest.raises(InputError) as caught:
        load(tmp_path, test="test.json", labels=["a", "b"])
    cause = (
        "train.json: 7 of 11 rows cannot be used: 2 × field 'output' is empty (first: row 5); "
        "1 × there is no field 'output' (first: row 6, the fields are 'input'); "
        "1 × field 'input' is a list, not a text (first: row 7); "
        "1 × field 'input' is no valid Unicode (first: row 8, it holds half a character (\\ud83d)); "
        "1 × is a int (first: row 10); "
        "1 × field 'id' is no valid Unicode (first: row 11, it holds the byte 0x80, which is not UTF-8). "
        "test.json: 2 of 3 rows cannot be used: 2 × the answer is not one of the labels (a, b) (first: row 2, 'c')."
    )
    assert caught.value.cause == cause
    assert caught.value.remedy.endswith("set on_bad_rows: skip (merganser learn: --on-bad-rows skip).")


def test_skipped_rows_are_counted_by_kind(tmp_path: Path) -> None:
    put(tmp_path / "train.json", [*ODD, *GOOD])
    put(tmp_path / "test.json", [*GOOD[:1], {"input": "y", "output": "c"}])
    task = load(tmp_path, test="test.json", on_bad_rows="skip")
    assert [example.input for example in task.train] == [row["input"] for row in GOOD]
    assert (task.labels, len(task.test)) == (("a", "b"), 1)
    assert task.remarks[0].startswith(
        "train.json: 7 of 11 rows skipped: 2 × field 'output' is empty (first: row 1); 1 ×"
    )
    assert task.remarks[1:] == (
        "test.json: 1 of 2 rows skipped: 1 × the answer is not one of the labels (a, b) (first: row 2, 'c')",
    )


def test_what_is_said_can_be_printed(tmp_path: Path) -> None:
    good = b'{"input": "x", "output": "a"}\n'
    (tmp_path / "train.jsonl").write_bytes(good * 2 + b'{"input": "x", "\\ud83d": 1, "\\ud83d": 2}\n')
    task = load(tmp_path, train="train.jsonl", on_bad_rows="skip")
    assert "the key '\\ud83d' stands twice" in task.remarks[0]
    task.remarks[0].encode()


def test_nothing_may_be_left_to_skip(tmp_path: Path) -> None:
    put(tmp_path / "train.json", GOOD)
    put(tmp_path / "test.json", [{"input": "x", "output": "c"}] * 3)
    with pytest.raises(InputError, match=r"test\.json: 3 of 3 rows cannot be used: 3 × the answer is not") as caught:
        load(tmp_path, test="test.json", on_bad_rows="skip")
    assert "on_bad_rows" not in caught.value.remedy
    put(tmp_path / "train.json", ODD)
    with pytest.raises(InputError, match="7 of 7 rows cannot be used"):
        load(tmp_path, on_bad_rows="skip")


@pytest.mark.parametrize(
    ("name", "content", "bad"),
    [
        ("t.jsonl", '{"input": "a", "output": "x"}\n{"input": \n[1]\n{"input": "b", "output": "x"}', "2 of 4 lines"),
        ("t.csv", 'input,output\na,x\nb\n"c" d,x\nb,x\n', "2 of 4 lines"),
        ("t.csv", "input;output\na;x\nb;\nb;x\n", "1 of 3 lines"),
    ],
)
def test_lines_that_cannot_be_read_are_bad_rows(tmp_path: Path, name: str, content: str, bad: str) -> None:
    (tmp_path / name).write_text(content)
    task = load(tmp_path, train=name, on_bad_rows="skip")
    assert [example.input for example in task.train] == ["a", "b"]
    assert f"{name}: {bad} skipped" in task.remarks[0]


def test_a_field_missing_on_one_row_is_that_row_s(tmp_path: Path) -> None:
    put(tmp_path / "train.json", [{"input": "x", "outptu": "a"}, *GOOD])
    with pytest.raises(
        InputError, match=r"row 1: there is no field 'output': the fields are 'input', 'outptu'\. Did you"
    ):
        load(tmp_path)
    assert len(load(tmp_path, on_bad_rows="skip").train) == 4
    put(tmp_path / "train.json", [{"input": "x"}, {"input": "y", "outptu": "a"}])
    with pytest.raises(
        InputError, match=r"no field 'output'; the fields are 'input', 'outptu'\. Did you mean 'outptu'"
    ):
        load(tmp_path, on_bad_rows="skip")


def test_all_tasks_of_a_stream_are_named_and_each_may_decide(tmp_path: Path) -> None:
    for name in ("one", "two"):
        put(tmp_path / f"{name}.json", [*GOOD, {"input": name, "output": ""}])

    def tasks(stream: str | None = None, **first: str) -> tuple[Task, ...]:
        listed = [{"name": "one", "train": "one.json", **first}, {"name": "two", "train": "two.json"}]
        return load_stream(StreamOptions.model_validate({"tasks": listed, "on_bad_rows": stream}), tmp_path).tasks

    with pytest.raises(InputError, match=r"one\.json, row 5: field 'output' is empty\. two\.json, row 5"):
        tasks()
    with pytest.raises(InputError, match=r"^two\.json, row 5") as caught:
        tasks(on_bad_rows="skip")
    assert "one.json" not in str(caught.value)
    assert [len(task.remarks) for task in tasks("skip")] == [1, 1]
    with pytest.raises(InputError, match=r"^one\.json, row 5"):
        tasks("skip", on_bad_rows="refuse")


def test_a_split_refuses_classes_that_training_lacks(tmp_path: Path) -> None:
    put(tmp_path / "train.json", [*GOOD, {"input": "", "output": "a"}])
    put(tmp_path / "test.json", [*GOOD, {"input": "x", "output": "c"}])
    split = {"train": "train.json", "test": "test.json", "tasks": 2}
    with pytest.raises(InputError, match=r"train\.json, row 5: field 'input' is empty\. test\.json, row 5: the answer"):
        load_stream(StreamOptions.model_validate({"split": split}), tmp_path)
    stream = load_stream(StreamOptions.model_validate({"split": split, "on_bad_rows": "skip"}), tmp_path)
    assert [len(task.remarks) for task in stream.tasks] == [2, 0], "of the whole data set: said once"


def test_images_that_cannot_be_read_are_bad_rows(folder: Path) -> None:
    (folder / "pets" / "cat" / "1.png").write_text("no image")
    with pytest.raises(InputError, match=r"pets/, image 2: there is no image that can be read: pets/cat/1\.png is not"):
        load(folder, train="pets")
    task = load(folder, train="pets", on_bad_rows="skip")
    assert [example.input for example in task.train][:2] == ["pets/cat/0.png", "pets/cat/2.png"]
    Image.new("L", (2, 2)).save(folder / "a.png")
    (folder / "t.csv").write_text("file,kind\na.png,x\nb.png,x\na.png,x\n")
    task = load(folder, train="t.csv", image="file", output="kind", on_bad_rows="skip")
    assert (len(task.train), task.remarks[0].split(" (first")[0]) == (
        2,
        "t.csv: 1 of 3 lines skipped: 1 × there is no image that can be read",
    )


def test_other_processes_raise_it_as_invalid_input(tmp_path: Path) -> None:
    put(tmp_path / "train.json", [*GOOD, *ODD])
    with pytest.raises(InputError) as caught:
        load(tmp_path)
    elsewhere = processes._rebuild(processes._describe(caught.value))
    assert (type(elsewhere), str(elsewhere)) == (InputError, str(caught.value))


def test_the_first_row_of_a_kind_is_that_of_the_lowest_place() -> None:
    bad = BadRows("f", "row", good=10)
    for place, example in ((9, "nine"), (4, "four"), (7, "seven")):
        bad.add(place, Problem("odd", "Mend it.", example))
    assert bad.kinds() == "3 × odd (first: row 4, four)"
    with pytest.raises(BadRowsError, match="f: 3 of 13 rows cannot be used: 3 × odd"):
        settle([bad], None, {"empty"})
    assert settle([bad, BadRows("g", "row", good=1)], "skip") == (
        "f: 3 of 13 rows skipped: 3 × odd (first: row 4, four)",
    )
