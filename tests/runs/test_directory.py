"""The run directory: rows that count or do not, files made from them, repair, damage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from merganser.errors import InputError
from merganser.metrics import Score, ScoreRow
from merganser.runs import RunDirectory, read_run
from merganser.runs.reading import read_lines
from merganser.runs.record import KeptExample, MergeRecord, RowFile, RunInfo, TaskRecord
from merganser.runs.versions import versions
from merganser.streams.answers import AnswerSpec
from tests.learner.toys import contents

INFO = RunInfo(created="2026-01-01T00:00:00+00:00", command="test", seed=3, config={"seed": 3}, versions={"x": "1"})


def score(value: float) -> Score:
    return Score(value=value, n=10, stderr=0.1)


def merge(task: str, step: int) -> MergeRecord:
    return MergeRecord(
        task=task,
        task_index=1,
        merge=1,
        step=step,
        cause="due",
        interval=8,
        next_interval=8,
        learning_signal=0.5,
        rehearsal_steps=8,
        weight_new=0.5,
        weight_old=0.5,
        norm_new=1.0,
        norm_old=1.0,
    )


def write_row(directory: RunDirectory, number: int, task: str | None, scores: dict[str, float]) -> Path:
    """A row's folder, not yet committed."""
    folder = directory.path_of_new_row(number, [task or "start"])
    directory.begin_row(folder)
    (folder / "adapter").mkdir()
    (folder / "adapter" / "weights").write_text(f"weights {number}")
    tasks = []
    if task is not None:
        tasks = [
            TaskRecord(
                name=task,
                index=number,
                row=number,
                seed=1,
                fingerprint="f",
                train_examples=10,
                spec=AnswerSpec(("a", "b"), mode="rank", metric="accuracy"),
                finished="2026-01-01T00:00:00+00:00",
            )
        ]
        kept = KeptExample(task=task, input="text", output="label").model_dump_json() + "\n"
        for name in ("memory", "test"):
            (folder / f"{name}.jsonl").write_text(kept)
        (folder / "merges.jsonl").write_text(merge(task, number).model_dump_json() + "\n")
        (folder / "signals.jsonl").write_text("")
    row = RowFile(
        row=number,
        tasks=tasks,
        scores=ScoreRow(learned=[task] if task else [], scores={name: score(v) for name, v in scores.items()}),
        metrics=dict.fromkeys(scores, "accuracy"),
    )
    (folder / "row.json").write_text(row.model_dump_json())
    return folder


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    """A run of rows 0, a, b."""
    found = RunDirectory.create(tmp_path / "run", INFO)
    found.commit_row(write_row(found, 0, None, {"a": 0.5, "b": 0.5}))
    found.commit_row(write_row(found, 1, "a", {"a": 0.9, "b": 0.4}))
    found.commit_row(write_row(found, 2, "b", {"a": 0.7, "b": 0.8}))
    found.lock.release()
    return found


def test_what_is_read_is_what_was_written(directory: RunDirectory) -> None:
    again = RunDirectory.open(directory.path)
    assert again.info == INFO
    assert [row.folder.name for row in again.rows] == ["00-start", "01-a", "02-b"]
    assert list(again.matrix().tasks) == ["a", "b"]
    summary = {metric.name: metric.value for metric in again.scores().summary}
    assert summary["OP"] == pytest.approx(0.75)
    assert summary["BWT"] == pytest.approx(0.7 - 0.9)
    assert summary["FWT (GEM)"] == pytest.approx(0.4 - 0.5)
    assert [merge.task for merge in again.record().merges] == ["a", "b"]
    assert (directory.path / "model" / "weights").read_text() == "weights 2"
    assert (directory.path / "model" / "ROW").read_text() == "02-b\n"
    record = read_run(directory.path)
    assert [task.name for task in record.tasks] == ["a", "b"]
    assert json.loads((directory.path / "scores.json").read_text()) == json.loads(record.scores.model_dump_json())
    assert again.rows[0].examples("memory") == []
    assert [kept.task for kept in again.rows[2].examples("memory")] == ["b"]


def test_a_row_that_was_not_committed_does_not_count(directory: RunDirectory) -> None:
    before = contents(directory.path)
    folder = write_row(directory, 3, "c", {"a": 0.1})
    assert [row.folder.name for row in directory.rows] == ["00-start", "01-a", "02-b"]
    assert directory.repair() == ["'c' had been interrupted; it starts again from the task before it."]
    assert not folder.exists()
    assert contents(directory.path) == before
    directory.abandon_row(write_row(directory, 3, "c", {"a": 0.1}))
    assert contents(directory.path) == before


@pytest.mark.parametrize("lost", ["model", "scores.json", "ledger.jsonl", "model/ROW", "old scores", "old model"])
def test_repair_makes_the_files_beside_the_rows_again(lost: str, directory: RunDirectory) -> None:
    before = contents(directory.path)
    path = directory.path / lost
    if lost == "old scores":
        (directory.path / "scores.json").write_text((directory.path / "scores.json").read_text().replace("0.7", "0.6"))
    elif lost == "old model":
        (directory.path / "model" / "ROW").write_text("01-a\n")
        (directory.path / "model" / "weights").write_text("weights 1")
    elif path.is_dir():
        path.rename(directory.path / "model.old.partial")  # as a crash between two renames leaves it
    else:
        path.unlink()
    alone = {
        "scores.json": "it is missing",
        "ledger.jsonl": "it is missing",
        "old scores": "it is not what the rows have",
    }
    if lost in alone:
        name = "scores.json" if lost == "old scores" else lost
        assert directory.repair() == [f"'{name}' was made again: {alone[lost]}."]
    else:
        assert directory.repair() == ["Scores, ledger and model were brought up to date with the tasks learned."]
    assert contents(directory.path) == before
    assert directory.repair() == []


def test_a_commit_that_fails_changes_nothing(directory: RunDirectory) -> None:
    before = contents(directory.path)
    folder = write_row(directory, 3, "c", {"a": 0.1})
    (folder / "merges.jsonl").write_text("nonsense\n")
    with pytest.raises(InputError, match="damaged"):
        directory.commit_row(folder)
    directory.abandon_row(folder)
    assert contents(directory.path) == before


def test_references_reach_the_summary(directory: RunDirectory) -> None:
    assert directory.references() == {}
    directory.write_references({"a": score(0.8), "b": score(0.9)})
    assert directory.references()["b"].value == 0.9
    summary = {metric.name: metric.value for metric in directory.scores().summary}
    assert summary["FWT (single-task)"] == pytest.approx(((0.9 - 0.8) + (0.8 - 0.9)) / 2)
    (directory.path / "references.json").write_text('{"a": {"value": 1}}')
    with pytest.raises(InputError, match=r"references\.json' is damaged"):
        RunDirectory.open(directory.path).references()


def test_a_later_column_is_filled_in_earlier_rows(directory: RunDirectory) -> None:
    folder = write_row(directory, 3, "c", {"a": 0.6, "b": 0.7, "c": 0.9})
    row = RowFile.model_validate_json((folder / "row.json").read_text())
    row.earlier = {0: {"c": score(0.3)}, 2: {"c": score(0.45)}}
    (folder / "row.json").write_text(row.model_dump_json())
    directory.commit_row(folder)
    rows = directory.scores().rows
    assert [each.scores["c"].value if "c" in each.scores else None for each in rows] == [0.3, None, 0.45, 0.9]


def test_new_folders_only(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    directory = RunDirectory.create(tmp_path / "empty", INFO)
    assert directory.lock.held
    assert RunDirectory.exists(tmp_path / "empty")
    directory.discard_if_empty()
    assert not (tmp_path / "empty").exists()
    # What a crash leaves of a beginning is no hindrance.
    (tmp_path / "begun" / "tasks").mkdir(parents=True)
    (tmp_path / "begun" / ".lock").write_text("1\n")
    (tmp_path / "begun" / "run.yaml.partial").write_text("for")
    (tmp_path / "begun" / ".DS_Store").write_text("of a file manager")
    RunDirectory.create(tmp_path / "begun", INFO).lock.release()
    assert RunDirectory.open(tmp_path / "begun").info == INFO
    assert not (tmp_path / "begun" / "run.yaml.partial").exists()
    assert (tmp_path / "begun" / ".DS_Store").exists()
    with pytest.raises(InputError, match="Nothing was measured yet"):
        read_run(tmp_path / "begun")


def test_a_run_is_discarded_without_what_is_not_of_it(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "real")  # the folder of a run may be a link
    directory = RunDirectory.create(tmp_path / "run", INFO)
    directory.commit_row(write_row(directory, 0, None, {"a": 0.5}))
    (directory.path / "scores.json.partial").write_text("for")
    assert directory.foreign_files() == []
    for name in ("thesis", "tasks/thesis", "tasks/.DS_Store"):
        (directory.path / name).write_text("mine")
    assert directory.foreign_files() == ["thesis"]
    directory.discard()
    assert set(contents(tmp_path / "real")) == {"tasks", "tasks/.DS_Store", "tasks/thesis", "thesis"}


def test_a_run_with_a_row_is_not_discarded(directory: RunDirectory) -> None:
    before = contents(directory.path)
    with directory.lock:
        directory.discard_if_empty()
    assert contents(directory.path) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "no mapping in it"),
        ("format: 2\n", "created: Field required"),
        ("format: 1\nunknown: 1\n", "written by an older version"),
        ("a: b: c", "not YAML"),
        ("format: 7\nunknown: 1\n", "written by a newer version"),
    ],
)
def test_a_run_file_that_cannot_be_read(content: str, message: str, directory: RunDirectory) -> None:
    (directory.path / "run.yaml").write_text(content)
    with pytest.raises(InputError, match=message):
        RunDirectory.open(directory.path)


def test_rows_missing_twice_or_foreign(directory: RunDirectory) -> None:
    tasks = directory.path / "tasks"
    (tasks / "notes.txt").write_text("not a row")
    assert len(RunDirectory.open(directory.path).rows) == 3
    shutil.copytree(tasks / "01-a", tasks / "01-copy")
    with pytest.raises(InputError, match="two rows with the same number: 01-a and 01-copy"):
        RunDirectory.open(directory.path).rows  # noqa: B018
    shutil.rmtree(tasks / "01-copy")
    shutil.rmtree(tasks / "01-a")
    with pytest.raises(InputError, match=r"are numbered \[0, 2\]; one is missing"):
        read_run(directory.path)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(st.lists(st.tuples(texts, texts), max_size=5))
def test_any_text_survives_a_json_lines_file(
    tmp_path_factory: pytest.TempPathFactory, values: list[tuple[str, str]]
) -> None:
    from merganser.files.atomic import write_json_lines

    path = tmp_path_factory.mktemp("lines") / "memory.jsonl"
    kept = [KeptExample(task="t", input=a, output=b) for a, b in values]
    write_json_lines(path, [example.model_dump() for example in kept])
    assert read_lines(path, KeptExample) == kept


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    found = versions()
    assert {"python", "torch", "transformers", "peft", "merganser", "system", "processor", "cores"} <= set(found)
    assert found["torch"] != "not installed"
    assert yaml.safe_load(yaml.safe_dump(found)) == found
    assert "gpu" not in versions(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    assert versions(torch.device("cuda")) == {**found, "gpu": "Some GPU"}
