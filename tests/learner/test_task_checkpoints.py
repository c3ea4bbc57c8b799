"""Where a task goes on after an interruption: at a merge, from damaged, older or no checkpoints, with other data."""

from __future__ import annotations

import errno
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from merganser.config import load_config
from merganser.errors import DiskFullError, RunError
from merganser.events import Evaluating, Event, Merged
from merganser.files import atomic
from merganser.learner import Learner
from merganser.runs import RunDirectory
from merganser.runs.checksums import sealed
from merganser.runs.undo import undo_rows
from merganser.streams.loading import load_stream
from merganser.training.aim import callback
from tests.learner.interrupted import Stop, at, learn, notices, started, steps, stream_of
from tests.learner.toys import contents, read_json, results, without_checksums


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the plain case, never interrupted."""
    run = stream_of(tmp_path_factory.mktemp("plain"), {})
    learn(run)
    return run


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the plain case that ended in the fifth step of the second task."""
    run = stream_of(tmp_path_factory.mktemp("stopped"), {})
    learn(run, at("topic", 5))
    return run


@pytest.fixture
def stopped(stopped_run: Path, tmp_path: Path) -> Path:
    """A copy of it, with its stream."""
    shutil.copytree(stopped_run.parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / stopped_run.name


def test_interrupted_in_rehearsal_at_a_merge_and_while_scoring(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    merges = [json.loads(line)["step"] for line in (whole / "ledger.jsonl").read_text().splitlines()]
    run = stream_of(tmp_path, {})
    calls = 0
    rehearse = callback.rehearse_step

    def breaks_off(*given: Any) -> float:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise Stop
        return rehearse(*given)

    monkeypatch.setattr(callback, "rehearse_step", breaks_off)
    learn(run)
    assert calls == 2
    monkeypatch.undo()
    told = learn(run, lambda event: isinstance(event, Merged) and event.step == merges[-1])
    assert started(told).step == merges[0] - 1
    assert [event.step for event in told if isinstance(event, Merged)] == merges
    told = learn(run, lambda event: isinstance(event, Evaluating) and event.done == event.total)
    assert steps(told) == list(range(merges[-1], 8))
    told = learn(run)
    assert "Resuming 'topic' after its last step, from its checkpoint." in notices(told)
    assert steps(told) == []
    assert started(told).step == 7
    assert results(run) == results(whole)


def test_time_and_examples_of_before_the_interruption_count(whole: Path, stopped: Path) -> None:
    run = stopped
    file = run / "checkpoint" / "02-step-000004" / "checkpoint.json"
    held = json.loads(file.read_text())
    assert 0 < held["values"]["seconds"] < 60
    held["values"]["seconds"] += 1000
    held["values"]["parts"]["records"]["cost"]["rehearsal_seconds"] += 100
    file.write_bytes(sealed(held))
    learn(run)
    cost, other = (read_json(each / "tasks/02-topic/row.json")["tasks"][0]["cost"] for each in (run, whole))
    assert 1000 < cost["seconds"] < 1060
    assert 100 < cost["rehearsal_seconds"] < 160
    assert 800 < cost["inner_seconds"] < 960
    counts = ("steps", "examples_trained", "examples_rehearsed", "examples_probed", "examples_evaluated")
    assert {key: cost[key] for key in counts} == {key: other[key] for key in counts}


def test_a_damaged_checkpoint_and_one_of_other_data(whole: Path, stopped: Path) -> None:
    run, folder = stopped, stopped.parent
    tensors = run / "checkpoint" / "02-step-000004" / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-5])
    told = learn(run, at("topic", 6))
    assert any("'02-step-000004' is damaged" in text for text in notices(told))
    assert started(told).step == 3
    rows = read_json(folder / "topic.json")
    write = (folder / "topic.json").write_text
    write(json.dumps([*rows[:-1], {**rows[-1], "input": "another text"}]))
    told = learn(run, at("topic", 1))
    assert any("is of 'topic' as learned with other data" in text for text in notices(told))
    assert started(told).step == 0
    write(json.dumps(rows))
    learn(run)
    assert results(run) == results(whole)


def test_a_memory_that_was_changed_in_between(stopped: Path) -> None:
    run = stopped
    memory = without_checksums(run) / "tasks" / "01-mood" / "memory.jsonl"
    lines = [json.loads(line) for line in memory.read_text().splitlines()]
    lines[0]["input"] = "something else"
    memory.write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = learn(run, at("topic", 1))
    assert any("as learned with other data" in text for text in notices(told))
    assert started(told).step == 0


@pytest.mark.parametrize("file", ["checkpoint.json", "tensors.safetensors", "trainer_state.json"])
def test_a_half_deleted_checkpoint_is_not_used(file: str, stopped: Path) -> None:
    (stopped / "checkpoint" / "02-step-000004" / file).unlink()
    told = learn(stopped, at("topic", 4))
    assert any("'02-step-000004' is damaged" in text for text in notices(told))
    assert started(told).step == 3


def test_without_a_checkpoint_that_can_be_used_the_task_starts_over(whole: Path, stopped: Path) -> None:
    for file, folder in zip(("checkpoint.json", "trainer_state.json"), (stopped / "checkpoint").iterdir(), strict=True):
        (folder / file).unlink()
    told = learn(stopped)
    assert any("No other checkpoint can be used: the task starts over." in text for text in notices(told))
    assert started(told).step == 0
    assert results(stopped) == results(whole)


def test_how_often_checkpoints_are_taken_may_change(whole: Path, tmp_path: Path) -> None:
    run = stream_of(tmp_path, {"training": {"checkpoint_steps": None, "checkpoint_minutes": 600}})
    learn(run, at("mood", 6))
    assert not (run / "checkpoint").exists()
    config = tmp_path / "stream.yaml"
    config.write_text(config.read_text().replace("checkpoint_steps: null", "checkpoint_steps: 2"))
    learn(run, at("mood", 6))
    assert [path.name for path in sorted((run / "checkpoint").iterdir())] == ["01-step-000002", "01-step-000004"]
    config.write_text(config.read_text().replace("checkpoint_minutes: 600", "checkpoint_minutes: 1.0e-6"))
    learn(run, at("mood", 6))
    assert [path.name for path in sorted((run / "checkpoint").iterdir())] == ["01-step-000004", "01-step-000005"]
    off = config.read_text().replace("checkpoint_minutes: 1.0e-6", "checkpoint_minutes: null")
    config.write_text(off.replace("checkpoint_steps: 2", "checkpoint_steps: null"))
    told = learn(run)
    assert steps(told, "mood") == list(range(1, 8))
    assert results(run) == results(whole)


def test_training_that_diverged_leaves_no_checkpoint(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from merganser.training.trainer import Trainer

    run = stopped
    shutil.rmtree(run / "checkpoint")
    before = contents(run)
    step = Trainer.training_step

    def diverges(self: Any, *given: Any) -> torch.Tensor:
        loss = step(self, *given)
        return loss * math.nan if self.state.global_step == 4 else loss

    monkeypatch.setattr(Trainer, "training_step", diverges)
    with pytest.raises(RunError, match="became nan at step 5"):
        learn(run)
    assert contents(run) == before


def test_a_full_disk_leaves_the_checkpoints_to_resume_from(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stream_of(tmp_path, {})
    rename = atomic.rename

    def full(source: Path, target: Path) -> None:
        if target.name == "02-step-000005":
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(atomic, "rename", full)
    with pytest.raises(DiskFullError, match="The disk is full while writing 02-step-000005"):
        learn(run)
    monkeypatch.undo()
    assert [path.name for path in sorted((run / "checkpoint").iterdir())] == ["02-step-000003", "02-step-000004"]
    assert started(learn(run)).step == 4
    assert results(run) == results(whole)


def test_undo_takes_the_checkpoints_of_the_task_in_hand(stopped: Path) -> None:
    assert (stopped / "checkpoint").exists()
    directory = RunDirectory.open(stopped)
    with directory.lock:
        undo_rows(directory)
    assert not (stopped / "checkpoint").exists()


def test_the_same_learner_goes_on_after_ctrl_c(whole: Path, tmp_path: Path) -> None:
    run = stream_of(tmp_path, {})
    config = load_config(tmp_path / "stream.yaml")
    assert config.stream is not None
    tasks = load_stream(config.stream, tmp_path).tasks
    armed = True

    def listener(event: Event) -> None:
        if armed and at("topic", 5)(event):
            raise KeyboardInterrupt

    with Learner.of_config(run, config, listener=listener) as learner:
        with pytest.raises(KeyboardInterrupt):
            learner.learn_stream(tasks)
        armed = False
        learner.learn_stream(tasks)
    assert results(run) == results(whole)
