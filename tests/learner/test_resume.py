"""A task that is interrupted in the middle ends in the same bytes as one that never was."""

from __future__ import annotations

import errno
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from merganser.config import load_config
from merganser.errors import DiskFullError, RunError
from merganser.events import Evaluating, Event, Merged, Notice, StepDone, TaskStarted
from merganser.files import atomic
from merganser.learner import Learner
from merganser.runs import RunDirectory
from merganser.runs.checksums import sealed
from merganser.runs.undo import undo_rows
from merganser.streams.loading import load_stream
from merganser.training.aim import callback
from tests.learner.toys import (
    contents,
    model_folder,
    read_json,
    results,
    settings,
    without_checksums,
    write_config,
    write_stream,
)


class Stop(BaseException):
    """Stands for the end of the process."""


def learn(run: Path, stop: Callable[[Event], bool] = lambda event: False) -> list[Event]:
    """Learn the stream beside a run until an event at which the process ends, or to the end; what was told."""
    told: list[Event] = []

    def listener(event: Event) -> None:
        told.append(event)
        if stop(event):
            raise Stop

    config = load_config(run.parent / "stream.yaml")
    assert config.stream is not None
    tasks = load_stream(config.stream, run.parent).tasks
    try:
        with Learner.of_config(run, config, listener=listener) as learner:
            learner.learn_stream(tasks)
    except Stop:
        pass
    return told


def at(task: str, step: int) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, StepDone) and (event.task, event.step) == (task, step)


def notices(told: list[Event]) -> list[str]:
    return [event.text for event in told if isinstance(event, Notice)]


def steps(told: list[Event], task: str = "topic") -> list[int]:
    return [event.step for event in told if isinstance(event, StepDone) and event.task == task]


def started(told: list[Event], task: str = "topic") -> TaskStarted:
    (found,) = [event for event in told if isinstance(event, TaskStarted) and event.task == task]
    return found


CASES: dict[str, dict[str, Any]] = {
    "aim": {},
    "aim, accumulation, cosine, replay": {
        "method": {"replay_share": 0.3},
        "training": {"accumulation": 2, "batch": 2, "schedule": "cosine", "steps": 8},
    },
    "aim, epochs with a batch left over": {
        "method": {"rehearsal_steps": 0, "start_weight": 0.1},
        "training": {"steps": None, "epochs": 2.5, "batch": 5},
    },
    "aim, all weights, noisy probes": {
        "model": {"lora": None, "dropout": 0.2},
        "method": {"probe_dropout": True, "merge_at_end": True},
        "training": {"checkpoint_steps": 3, "learning_rate": 0.002},
    },
    "aim, importance masks": {
        "method": {
            "fusion": "importance_masks",
            "interval": 3,
            "rehearsal_steps": 2,
            "ablation": {"watch_forgetting": False},
        }
    },
    "aim, best by development texts": {"training": {"select_best": True, "select_every": 2}},
    "replay": {"method": {"name": "replay"}},
    "forever": {"method": {"name": "forever", "day_steps": 2, "steps": 2}},
    "sure, memory in total": {
        "method": {"name": "sure", "decay": 0.8, "start_from": "fast"},
        "memory": {"number": None, "total": 5},
    },
    "replay, causal, texts of its own, share in model time": {
        "method": {"name": "replay", "share": 0.4, "spacing": "model_time", "day_steps": 2, "finish_weight": 0.5},
        "model": {"kind": "causal", "name": "causal"},
        "memory": {"source": "self"},
    },
    "sfa": {"method": {"name": "sfa", "p": 0.3, "merge_first": True}},
    "sequential, bf16": {"method": {"name": "sequential"}, "model": {"precision": "bf16"}},
    "replay, seq2seq": {
        "method": {"name": "replay"},
        "model": {"kind": "seq2seq", "name": "seq2seq"},
        "training": {"accumulation": 2, "batch": 2, "weight_decay": 0.1, "checkpoint_steps": 2},
    },
    "aim, causal, recomputed": {
        "model": {"kind": "causal", "name": "causal", "dropout": 0.1},
        "mix": {"file": "truth.json", "share": 0.3},
        "training": {"gradient_checkpointing": True, "group_by_length": False, "packing": "packed"},
    },
    "aim, causal, 4bit, 8-bit optimizer": {
        "model": {"kind": "causal", "name": "causal", "weights": "4bit"},
        "training": {"optimizer": "paged_adamw_8bit"},
    },
    "joint": {"method": {"name": "joint"}},
    "trm, all weights, Adam's direction": {
        "method": {"name": "trm", "steps": 3, "batch": 8, "ablation": {"augmentation": "adam"}},
        "model": {"lora": None, "dropout": 0.2},
        "training": {"learning_rate": 0.002},
    },
    "trm, seq2seq": {
        "method": {"name": "trm", "steps": 2, "batch": 6},
        "model": {"kind": "seq2seq", "name": "seq2seq"},
        "training": {"checkpoint_steps": 2},
    },
    "trm, causal, factors": {
        "method": {"name": "trm", "steps": 2, "batch": 6, "space": "factors"},
        "model": {"kind": "causal", "name": "causal", "dropout": 0.1},
    },
    **{name: {"method": {"name": name}} for name in ("ewc", "lwf", "migu", "olora", "pam", "slao", "tasl")},
    # Methods that act at the end of a task alone are sequential fine-tuning until then, from the weights that are
    # deployed, trained or pretrained. What they keep between tasks is tested in test_storing.py.
    "coma": {"method": {"name": "coma"}},
    "tunable_magmax": {"method": {"name": "tunable_magmax", "preference": "feature_similarity"}},
    "opcm": {"method": {"name": "opcm"}},
    "became": {"method": {"name": "became", "fisher_examples": 4}},
}


def stream_of(folder: Path, case: dict[str, Any]) -> Path:
    """The stream of a case; returns where its run goes."""
    changes = {key: dict(value) for key, value in case.items()}
    changes["training"] = {"steps": 7, "checkpoint_steps": 1, "checkpoint_minutes": None, **changes.get("training", {})}
    model = changes.setdefault("model", {})
    width = 64 if model.get("weights") == "4bit" else 32
    model["name"] = str(model_folder(model.get("kind", "matcher"), width=width))
    model.setdefault("lora", {"r": 4, "dropout": 0.1})
    method, mix = changes.pop("method", {}), changes.pop("mix", None)
    if "name" not in method:
        method = {"name": "aim", "interval": 2, "cold_start": 1, "rehearsal_steps": 2, **method}
    values = settings()
    values["method"] = method
    for section, change in changes.items():
        values[section].update(change)
    if values["training"].get("select_best"):
        for task in values["stream"]["tasks"]:
            task["dev"] = task["test"]
    if mix is not None:
        values["stream"]["mix"] = mix
    write_stream(folder)
    write_config(folder / "stream.yaml", values)
    return folder / "run"


@pytest.mark.parametrize("case", CASES)
def test_interrupted_in_the_middle_of_tasks_it_ends_in_the_same_bytes(case: str, tmp_path: Path) -> None:
    run = stream_of(tmp_path, CASES[case])
    whole = run.with_name("whole")
    last = "mood" if "joint" in case else "topic"
    first = "mood" if case == "aim" else last

    def killed(event: Event) -> bool:
        if at(first, 4)(event):  # what a process that ends here leaves, the finished rows included
            shutil.copytree(whole, run)
        return False

    total = started(learn(whole, killed), last).steps
    every = CASES[case].get("training", {}).get("checkpoint_steps", 1)
    check_checkpoints(run, 4, every)
    for task, step in [(last, 4), (last, total)] if first != last else [(last, total)]:
        learn(run, at(task, step))
        check_checkpoints(run, step, every)
    told = learn(run)
    again = started(told, last)
    assert again.step == (total - 1) // every * every
    assert steps(told, last) == list(range(again.step + 1, total + 1))
    assert f"Resuming '{last}' at step {again.step} of {total}, from its checkpoint." in notices(told)
    assert not (run / "checkpoint").exists()
    assert results(run) == results(whole)


def check_checkpoints(run: Path, step: int, every: int) -> None:
    """The newest one of a task that ended at a step is the last that was due before, and one more is kept."""
    kept = sorted((run / "checkpoint").glob("*")) if (run / "checkpoint").exists() else []
    newest = int(kept[-1].name.rsplit("-", 1)[1]) if kept else 0
    assert newest == (step - 1) // every * every
    assert len(kept) <= 2


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
