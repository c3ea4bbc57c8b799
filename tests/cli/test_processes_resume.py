"""Several processes that are killed in the middle of a task, and resume: as many of them, or another number."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.cli.spawner import Spawner, newest, until
from tests.cli.test_processes import KINDS, SHARDED, alike, meeting, stream_of, succeed, together
from tests.learner.toys import read_json, results

STEPS = 8
MATCHER: dict[str, Any] = {
    "model": {"lora": {"r": 4, "dropout": 0.2}},
    "training": {"steps": STEPS, "checkpoint_steps": 1},
    "method": {"rehearsal_steps": 6},
}
T5: dict[str, Any] = {
    "model": {"kind": "seq2seq", "lora": None},
    "training": {"steps": STEPS, "checkpoint_steps": 1, "learning_rate": 0.002, "select_best": True, "select_every": 3},
    "method": {"fusion": "importance_masks"},
}


def killed(spawner: Spawner, stream: Path, run: Path, at: int, wait: float, environment: Mapping[str, str]) -> int:
    """Two processes that are killed ``wait`` seconds after the checkpoint at step ``at`` of the second task; the newest
    checkpoint they leave."""
    with meeting(2) as environments:
        numbers = [
            spawner.start("run", stream, "--out", run, environment={**each, **environment}) for each in environments
        ]
        until(lambda: newest(run) >= at)
        time.sleep(wait)
        for number in numbers:
            os.kill(number, signal.SIGKILL)
        assert [spawner.wait(number).code for number in numbers] == [-signal.SIGKILL] * 2
    return newest(run)


@pytest.mark.parametrize(
    ("kind", "case"), [("ddp", MATCHER), ("fsdp", T5)], ids=["matcher, LoRA, dropout", "T5, masks, best weights"]
)
def test_two_processes_that_were_killed_end_in_the_same_bytes(
    kind: str, case: dict[str, Any], spawner: Spawner, tmp_path: Path
) -> None:
    stream = stream_of(tmp_path, case)
    whole, run = tmp_path / "whole", tmp_path / "run"
    succeed(together(spawner, "run", stream, "--out", whole, environment=KINDS[kind]))
    generator = random.Random(kind)
    at = generator.randint(2, 5)
    kept = killed(spawner, stream, run, at, generator.uniform(0, 0.05), KINDS[kind])
    assert kept >= at
    last = sorted((run / "checkpoint").glob("02-step-??????"))[-1]
    assert {file.name for file in last.glob("*.safetensors")} == {"tensors.safetensors", "process-1.safetensors"}
    done = together(spawner, "run", stream, "--out", run, environment=KINDS[kind])
    succeed(done)
    where = f"at step {kept} of {STEPS}" if kept < STEPS else "after its last step"
    assert f"Resuming 'topic' {where}, from its checkpoint." in done[0].err
    assert done[1].err == ""
    assert results(run) == results(whole)
    assert not list(run.rglob("*.partial*"))
    assert not (run / "checkpoint").exists()
    counts = [[task["cost"]["examples_trained"] for task in read_json(file)["tasks"]] for file in rows(run)]
    assert counts == [[task["cost"]["examples_trained"] for task in read_json(file)["tasks"]] for file in rows(whole)]


def rows(run: Path) -> list[Path]:
    return sorted(run.glob("tasks/*/row.json"))


@pytest.fixture(scope="module")
def one(spawner: Spawner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process, without dropout; ``stream.yaml`` beside it."""
    folder = tmp_path_factory.mktemp("one")
    stream = stream_of(folder, {"training": {"steps": STEPS, "checkpoint_steps": 1}})
    succeed([spawner.wait(spawner.start("run", stream, "--out", folder / "run"))])
    return folder / "run"


@pytest.mark.parametrize("kind", KINDS)
def test_one_process_resumes_the_run_of_two(kind: str, one: Path, spawner: Spawner, tmp_path: Path) -> None:
    """Whole weights are taken over; shards cannot be, and the task starts over. Without dropout both end alike."""
    stream, run = one.parent / "stream.yaml", tmp_path / "run"
    kept = killed(spawner, stream, run, 3, 0.0, KINDS[kind])
    done = spawner.wait(spawner.start("run", stream, "--out", run))
    succeed([done])
    if kind == "ddp":
        assert f"Resuming 'topic' at step {kept} of {STEPS}, from its checkpoint." in done.err
    else:
        assert "is of 2 processes with shards of the weights" in done.err
    alike(one, run)


def test_the_other_process_is_killed(spawner: Spawner, tmp_path: Path) -> None:
    stream = stream_of(tmp_path, {"training": {"steps": 200, "checkpoint_steps": 1}})
    run = tmp_path / "run"
    with meeting(2) as environments:
        numbers = [spawner.start("run", stream, "--out", run, environment=each) for each in environments]
        until(lambda: newest(run, row=1) >= 3)
        os.kill(numbers[1], signal.SIGKILL)
        first = spawner.wait(numbers[0])
        spawner.wait(numbers[1])
    assert first.code == 1
    assert first.err.splitlines()[-1] == (
        "error: Another process of this run has ended. The same command resumes from the last checkpoint."
    )
    assert newest(run, row=1) >= 3


def test_two_processes_resume_the_run_of_one(one: Path, spawner: Spawner, tmp_path: Path) -> None:
    stream, run = one.parent / "stream.yaml", tmp_path / "run"
    process = spawner.start("run", stream, "--out", run)
    until(lambda: newest(run) >= 3)
    os.kill(process, signal.SIGKILL)
    assert spawner.wait(process).code == -signal.SIGKILL
    kept = newest(run)
    done = together(spawner, "run", stream, "--out", run)
    succeed(done)
    assert f"Resuming 'topic' at step {kept} of {STEPS}, from its checkpoint." in done[0].err
    alike(one, run)


def test_a_damaged_file_of_the_second_process(spawner: Spawner, tmp_path: Path) -> None:
    """Both processes go back to the checkpoint before."""
    stream = stream_of(tmp_path, MATCHER)
    whole, run = tmp_path / "whole", tmp_path / "run"
    succeed(together(spawner, "run", stream, "--out", whole, environment=SHARDED))
    killed(spawner, stream, run, 4, 0.0, SHARDED)
    *_, before, last = sorted((run / "checkpoint").glob("02-step-??????"))  # three, if killed while one went
    (last / "process-1.safetensors").write_bytes(b"")
    done = together(spawner, "run", stream, "--out", run, environment=SHARDED)
    succeed(done)
    assert f"The checkpoint '{last.name}' is damaged" in done[0].err
    assert f"Resuming 'topic' at step {int(before.name[-6:])} of {STEPS}, from its checkpoint." in done[0].err
    assert results(run) == results(whole)
