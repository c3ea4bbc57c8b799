"""``merganser verify``: what it prints, its exit code, and what it makes again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from merganser.runs import RunDirectory
from merganser.runs.checksums import sealed
from merganser.runs.lock import RunLock
from tests.learner.toys import Command, contents, flip_bit, read_json, without_checksums


def test_a_whole_run(run: Path, merganser: Command) -> None:
    assert merganser("report", run).code == 0
    before = contents(run)
    done = merganser("verify", run)
    assert (done.code, done.err) == (0, "")
    files = [name for name, content in before.items() if content is not None]
    assert done.out.startswith(f"{len(files)} files (")
    assert done.out.endswith(f"of {run} are as they were written.\n")
    assert contents(run) == before


def test_damage_is_named_with_its_remedy(run: Path, merganser: Command) -> None:
    assert merganser("report", run).code == 0
    flip_bit(run / "tasks" / "02-topic" / "test.jsonl")
    for name in ("model/adapter_model.safetensors", "ledger.jsonl", "scores.json"):
        flip_bit(run / name)
    done = merganser("verify", run)
    assert done.code == 1
    assert done.out.splitlines()[:4] == [
        "Made again: scores.json (it is not what the rows have).",
        "Made again: ledger.jsonl (it is not what the rows have).",
        "Made again: model/adapter_model.safetensors (its content has changed since it was written (SHA-256)).",
        "Damaged: tasks/02-topic/test.jsonl (its content has changed since it was written (SHA-256)). Restore it from "
        f"a copy of the run, or go back to '01-mood': merganser undo {run}.",
    ]
    assert done.error == f"Damaged in '{run}': 1 file. See the remedies above."
    assert merganser("undo", run).code == 0
    assert merganser("verify", run).code == 0


@pytest.mark.parametrize("how", ["changed", "cut off", "missing"])
def test_the_page_is_made_again(how: str, run: Path, merganser: Command) -> None:
    assert merganser("report", run).code == 0
    page = run / "report.html"
    whole = page.read_bytes()
    if how == "missing":
        page.unlink()
    elif how == "changed":
        flip_bit(page)
    else:
        page.write_bytes(whole[:-200])
    reported = merganser("verify", run, "--check")
    assert reported.code == (0 if how == "missing" else 1)
    done = merganser("verify", run)
    assert done.code == (0 if how == "missing" else 1)
    assert "report.html" in done.out
    assert page.read_bytes() == whole
    assert merganser("verify", run).code == 0


def test_only_checked(run: Path, merganser: Command) -> None:
    flip_bit(run / "scores.json")
    before = contents(run)
    with RunLock(run):  # no lock is needed to look
        done = merganser("verify", run, "--check")
        assert merganser("verify", run).error.startswith(f"The run '{run}' is in use by another process")
    assert done.code == 1
    assert f"Damaged: scores.json (it is not what the rows have). It can be made again: merganser verify {run}." in (
        done.out
    )
    assert contents(run) == before


def test_json(run: Path, merganser: Command) -> None:
    flip_bit(run / "tasks" / "00-start" / "row.json")
    done = merganser("verify", run, "--json")
    assert done.code == 1
    found = json.loads(done.out)
    assert [finding["file"] for finding in found["damaged"]] == ["tasks/00-start/row.json"]
    assert found["made_again"] == []
    assert found["files"] >= 15


def test_a_run_without_checksums(run: Path, merganser: Command) -> None:
    without_checksums(run)
    done = merganser("verify", run)
    assert done.code == 0
    assert done.out.count("has no checksums recorded") == 3
    assert merganser("learn", run, "--task", "truth", "--train", run.parent / "truth.json").code == 0
    assert merganser("verify", run).out.count("has no checksums recorded") == 3  # the new task has its own
    assert RunDirectory.open(run).rows[3].file.sha256


def test_damaged_weights_are_not_used(run: Path, merganser: Command) -> None:
    flip_bit(run / "tasks" / "02-topic" / "adapter" / "adapter_model.safetensors")
    quoted = f"`merganser verify {run}`"
    for command in (("ask", run, "a great film"), ("evaluate", run), ("export", run, run.parent / "out")):
        done = merganser(*command)
        assert done.code == 2
        assert "adapter_model.safetensors' is damaged: its content has changed since it was written" in done.error
        assert quoted in done.error
    assert not (run.parent / "out").exists()
    assert merganser("verify", run).code == 1  # from model/
    assert merganser("ask", run, "a great film").code == 0


# What is not of a run ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["checkpoint", "tasks", ".lock"])
def test_no_writer_follows_a_link_out_of_a_run(name: str, run: Path, tmp_path: Path, merganser: Command) -> None:
    elsewhere = tmp_path / "elsewhere"
    if name == "tasks":
        os.rename(run / name, elsewhere)
    elif name == "checkpoint":
        (elsewhere / "01-step-000001").mkdir(parents=True)
        (elsewhere / "thesis").write_text("mine")
    else:
        (run / name).unlink()
        elsewhere.write_text("mine")
    (run / name).symlink_to(elsewhere)
    before = contents(tmp_path)
    stream = run.parent / "stream.yaml"
    for command in (
        ("run", stream, "--out", run),
        ("run", stream, "--out", run, "--seed", "9"),
        ("learn", run, "--task", "truth", "--train", run.parent / "truth.json"),
        ("undo", run),
        ("verify", run),
    ):
        done = merganser(*command)
        assert done.code == 2, command
        assert f"'{run / name}' is a link" in done.error or "was started differently" in done.error
    assert contents(tmp_path) == before
    assert merganser("ask", run, "a great film").code == 0


def test_a_link_in_the_place_of_the_model_is_replaced(run: Path, tmp_path: Path, merganser: Command) -> None:
    whole = contents(run / "model")
    os.rename(run / "model", tmp_path / "elsewhere")
    (run / "model").symlink_to(tmp_path / "elsewhere")
    done = merganser("verify", run)
    assert (done.code, done.err) == (0, "")
    assert "model was made again: it was a link, and what it points to is left alone." in done.out
    assert contents(run / "model") == contents(tmp_path / "elsewhere") == whole
    assert not (run / "model").is_symlink()
    shutil.rmtree(run / "model")
    (run / "model").symlink_to(tmp_path / "elsewhere")
    done = merganser("learn", run, "--task", "truth", "--train", run.parent / "truth.json")
    assert done.code == 0, done.err
    assert "'model' was made again: it was a link" in done.err
    assert not (run / "model").is_symlink()
    assert contents(tmp_path / "elsewhere") == whole


def test_files_that_are_not_of_a_run_are_left_alone(run: Path, merganser: Command) -> None:
    foreign = (".DS_Store", "tasks/.DS_Store", "tasks/02-topic/.DS_Store", "tasks/notes.partial", "notes.partial")
    for name in (*foreign, "tasks/07-notes"):
        (run / name).write_text("mine")
    for command in (
        ("learn", run, "--task", "truth", "--train", run.parent / "truth.json"),
        ("undo", run),
    ):
        done = merganser(*command)
        assert done.code == 0, done.err
    assert all((run / name).read_text() == "mine" for name in foreign)
    assert not (run / "model" / ".DS_Store").exists()


def test_a_file_in_the_way_of_a_task_is_named(run: Path, merganser: Command) -> None:
    way = run / "tasks" / "03-truth.partial"
    way.write_text("mine")
    done = merganser("learn", run, "--task", "truth", "--train", run.parent / "truth.json")
    assert (done.code, done.error) == (2, f"'{way}' is not of this run, and in its way. Move it elsewhere.")
    assert way.read_text() == "mine"


@pytest.mark.parametrize(
    ("key", "problem"), [("base", "trained on 'other' (0000), the other rows on"), ("weights", "")]
)
def test_a_row_of_another_lineage(key: str, problem: str, run: Path, merganser: Command) -> None:
    file = run / "tasks" / "02-topic" / "row.json"
    content = read_json(file)
    content["lineage"][key] = {"name": "other", "sha256": "0000"} if key == "base" else "0000"
    file.write_bytes(sealed(content))
    done = merganser("verify", run, "--check")
    assert done.code == 1
    assert "Damaged: tasks/02-topic/row.json (it" in done.out
    assert (problem or "its lineage is that of other weights") in done.out


def test_an_export(run: Path, merganser: Command) -> None:
    out = run.parent / "out"
    assert merganser("export", run, out).code == 0
    (out / "README.md").write_text("edited")
    assert merganser("verify", out).code == 0
    flip_bit(out / "adapter_model.safetensors")
    (out / "labels.json").unlink()
    damaged = merganser("verify", out)
    assert damaged.code == 1
    assert "Damaged: adapter_model.safetensors (its content has changed" in damaged.out
    assert "Damaged: labels.json (it is missing)" in damaged.out
