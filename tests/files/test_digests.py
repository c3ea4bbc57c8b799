from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from merganser.files import digests

OLD = 1_600_000_000


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MERGANSER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def by_hand(dtype: str, values: np.ndarray, piece: int) -> str:
    """The definition, written down again: type and shape, then the SHA-256 of each piece."""
    raw = values.tobytes()
    pieces = [hashlib.sha256(raw[i : i + piece]).digest() for i in range(0, len(raw), piece)]
    return hashlib.sha256(f"{dtype} {list(values.shape)}".encode() + b"".join(pieces)).hexdigest()


def test_every_byte_counts_and_the_division_into_files_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "PIECE", 64)
    a, b = np.arange(100, dtype=np.float32).reshape(4, 25), np.arange(7, dtype=np.int64)
    save_file({"a": a, "b": b, "none": np.zeros((0, 3), np.float32)}, tmp_path / "whole.safetensors")
    whole = digests.tensor_digests(tmp_path / "whole.safetensors")
    assert whole["a"] == by_hand("F32", a, 64)
    assert whole["b"] == by_hand("I64", b, 64)
    save_file({"b": b}, tmp_path / "part.safetensors")
    assert digests.tensor_digests(tmp_path / "part.safetensors") == {"b": whole["b"]}
    a[3, 24] += 1  # the last of 100 values
    save_file({"a": a}, tmp_path / "changed.safetensors")
    assert digests.tensor_digests(tmp_path / "changed.safetensors")["a"] != whole["a"]
    assert digests.combine([("x", "1"), ("y", "2")]) == digests.combine([("y", "2"), ("x", "1")])
    assert digests.combine([("x", "1"), ("y", "2")]) != digests.combine([("x", "2"), ("y", "1")])


def test_a_digest_is_remembered_until_the_file_changes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"first")
    assert digests.file_digest(file) == hashlib.sha256(b"first").hexdigest()
    assert not cache.exists()  # changed a moment ago: the next change might leave its times as they are
    os.utime(file, (OLD, OLD))
    assert digests.file_digest(file) == hashlib.sha256(b"first").hexdigest()
    with monkeypatch.context() as patched:
        patched.setattr(hashlib, "file_digest", None)  # not read again
        assert digests.file_digest(file) == hashlib.sha256(b"first").hexdigest()
    file.write_bytes(b"other")  # as long, and with the old time of change
    os.utime(file, (OLD, OLD))
    assert digests.file_digest(file) == hashlib.sha256(b"other").hexdigest()
    next((cache / "digests").iterdir()).write_text("{")  # damaged: computed again
    assert digests.file_digest(file) == hashlib.sha256(b"other").hexdigest()


def test_without_a_cache_it_is_computed_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "no-folder").write_text("")
    monkeypatch.setenv("MERGANSER_CACHE", str(tmp_path / "no-folder"))
    file = tmp_path / "model.gguf"
    file.write_bytes(b"first")
    os.utime(file, (OLD, OLD))
    assert digests.file_digest(file) == hashlib.sha256(b"first").hexdigest()
