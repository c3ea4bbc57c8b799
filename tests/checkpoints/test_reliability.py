"""Interrupted, without room, without permission: nothing is left that looks finished."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merganser.checkpoints.merge import merge_checkpoints
from merganser.checkpoints.recipe_file import parse
from merganser.errors import InputError, RunError
from tests.checkpoints.conftest import write_folder

SCRIPT = """
import sys
from merganser.checkpoints.merge import merge_checkpoints
from merganser.checkpoints.recipe_file import parse
content = {"rule": "ties", "models": sys.argv[1:3], "base": sys.argv[3]}
merge_checkpoints(parse(content, "test"), sys.argv[4], kernels="numpy")
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("models")
    generator = np.random.default_rng(0)
    made = []
    for name in ("a", "b", "base"):
        tensors = {f"layers.{i}.weight": generator.normal(size=(300, 300)).astype(np.float32) for i in range(12)}
        made.append(str(write_folder(root / name, tensors, shards=3)))
    return made


def recipe(folders: list[str]) -> object:
    return parse({"rule": "linear", "models": folders[:2]}, "test")


def test_a_disk_that_is_too_small_is_noticed_before(
    folders: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(InputError, match=r"needs [\d,]+ bytes; .* has 1,000 free"):
        merge_checkpoints(recipe(folders), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_limit_on_the_size_of_files_is_a_failure_without_traces(folders: list[str], tmp_path: Path) -> None:
    """A real refusal of the kernel, in the middle of the work: the space of the first shard cannot be reserved."""

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, *folders, str(tmp_path / "out")],
        preexec_fn=limited,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "RunError" in ended.stderr
    assert "File too large" in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_is_a_failure_without_traces(
    folders: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite
    calls = [0]

    def full(descriptor: int, view: bytes, offset: int) -> int:
        calls[0] += 1
        if calls[0] > 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, view, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(RunError, match="No space left"):
        merge_checkpoints(recipe(folders), tmp_path / "out", threads=2)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(
    folders: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match="Cannot create"):
        merge_checkpoints(recipe(folders), "/proc/merged/out")
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o555)
        with pytest.raises(InputError, match="Cannot create"):
            merge_checkpoints(recipe(folders), tmp_path / "locked" / "out")


def test_an_interrupt_leaves_nothing(folders: list[str], tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_checkpoints(recipe(folders), tmp_path / "out", progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_every_byte_once(folders: list[str], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = merge_checkpoints(
        recipe(folders), tmp_path / "out", threads=3, progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (report.bytes, report.bytes)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_every_file_is_on_the_disk_before_the_result_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sub-folders too. The flushes are seen at the system call, the rename at its own."""
    models = [write_folder(tmp_path / name, {"w": np.ones(4, np.float32)}, shards=1) for name in "ab"]
    (models[0] / "additional_chat_templates").mkdir()
    (models[0] / "additional_chat_templates" / "tool.jinja").write_text("x")
    flushed: set[int] = set()
    missing: list[set[str]] = []
    fsync, replace = os.fsync, os.replace

    def noting_fsync(descriptor: int) -> None:
        fsync(descriptor)
        flushed.add(os.fstat(descriptor).st_ino)

    def noting_replace(source: Any, target: Any) -> None:
        if Path(target) == tmp_path / "out":
            inside = [Path(source), *Path(source).rglob("*")]
            missing.append({path.name for path in inside if path.stat().st_ino not in flushed})
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(os, "replace", noting_replace)
    merge_checkpoints(recipe([str(folder) for folder in models]), tmp_path / "out")
    assert missing == [set()]
    assert (tmp_path / "out" / "additional_chat_templates" / "tool.jinja").is_file()
