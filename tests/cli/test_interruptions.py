"""Real processes that are killed, stopped, or run out of disk; what they leave, and how they go on."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from merganser.runs.lock import RunLock
from tests.cli.spawner import ENVIRONMENT, Spawner
from tests.learner import toys
from tests.learner.toys import contents, results, write_stream

TASKS = ("mood", "topic", "truth")


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stream(tmp_path_factory.mktemp("stream"), TASKS)


@pytest.fixture(scope="module")
def uninterrupted(spawner: Spawner, stream: Path) -> Path:
    """The same stream learned in one go."""
    done = spawner.wait(spawner.start("run", stream, "--out", stream.parent / "whole"))
    assert done.code == 0, done.err
    return stream.parent / "whole"


def rows_of(run: Path) -> list[str]:
    tasks = run / "tasks"
    return sorted(p.name for p in tasks.iterdir() if not p.name.endswith(".partial")) if tasks.is_dir() else []


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for something to come about on disk."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.002)


def finish(spawner: Spawner, stream: Path, run: Path) -> toys.Done:
    """The same command again, to the end."""
    done = spawner.wait(spawner.start("run", stream, "--out", run))
    assert done.code == 0, done.err
    return done


def moments(run: Path) -> dict[str, Callable[[], bool]]:
    """Conditions on the run directory at which a process is killed."""
    tasks = run / "tasks"
    return {
        "before anything is measured": (run / "run.yaml").exists,
        "in the first task": (tasks / "01-mood.partial").exists,
        "while the first task is put in place": lambda: (
            (tasks / "01-mood").exists() or ((tasks / "01-mood.partial/row.json").exists())
        ),
        "in the last task": (tasks / "03-truth.partial").exists,
        "after the last task": (tasks / "03-truth").exists,
    }


@pytest.mark.parametrize("moment", moments(Path()))
def test_killed_at_a_moment(moment: str, spawner: Spawner, stream: Path, uninterrupted: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = spawner.start("run", stream, "--out", run)
    until(moments(run)[moment])
    os.kill(process, signal.SIGKILL)
    # It may just have finished where everything was learned at that moment.
    assert spawner.wait(process).code in ((-signal.SIGKILL, 0) if "after" in moment else (-signal.SIGKILL,))
    completed = rows_of(run)
    interrupted = sorted(path.name[3:].removesuffix(".partial") for path in (run / "tasks").glob("*.partial"))
    done = finish(spawner, stream, run)
    learned = [name[3:] for name in completed[1:]]
    assert interrupted or not moment.startswith("in the")
    for name in interrupted:
        assert f"'{name}' had been interrupted" in done.err
    for position, task in enumerate(TASKS, 1):
        assert (f"Learning task {position}: {task}" in done.err) == (task not in learned)
    assert results(run) == results(uninterrupted)
    assert not list(run.rglob("*.partial*"))


def test_killed_again_and_again_at_random(spawner: Spawner, stream: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """Each life of the process is a random time; nothing that was complete is ever lost."""
    run = tmp_path / "run"
    generator = random.Random(20)
    kept: list[str] = []
    for life in range(5):
        process = spawner.start("run", stream, "--out", run)
        time.sleep(generator.uniform(0.15, 0.3 + 0.1 * life))
        os.kill(process, signal.SIGKILL)
        code = spawner.wait(process).code
        now = rows_of(run)
        assert now[: len(kept)] == kept
        kept = now
        if code == 0:
            break
        if run.is_dir():
            with RunLock(run):
                pass  # the dead process holds no lock
    finish(spawner, stream, run)
    assert results(run) == results(uninterrupted)
    assert not list(run.rglob("*.partial*"))


@pytest.fixture(scope="module")
def slow_stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks with a checkpoint at every step; most of the time of the second goes into rehearsal."""
    method = {"rehearsal_steps": 12, "interval": 2, "cold_start": 1, "name": "aim"}
    training = {"steps": 8, "checkpoint_steps": 1}
    return write_stream(tmp_path_factory.mktemp("slow"), TASKS[:2], method=method, training=training)


@pytest.fixture(scope="module")
def slow_whole(spawner: Spawner, slow_stream: Path) -> Path:
    """The same in one go."""
    finish(spawner, slow_stream, slow_stream.parent / "whole")
    return slow_stream.parent / "whole"


def newest(run: Path, row: int = 2) -> int:
    """Step of the newest checkpoint of a row; 0 without one."""
    return max((int(p.name[-6:]) for p in run.glob(f"checkpoint/{row:02d}-step-??????")), default=0)


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_in_the_middle_of_a_task(
    seed: int, spawner: Spawner, slow_stream: Path, slow_whole: Path, tmp_path: Path
) -> None:
    """At random moments after a checkpoint: in a step, in rehearsal, while the next checkpoint is written."""
    run = tmp_path / "run"
    generator = random.Random(seed)
    for at in (1, 3, 5):
        process = spawner.start("run", slow_stream, "--out", run)
        until(lambda at=at: newest(run) >= at)  # type: ignore[misc]
        time.sleep(generator.uniform(0, 0.1))
        os.kill(process, signal.SIGKILL)
        assert spawner.wait(process).code == -signal.SIGKILL
        assert newest(run) >= at
    kept = newest(run)
    done = finish(spawner, slow_stream, run)
    where = f"at step {kept} of 8" if kept < 8 else "after its last step"
    assert f"Going on with 'topic' {where}, from its checkpoint." in done.err
    assert "Learning task 1" not in done.err
    assert results(run) == results(slow_whole)
    assert not list(run.rglob("*.partial*"))
    assert not (run / "checkpoint").exists()


def test_killed_while_a_checkpoint_is_written(
    spawner: Spawner, slow_stream: Path, slow_whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    caught = False
    for _ in range(6):
        process = spawner.start("run", slow_stream, "--out", run)
        reached = newest(run)
        until(lambda reached=reached: any(run.glob("checkpoint/02-*.partial")) or newest(run) > reached + 1)  # type: ignore[misc]
        os.kill(process, signal.SIGKILL)
        assert spawner.wait(process).code == -signal.SIGKILL
        caught = any(run.glob("checkpoint/02-*.partial"))
        if caught or newest(run) == 8:
            break
    finish(spawner, slow_stream, run)
    assert results(run) == results(slow_whole)
    assert not list(run.rglob("*.partial*"))


def test_ctrl_c(spawner: Spawner, stream: Path, uninterrupted: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = spawner.start("run", stream, "--out", run)
    until((run / "tasks" / "02-topic.partial").exists)
    os.kill(process, signal.SIGINT)
    done = spawner.wait(process)
    assert done.code == 130, done.err
    assert done.err.rstrip().splitlines()[-1] == "Stopped. Completed work is kept; the same command resumes it."
    assert "Traceback" not in done.err
    # The unfinished row is gone at once, not only when the run is opened again.
    assert [path.name for path in sorted((run / "tasks").iterdir())] == ["00-start", "01-mood"]
    assert not list(run.rglob("*.partial*"))
    assert "Learning task 1" not in finish(spawner, stream, run).err
    assert results(run) == results(uninterrupted)


def test_two_processes_in_one_run(spawner: Spawner, stream: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = spawner.start("run", stream, "--out", run)
    until((run / "tasks" / "01-mood.partial").exists)
    os.kill(first, signal.SIGSTOP)
    second = spawner.wait(spawner.start("run", stream, "--out", run))
    assert second.code == 2
    assert second.error.startswith(f"The run '{run}' is in use by another process (number {first}).")
    os.kill(first, signal.SIGCONT)
    assert spawner.wait(first).code == 0
    assert rows_of(run) == ["00-start", "01-mood", "02-topic", "03-truth"]


def test_a_disk_that_is_really_full(spawner: Spawner, run: Path) -> None:
    """A real file system with less and less room missing: every failure leaves each byte as it was."""
    if not spawner.has_disk:
        pytest.skip("no permission to mount a file system in a namespace of its own")
    learn = ("learn", spawner.disk / "run", "--task", "truth", "--train", run.parent / "truth.json")
    assert spawner.wait(spawner.start("streams")).code == 0
    disk = spawner.seen_disk
    shutil.copytree(run, disk / "run")
    before = contents(disk / "run")
    assert before == contents(run)
    room = os.statvfs(disk)
    places = []
    for kib in (0, 8, 28, 44, 60, 400):
        (disk / "ballast").write_bytes(bytes(max(0, room.f_bavail * room.f_frsize - kib * 1024)))
        done = spawner.wait(spawner.start(*learn))
        (disk / "ballast").unlink()
        if done.code == 0 or "report.html" in done.error:
            break  # the row is complete; only the page about it may not have found room
        assert done.code == 1, done.err
        assert "The disk is full while writing" in done.error
        places.append(done.error.split("while writing ")[1].split(" in ")[0])
        after = contents(disk / "run")
        # What was trained stays as a checkpoint.
        assert {name: c for name, c in after.items() if not name.startswith("checkpoint")} == before, f"{kib} KiB"
    else:
        raise AssertionError(done.err)
    assert len(set(places)) >= 3, places
    assert rows_of(disk / "run") == ["00-start", "01-mood", "02-topic", "03-truth"]
    assert not (disk / "run" / "checkpoint").exists()


def test_a_process_of_its_own(tmp_path: Path) -> None:
    """``python -m merganser`` from the shell: exit codes and streams as they reach a script."""

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-m", "merganser", *arguments]
        return subprocess.run(program, capture_output=True, text=True, env=ENVIRONMENT, cwd=tmp_path)

    (tmp_path / "bad.yaml").write_text("model: {name: x, kind: matcher}\nstraem: {}\n")
    refused = command("run", "bad.yaml", "--out", "run")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "error: bad.yaml: straem: unknown key. Did you mean 'stream'?\n"
    usage = command("run", "--no-such-option")
    assert usage.returncode == 2
    assert "No such option" in usage.stderr
