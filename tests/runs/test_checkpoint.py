"""Checkpoints on disk: complete or not there, the last two, and what becomes of those that cannot be used."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from merganser.errors import DiskFullError
from merganser.files import atomic
from merganser.runs import checkpoint
from merganser.runs.checkpoint import CheckpointFolder, list_checkpoints, sweep

IDENTITY = {"tasks": ["mood"], "fingerprints": ["f"], "before": [], "config": "c"}


def folder(run: Path, row: int = 1, **changes: Any) -> CheckpointFolder:
    return CheckpointFolder(run, row, {**IDENTITY, **changes})


def write(run: Path, *steps: int) -> list[Path]:
    """Checkpoints at these steps; returns those that remain, oldest first."""
    place = folder(run)
    for step in steps:
        with place.unfinished(step):
            place.begin(step)
            place.add(step, {"own": step}, {"w": torch.full((3,), float(step)), "n": torch.tensor(step)})
            place.finish(step, {"at": step}, "{}")
    return list_checkpoints(run)


def test_checkpoints_are_read_back_and_the_last_two_are_kept(tmp_path: Path) -> None:
    assert folder(tmp_path).latest() == (None, [])
    assert [path.name for path in write(tmp_path, 8, 9, 100)] == ["01-step-000009", "01-step-000100"]
    found, notes = folder(tmp_path).latest()
    assert found is not None
    assert notes == []
    assert (found.step, found.values, found.process_values) == (100, {"at": 100}, [{"own": 100}])
    assert found.same_processes
    assert torch.equal(found.tensors["w"], torch.full((3,), 100.0))
    assert found.tensors["n"].shape == ()
    assert {path.name for path in found.folder.iterdir()} == {
        "checkpoint.json",
        "tensors.safetensors",
        "trainer_state.json",
    }
    folder(tmp_path).clear()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["checkpoint.json", "tensors.safetensors", "trainer_state.json"])
@pytest.mark.parametrize("how", ["missing", "truncated", "empty"])
def test_the_checkpoint_before_a_damaged_one_is_used(name: str, how: str, tmp_path: Path) -> None:
    broken = write(tmp_path, 1, 2)[-1] / name
    if how == "missing":
        broken.unlink()
    else:
        broken.write_bytes(broken.read_bytes()[: -1 if how == "truncated" else 0])
    found, notes = folder(tmp_path).latest()
    assert found is not None
    assert found.step == 1
    assert len(notes) == 1
    assert "01-step-000002" in notes[0]
    assert how != "missing" or f"{name} is missing" in notes[0]
    assert [path.name for path in list_checkpoints(tmp_path)] == ["01-step-000001"]


def test_without_a_usable_checkpoint_the_task_starts_over(tmp_path: Path) -> None:
    for path in write(tmp_path, 1, 2):
        (path / "checkpoint.json").write_text("[]")
    found, notes = folder(tmp_path).latest()
    assert found is None
    assert [name in note for name, note in zip(("01-step-000002", "01-step-000001"), notes, strict=False)] == [True] * 2
    assert len(notes) == 3
    assert not (tmp_path / "checkpoint").exists()


def test_a_checkpoint_of_another_version_is_not_used(tmp_path: Path) -> None:
    file = write(tmp_path, 1)[0] / "checkpoint.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 99}))
    found, notes = folder(tmp_path).latest()
    assert found is None
    assert "format 99" in notes[0]


@pytest.mark.parametrize("change", [{"fingerprints": ["g"]}, {"config": "d"}, {"before": ["e"]}, {"tasks": ["news"]}])
def test_a_checkpoint_of_another_task_is_not_used(change: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path, 1)
    found, notes = folder(tmp_path, **change).latest()
    assert found is None
    assert "'mood'" in notes[0]


def test_sweeping_removes_unfinished_checkpoints_and_those_of_another_row(tmp_path: Path) -> None:
    assert sweep(tmp_path, row=1) is False
    write(tmp_path, 1, 2)
    (tmp_path / "checkpoint" / "01-step-000003.partial").mkdir()
    assert sweep(tmp_path, row=1) is True
    assert len(list((tmp_path / "checkpoint").iterdir())) == 2
    assert sweep(tmp_path, row=2) is False
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize("place", ["save_file", "write", "flush_tree", "rename"])
@pytest.mark.parametrize("kept", [0, 2])
def test_a_full_disk_leaves_the_older_ones(
    place: str, kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any, **more: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write(tmp_path, *range(1, kept + 1))
    owners = {"save_file": safetensors.torch, "write": checkpoint}
    monkeypatch.setattr(owners.get(place, atomic), place, full)
    with pytest.raises(DiskFullError, match=r"The disk is full while writing .*01-step-000009"):
        write(tmp_path, 9)
    monkeypatch.undo()
    assert (tmp_path / "checkpoint").exists() == (kept > 0)
    found, notes = folder(tmp_path).latest()
    assert (None if found is None else found.step, notes) == (kept or None, [])


def test_killed_between_writing_and_renaming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*given: Any) -> None:
        raise KeyboardInterrupt

    write(tmp_path, 1)
    monkeypatch.setattr(atomic, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, 2)
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["01-step-000001"]


def of_two(run: Path, sharded: bool, step: int = 4) -> None:
    """A checkpoint of two processes: process 1 adds what is its own, or its shards of everything."""
    places = [CheckpointFolder(run, 1, IDENTITY, rank, 2, sharded) for rank in (0, 1)]
    with places[0].unfinished(step), places[1].unfinished(step):
        places[0].begin(step)
        for rank, place in enumerate(places):
            both = {"w": torch.full((2,), float(rank))} if sharded or rank == 0 else {}
            place.add(step, {"rank": rank}, {**both, "random": torch.tensor([rank])})
        places[0].finish(step, {"at": step}, "{}")


@pytest.mark.parametrize("sharded", [False, True])
def test_each_of_two_processes_finds_its_own(sharded: bool, tmp_path: Path) -> None:
    of_two(tmp_path, sharded)
    for rank in (0, 1):
        found, notes = CheckpointFolder(tmp_path, 1, IDENTITY, rank, 2, sharded).latest()
        assert found is not None
        assert notes == []
        assert found.same_processes
        assert (found.values, found.process_values) == ({"at": 4}, [{"rank": 0}, {"rank": 1}])
        assert found.tensors["random"].item() == rank
        assert torch.equal(found.tensors["w"], torch.full((2,), float(rank if sharded else 0)))


@pytest.mark.parametrize("count", [1, 3])
def test_whole_weights_are_for_any_number_of_processes(count: int, tmp_path: Path) -> None:
    of_two(tmp_path, sharded=False)
    found, notes = CheckpointFolder(tmp_path, 1, IDENTITY, count - 1, count).latest()
    assert found is not None
    assert notes == []
    assert not found.same_processes
    assert found.tensors["random"].item() == 0  # for the caller to begin anew elsewhere than in process 0


@pytest.mark.parametrize(("count", "sharded"), [(1, False), (3, True), (2, False)])
def test_shards_are_for_as_many_processes(count: int, sharded: bool, tmp_path: Path) -> None:
    of_two(tmp_path, sharded=True)
    found, notes = CheckpointFolder(tmp_path, 1, IDENTITY, 0, count, sharded).latest()
    assert found is None
    assert "2 processes" in notes[0]


@pytest.mark.parametrize("how", ["missing", "truncated", "empty"])
@pytest.mark.parametrize("rank", [0, 1])
def test_all_processes_see_that_the_file_of_one_is_damaged(how: str, rank: int, tmp_path: Path) -> None:
    of_two(tmp_path, sharded=True)
    file = tmp_path / "checkpoint" / "01-step-000004" / "process-1.safetensors"
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: -1 if how == "truncated" else 0])
    found, notes = CheckpointFolder(tmp_path, 1, IDENTITY, rank, 2, True).latest()
    assert found is None
    assert "is damaged" in notes[0]


def test_a_disk_that_is_full_for_the_second_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any, **more: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    of_two(tmp_path, sharded=True, step=3)
    first, second = (CheckpointFolder(tmp_path, 1, IDENTITY, rank, 2, True) for rank in (0, 1))

    def write() -> None:
        with first.unfinished(4), second.unfinished(4):
            first.begin(4)
            first.add(4, {}, {"w": torch.zeros(2)})
            monkeypatch.setattr("safetensors.torch.save_file", full)
            second.add(4, {}, {"w": torch.zeros(2)})

    with pytest.raises(DiskFullError, match=r"while writing process-1\.safetensors in '.*01-step-000004"):
        write()
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["01-step-000003"]
