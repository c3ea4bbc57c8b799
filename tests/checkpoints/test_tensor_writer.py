"""Writing tensors in blocks, past the page cache and through it."""

from __future__ import annotations

import errno
import fcntl
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
from merganser.files.safetensors_file import read_header
from tests.checkpoints.conftest import write_folder


def can_write_directly(folder: Path) -> bool:
    """Whether files in a folder can be written by direct I/O."""
    path, files = folder / "tried", Files()
    path.touch()
    with open_result(files, path, bool(getattr(os, "O_DIRECT", 0))) as opened:
        found = opened.direct is not None
    files.close()
    return found


def is_direct(descriptor: int) -> bool:
    """Whether a descriptor writes by direct I/O."""
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)


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
    got = written(tmp_path / "file", 5, [[3 * PAGE, 10]], True)
    monkeypatch.undo()
    assert got == written(tmp_path / "plain", 5, [[3 * PAGE, 10]], False)


PARTS = [[3 * PAGE, BLOCK_BYTES, 10], [7], [PAGE, BLOCK_BYTES - 9]]


def test_whole_pages_are_written_directly_and_the_ends_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not can_write_directly(tmp_path):
        pytest.skip("this file system writes through the page cache")
    real, places = os.pwrite, {True: set[int](), False: set[int]()}

    def recorded(descriptor: int, view: memoryview, offset: int) -> int:
        pages = range(offset // PAGE, -(-(offset + len(view)) // PAGE))
        places[is_direct(descriptor)] |= set(pages)
        return real(descriptor, view, offset)

    monkeypatch.setattr(os, "pwrite", recorded)
    written(tmp_path / "file", 5, PARTS, True)
    assert len(places[True]) > 2 * BLOCK_BYTES // PAGE - 8
    assert 0 < len(places[False]) <= 8
    assert not places[True] & places[False]  # no page in both ways


@pytest.mark.parametrize("short", [False, True])
def test_a_file_system_that_cannot_when_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: bool
) -> None:
    """Refused at once, or after a part of a block."""
    if not can_write_directly(tmp_path):
        pytest.skip("this file system writes through the page cache")
    expected = written(tmp_path / "plain", 5, PARTS, False)
    real, calls = os.pwrite, []

    def refusing(descriptor: int, view: memoryview, offset: int) -> int:
        if not is_direct(descriptor):
            return real(descriptor, view, offset)
        calls.append(offset)
        if short and len(calls) % 2:
            return real(descriptor, view[:PAGE], offset)
        raise OSError(errno.EINVAL, "not here")

    monkeypatch.setattr(os, "pwrite", refusing)
    assert written(tmp_path / "file", 5, PARTS, True) == expected
    assert calls


@pytest.mark.parametrize("direct", [True, False])
def test_other_failures_are_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct: bool) -> None:
    def full(descriptor: int, view: memoryview, offset: int) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="full"):
        written(tmp_path / "file", 0, [[2 * PAGE]], direct)


@pytest.mark.parametrize("kernels", ["numba", "numpy"])
@pytest.mark.parametrize("rule", ["linear", "ties", "karcher"])
def test_merges_are_the_same_bytes_by_direct_io(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str, kernels: str
) -> None:
    if kernels == "numba":
        pytest.importorskip("numba", reason="the compiled kernels need numba: pip install 'merganser[speed]'")
    generator = np.random.default_rng(3)
    # Small tensors share pages, and those behind the odd bytes of a mask begin at an odd place.
    small = {f"s.{number}.weight": (1 + 61 * number,) for number in range(60)}
    shapes = {"a.weight": (300, 70), "b.mask": (7,), "c.weight": (90, 1001), "d.weight": (3,)} | small
    names = []
    for name in "xyb":
        tensors = {
            key: np.arange(7) % 2 == 0 if key == "b.mask" else generator.normal(size=shape).astype(np.float32)
            for key, shape in shapes.items()
        }
        names.append(str(write_folder(tmp_path / name, tensors, dtype="BF16")))
    content = {"rule": rule, "models": names[:2]} | ({"base": names[2]} if rule == "ties" else {})
    merged = []
    for number, (direct_from, threads) in enumerate([(1 << 60, 1), (0, 4)]):
        monkeypatch.setattr(tensor_writer, "DIRECT_FROM", direct_from)
        merge_checkpoints(parse(content, "test"), tmp_path / str(number), kernels=kernels, threads=threads)
        merged.append(tmp_path / str(number) / "model.safetensors")
    assert any(tensor.offset % 2 for tensor in read_header(merged[0])[0])
    assert merged[0].read_bytes() == merged[1].read_bytes()
