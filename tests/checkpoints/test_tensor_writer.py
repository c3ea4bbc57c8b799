"""Writing tensors in blocks, past the page cache and through it."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merganser.checkpoints import tensor_writer
from merganser.checkpoints.merge import merge_checkpoints
from merganser.checkpoints.recipe_file import parse
from merganser.checkpoints.streaming import Files
from merganser.checkpoints.tensor_writer import BLOCK_BYTES, PAGE, TensorWriter, open_result
from tests.checkpoints.conftest import write_folder

SIZES = st.one_of(st.integers(0, 3 * PAGE), st.integers(BLOCK_BYTES - 3, BLOCK_BYTES))


def written(path: Path, first: int, tensors: list[list[int]], direct: bool) -> bytes:
    """Write tensors of parts of these sizes one behind the other, and return the whole file."""
    path.write_bytes(b"h" * first)
    generator = np.random.default_rng(0)
    files, writer, offset = Files(), TensorWriter(), first
    for parts in tensors:
        with open_result(files, path, direct) as opened, writer.tensor(opened, offset):
            for number, size in enumerate(parts):
                values = generator.integers(0, 256, size, dtype=np.uint8)
                if number % 2:
                    writer.write(values)
                else:
                    writer.room(size)[:] = values
                    writer.filled(size)
                offset += size
    files.close()
    return path.read_bytes()


@settings(max_examples=30, deadline=None)
@given(first=st.integers(0, 2 * PAGE), tensors=st.lists(st.lists(SIZES, max_size=5), max_size=4))
def test_the_bytes_are_those_given_past_the_cache_or_not(first: int, tensors: list[list[int]]) -> None:
    generator = np.random.default_rng(0)
    sizes = [size for parts in tensors for size in parts]
    expected = b"h" * first + b"".join(generator.integers(0, 256, size, dtype=np.uint8).tobytes() for size in sizes)
    with tempfile.TemporaryDirectory() as folder:
        for direct in (True, False):
            assert written(Path(folder) / "file", first, tensors, direct) == expected


def test_an_array_longer_than_a_block_is_written_whole(tmp_path: Path) -> None:
    values = np.arange(BLOCK_BYTES, dtype=np.int32)
    path = tmp_path / "file"
    path.touch()
    files, writer = Files(), TensorWriter()
    with open_result(files, path, True) as opened, writer.tensor(opened, 24):
        writer.write(values)
    files.close()
    assert path.read_bytes() == bytes(24) + values.tobytes()


def test_a_file_system_that_cannot_when_the_file_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    direct_flag = getattr(os, "O_DIRECT", 1 << 14)
    monkeypatch.setattr(tensor_writer, "_DIRECT", direct_flag)
    real = os.open

    def refusing(path: Path, flags: int) -> int:
        if flags & direct_flag:
            raise OSError(errno.EINVAL, "not here")
        return real(path, flags)

    monkeypatch.setattr(os, "open", refusing)
    assert len(written(tmp_path / "file", 5, [[3 * PAGE, 10]], True)) == 5 + 3 * PAGE + 10


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="this system always writes through the page cache")
def test_a_file_system_that_cannot_when_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = written(tmp_path / "plain", 5, [[3 * PAGE, BLOCK_BYTES, 10], [7]], False)
    (tmp_path / "refused").touch()
    refused = []
    real = os.pwrite

    def refusing(descriptor: int, view: memoryview, offset: int) -> int:
        if len(view) >= PAGE and len(view) % PAGE == 0 and not refused:
            refused.append(offset)
            raise OSError(errno.EINVAL, "not here")
        return real(descriptor, view, offset)

    monkeypatch.setattr(os, "pwrite", refusing)
    assert written(tmp_path / "file", 5, [[3 * PAGE, BLOCK_BYTES, 10], [7]], True) == expected
    assert refused


@pytest.mark.parametrize("direct", [True, False])
def test_other_failures_are_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct: bool) -> None:
    def full(descriptor: int, view: memoryview, offset: int) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="full"):
        written(tmp_path / "file", 0, [[2 * PAGE]], direct)


@pytest.mark.parametrize("kernels", ["numba", "numpy"])
@pytest.mark.parametrize("rule", ["linear", "ties", "karcher"])
def test_merges_are_the_same_bytes_past_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str, kernels: str
) -> None:
    if kernels == "numba":
        pytest.importorskip("numba", reason="the compiled kernels need numba: pip install 'merganser[speed]'")
    generator = np.random.default_rng(3)
    # The second tensor has an odd number of bytes, so that the numbers behind it begin at an odd place.
    shapes = {"a.weight": (300, 70), "b.mask": (7,), "c.weight": (90, 1001), "d.weight": (3,)}
    names = []
    for name in "xyb":
        tensors = {
            key: np.arange(7) % 2 == 0 if key == "b.mask" else generator.normal(size=shape).astype(np.float32)
            for key, shape in shapes.items()
        }
        names.append(str(write_folder(tmp_path / name, tensors, dtype="BF16")))
    content = {"rule": rule, "models": names[:2]} | ({"base": names[2]} if rule == "ties" else {})
    merged = []
    for number, direct_from in enumerate((1 << 60, 0)):
        monkeypatch.setattr(tensor_writer, "DIRECT_FROM", direct_from)
        merge_checkpoints(parse(content, "test"), tmp_path / str(number), kernels=kernels, threads=2)
        merged.append((tmp_path / str(number) / "model.safetensors").read_bytes())
    assert merged[0] == merged[1]
