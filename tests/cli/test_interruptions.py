"""Real processes that are killed, stopped, or run out of disk; what they leave, and how they resume."""

from __future__ import annotations

import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from merganser.runs.lock import RunLock
from tests.cli.spawner import ENVIRONMENT, LIFE, Spawner, until
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


def finish(spawner: Spawner, stream: Path, run: Path) -> toys.Done:
    """The same command again, to the end."""
    done = spawner.wait(spawner.start("run", stream, "--out", run))
    assert done.code == 0, done.err
    return done


def test_killed_three_times_at_random(spawner: Spawner, stream: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """Real kills at random times: nothing that was complete is ever lost. Every call: tests/learner/test_faults.py."""
    run = tmp_path / "run"
    generator = random.Random(20)
    kept: list[str] = []
    for life in range(3):
        process = spawner.start("run", stream, "--out", run)
        time.sleep(generator.uniform(0.15, 0.3 + 0.2 * life))
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


def test_work_goes_on_when_nobody_reads_on(spawner: Spawner, stream: Path, tmp_path: Path) -> None:
    """As in ``merganser run ... 2>&1 | head -1``: everything is learned, and what would be printed is not."""
    run, pipe = tmp_path / "run", tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    process = spawner.start("run", stream, "--out", run, pipe=pipe)
    assert select.select([reader], [], [], LIFE)[0]
    os.close(reader)
    assert spawner.wait(process).code == 0
    assert [folder.name for folder in sorted((run / "tasks").iterdir())] == [
        "00-start",
        "01-mood",
        "02-topic",
        "03-truth",
    ]
    assert (run / "report.html").is_file()


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
