"""The reader of headers: no file makes it crash or allocate more than the file is long."""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from merganser.errors import InputError
from merganser.files.safetensors_file import ITEM_SIZE, create, read_header
from tests.checkpoints.conftest import write_file

FUZZ = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def with_header(path: Path, header: Any, body: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def refusal(path: Path, otherwise: str) -> str:
    """What the reader says against a file; ``otherwise`` where it reads it. Any other error is a failure."""
    try:
        read_header(path)
    except InputError as error:
        return str(error)
    return otherwise


def test_it_reads_what_the_reference_writes(tmp_path: Path) -> None:
    tensors = {
        "a": np.ones((2, 3), np.float32),
        "b": np.arange(4),
        "c": np.zeros((0, 5), np.float16),
        "d": np.array(1.0),
    }
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    found, metadata = read_header(tmp_path / "x.safetensors")
    assert metadata == {"format": "pt"}
    assert {t.name: (t.dtype, t.shape) for t in found} == {
        "a": ("F32", (2, 3)),
        "b": ("I64", (4,)),
        "c": ("F16", (0, 5)),
        "d": ("F64", ()),
    }


def test_the_reference_reads_what_it_writes(tmp_path: Path) -> None:
    tensors = {"a.weight": np.ones((2, 3), np.float32), "ü": np.arange(4), "empty": np.zeros((0, 5), np.float32)}
    read = safetensors.numpy.load_file(write_file(tmp_path / "x.safetensors", tensors))
    assert set(read) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(read[name], tensor)


@pytest.mark.parametrize(
    ("header", "body", "message"),
    [
        (b"not json", b"", "not valid JSON"),
        (b"[" * 100_000, b"", "not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", b"", "JSON"),
        (b'{"a":1,"a":2}', b"", "twice"),
        (b"[]", b"", "not a JSON object"),
        ({"__metadata__": {"a": 1}}, b"", "map of strings"),
        ({"a": 3}, b"", "lacks dtype"),
        ({"a": {"dtype": "F32", "shape": [2]}}, b"", "lacks dtype"),
        ({"a": entry(dtype="Q4")}, b"12345678", "type 'Q4'"),
        ({"a": entry(dtype=["F32"])}, b"12345678", "has type"),
        ({"a": entry(shape=[-1])}, b"12345678", "shape"),
        ({"a": entry(shape=[1.0])}, b"12345678", "shape"),
        ({"a": entry(shape=[True, 2])}, b"12345678", "shape"),
        ({"a": entry(shape=[10**18, 10**18])}, b"12345678", "8 bytes for shape"),
        ({"a": entry(offsets=[8, 0])}, b"12345678", "bytes for shape"),
        ({"a": entry(offsets=[0])}, b"12345678", "data_offsets"),
        ({"a": entry(offsets=[4, 12])}, b"12345678" * 2, "begin at 4 instead of 0"),
        ({"a": entry(), "b": entry()}, b"12345678", "begin at 0 instead of 8"),
        ({"a": entry()}, b"1234", "the file has"),
        ({"a": entry()}, b"12345678-", "the file has"),
        ({"a": entry(shape=[1] * 65)}, b"12345678", "65 dimensions, more than 64"),
        ({"a": entry(shape=[1 << 63, 0], offsets=[0, 0])}, b"", "shape"),
        (b'{"a\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"1234", "lone surrogate"),
        (b'{"__metadata__":{"x":"\\ud800"}}', b"", "lone surrogate"),
        ({"n" * 1001: entry()}, b"12345678", "1001 characters long"),
    ],
)
def test_what_is_wrong_is_said(header: Any, body: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_header(with_header(tmp_path / "x.safetensors", header, body))


def test_a_header_longer_than_the_file_is_not_allocated(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes((99_000_000).to_bytes(8, "little") + b"{}")
    tracemalloc.start()
    with pytest.raises(InputError, match="claims 99000000 bytes"):
        read_header(path)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    path.write_bytes((1 << 63).to_bytes(8, "little") + b"{}")
    with pytest.raises(InputError, match="more than the format allows"):
        read_header(path)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [9_999_999] * 200_000},
        {"shape": [int("9" * 4000)] * 60},
        {"shape": "x" * 1_000_000},
        {"dtype": ["F32"] * 100_000},
        {"data_offsets": [0] * 100_000},
        {"data_offsets": [[[0] * 1000] * 100]},
    ],
)
def test_hostile_entries_are_refused_at_once_and_in_few_words(change: dict[str, Any], tmp_path: Path) -> None:
    header = {f"a{i}": {**entry(offsets=[0, 8]), **change} for i in range(2)}
    path = with_header(tmp_path / "x.safetensors", header, b"12345678")
    started = time.process_time()
    with pytest.raises(InputError) as caught:
        read_header(path)
    assert time.process_time() - started < 5.0
    assert len(str(caught.value)) < 600 + len(str(path))


@FUZZ
@given(st.binary(max_size=300))
def test_any_bytes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    assert "x.safetensors" in refusal(path, "x.safetensors")


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(list(ITEM_SIZE)) | values,
        "shape": st.lists(st.integers(-2, 2**66), max_size=3) | values,
        "data_offsets": st.lists(st.integers(-2, 2**66), min_size=2, max_size=2) | values,
    }
)


@FUZZ
@given(st.dictionaries(st.text(max_size=4), entries | values, max_size=3), st.binary(max_size=40))
def test_any_header(tmp_path: Path, header: Any, body: bytes) -> None:
    path = with_header(tmp_path / "x.safetensors", header, body)
    message = refusal(path, "")
    assert "x.safetensors" in message if message else sum(t.nbytes for t in read_header(path)[0]) == len(body)


@FUZZ
@given(st.integers(0, 400), st.integers(0, 255))
def test_any_flipped_byte(tmp_path: Path, position: int, value: int) -> None:
    """A whole file with one byte changed is read, or refused with its name."""
    path = tmp_path / "x.safetensors"
    path.unlink(missing_ok=True)
    write_file(path, {"a.weight": np.ones((3, 4), np.float32), "b": np.arange(3)})
    content = bytearray(path.read_bytes())
    content[position % len(content)] = value
    path.write_bytes(bytes(content))
    message = refusal(path, "")
    ends = [] if message else [t.offset + t.nbytes for t in read_header(path)[0]]
    assert "x.safetensors" in message if message else max(ends) == len(content)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_header(tmp_path / "none.safetensors")


def test_no_file_is_overwritten(tmp_path: Path) -> None:
    path = write_file(tmp_path / "x.safetensors", {"a": np.ones(2, np.float32)})
    with pytest.raises(FileExistsError):
        create(path, [("a", "F32", (2,))], {})
