"""Machine code is kept on disk, loaded without numba, and trusted only when it is whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

compiled: Any = pytest.importorskip(
    "merganser.checkpoints.compiled", reason="numba is not installed", exc_type=ImportError
)

CALL = """
import sys
import numpy as np
from merganser.checkpoints import compiled
rows = np.array([[1.0, 2.0, 3.0], [3.0, 6.0, 9.0]], np.float32)
out = np.empty(3, np.float32)
assert not compiled.combine(rows, 3, np.array([0.5, 0.5], np.float32), False, out)
assert out.tolist() == [2.0, 4.0, 6.0], out
print("numba" in sys.modules, "torch" in sys.modules)
"""


def call(cache: Path) -> str:
    """Whether a process of its own, with this cache, imported numba and torch."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    done = subprocess.run([sys.executable, "-c", CALL], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("cache")
    assert call(cache) == "True False"
    return cache


def test_the_second_process_loads_what_the_first_compiled(filled: Path) -> None:
    assert call(filled) == "False False"
    assert [path.suffix for path in (filled / "merganser" / "kernels").iterdir()] == [".o"]


@pytest.mark.parametrize("damage", ["cut off", "changed", "empty", "writable by others"])
def test_damaged_code_is_not_run(damage: str, filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(filled))
    (path,) = (filled / "merganser" / "kernels").iterdir()
    whole = path.read_bytes()
    assert compiled._stored("combine", "float32", "float32") == whole[32:]
    try:
        if damage == "writable by others":
            path.chmod(0o666)
        else:
            broken = {"cut off": whole[:-5], "changed": whole[:-5] + b"\0" * 5 + whole[-4:], "empty": b""}
            path.write_bytes(broken[damage])
        assert compiled._stored("combine", "float32", "float32") is None
    finally:
        path.write_bytes(whole)
        path.chmod(0o600)


def test_a_cache_that_cannot_be_written_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    compiled._store("combine", "float32", "float32", b"code")
    assert compiled._stored("combine", "float32", "float32") is None


def test_other_types_and_sizes_than_a_kernel_was_made_for() -> None:
    """The address is of the first byte of contiguous memory; anything else is a mistake of the caller."""
    with pytest.raises(AssertionError):
        compiled._at(np.zeros((4, 4), np.float32)[:, ::2])
