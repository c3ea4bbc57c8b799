"""The safetensors format: read with every check that a merge relies on, and written in place.

A file is eight bytes (length of the header, little-endian), the header (JSON: tensor name -> type, shape, byte range;
and ``__metadata__``), and the tensors, contiguous and in row-major order. Reading checks everything a merge relies on
before a byte of a tensor is touched: a header cannot make the reader allocate more than the file is long.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merganser.errors import InputError
from merganser.files.documents import open_file

ITEM_SIZE: dict[str, int] = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
    "C64": 8,
}
"""Bytes per element of every type whose elements are whole bytes."""

FLOATING = ("F64", "F32", "F16", "BF16")
"""The types that rules work on."""

HEADER_LIMIT = 100_000_000
"""Longest header accepted, in bytes: the limit of the reference implementation."""

MOST_DIMENSIONS = 64
"""Of a tensor: what numpy can hold."""

LONGEST_NAME = 1000
"""Characters of a tensor's name: names are said in messages."""


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies.

    Attributes:
        name: its name.
        dtype: as the format spells it, for example ``BF16``.
        shape: its shape; ``()`` is a scalar.
        path: the file.
        offset: of its first byte in the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        return self.size * ITEM_SIZE[self.dtype]


def read_header(path: Path) -> tuple[list[Tensor], dict[str, str]]:
    """Return the tensors of a file in the order of their bytes, and its metadata.

    Raises:
        InputError: the file cannot be read, is truncated, or is not a valid safetensors file; the message names the
        file
            and what is wrong with it.
    """
    try:
        with open_file(path) as file:
            length = os.fstat(file.fileno()).st_size
            first = file.read(8)
            if len(first) < 8:
                raise _broken(path, f"it is {length} bytes long")
            header_length = int.from_bytes(first, "little")
            if header_length > HEADER_LIMIT:
                raise _broken(path, f"its header claims {header_length} bytes, more than the format allows")
            if header_length > length - 8:
                raise _broken(path, f"its header claims {header_length} bytes, the file has {length}")
            text = file.read(header_length)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.", "Check the path and its permissions.") from error
    header = _parse(path, text)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _broken(path, "its __metadata__ is not a map of strings")
    if not all(map(_is_text, (*metadata, *metadata.values()))):
        raise _broken(path, "its __metadata__ holds half a character (a lone surrogate)")
    return _laid_out(path, header, 8 + header_length, length), metadata


def _is_text(value: str) -> bool:
    """Return whether a text can be written: JSON's escapes can name half of a character."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _short(value: Any) -> str:
    """Shorten a value of the file for a message; it may be as long as the file."""
    if isinstance(value, list | dict) and (len(value) > 20 or any(isinstance(item, list | dict) for item in value)):
        return f"of {len(value)} entries"
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _broken(path: Path, what: str) -> InputError:
    return InputError(f"{path} is not a whole safetensors file: {what}.", "Download or save it again.")


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        unique = dict(pairs)
        if len(unique) != len(pairs):
            raise _broken(path, "a key appears twice in its header")
        return unique

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=no_duplicates)
    except (ValueError, RecursionError) as error:
        raise _broken(path, "its header is not valid JSON") from error
    if not isinstance(header, dict):
        raise _broken(path, "its header is not a JSON object")
    return header


def _laid_out(path: Path, header: Mapping[str, Any], start: int, length: int) -> list[Tensor]:
    """Return the tensors by position, after checking that their bytes fill the file, without holes or overlaps."""
    ranges: list[tuple[int, int, Tensor]] = []
    for name, entry in header.items():
        begin, end, tensor = _entry(path, name, entry, start, length)
        ranges.append((begin, end, tensor))
    ranges.sort(key=lambda item: (item[0], item[1]))
    position = 0
    for begin, end, tensor in ranges:
        if begin != position:
            raise _broken(path, f"the bytes of {tensor.name!r} begin at {begin} instead of {position}")
        position = end
    if start + position != length:
        raise _broken(path, f"its tensors need {start + position} bytes, the file has {length}")
    return [tensor for _, _, tensor in ranges]


def _entry(path: Path, name: str, entry: Any, start: int, length: int) -> tuple[int, int, Tensor]:
    what = f"the entry of tensor {_short(name)}"
    if len(name) > LONGEST_NAME:
        raise _broken(path, f"a tensor's name is {len(name)} characters long, more than {LONGEST_NAME}")
    if not _is_text(name):
        raise _broken(path, f"the name of tensor {name!r} holds half a character (a lone surrogate)")
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= set(entry):
        raise _broken(path, f"{what} lacks dtype, shape or data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_SIZE:
        raise InputError(
            f"Tensor {name!r} in {path} has type {_short(dtype)}.", f"Types that can be read: {', '.join(ITEM_SIZE)}."
        )
    if isinstance(shape, list) and len(shape) > MOST_DIMENSIONS:
        raise _broken(path, f"{what} has {len(shape)} dimensions, more than {MOST_DIMENSIONS}")
    if not _whole_numbers(shape):
        raise _broken(path, f"{what} has shape {_short(shape)}")
    if not _whole_numbers(offsets) or len(offsets) != 2:
        raise _broken(path, f"{what} has data_offsets {_short(offsets)}")
    begin, end = offsets
    # A product of absurd sizes is compared as a Python integer; nothing is allocated from it.
    if end < begin or end - begin != math.prod(shape) * ITEM_SIZE[dtype]:
        raise _broken(path, f"{what} has {end - begin} bytes for shape {_short(shape)} of {dtype}")
    if start + end > length:
        raise _broken(path, f"tensor {name!r} ends at byte {start + end}, the file has {length}")
    return begin, end, Tensor(name, dtype, tuple(shape), path, start + begin)


def _whole_numbers(values: Any) -> bool:
    """Return whether an array can have these sizes; larger integers would make the arithmetic on them slow."""
    return isinstance(values, list) and all(
        isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63 for value in values
    )


def header_bytes(
    tensors: Sequence[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, list[int]]:
    """Return a header for these ``(name, dtype, shape)`` in this order, and where in the file each tensor begins.

    The header is padded with spaces so that the tensors begin at a multiple of eight bytes.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    begins = []
    position = 0
    for name, dtype, shape in tensors:
        nbytes = math.prod(shape) * ITEM_SIZE[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + nbytes]}
        begins.append(position)
        position += nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, [start + begin for begin in begins]


def create(
    path: Path, tensors: Sequence[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> list[Tensor]:
    """Write the header of a new file and reserve the space of its tensors, which are then written in place.

    Returns:
        Where each tensor goes, in the order given.

    Raises:
        OSError: for example no space left: raised here, before anything was computed.
    """
    head, offsets = header_bytes(tensors, metadata)
    laid = [Tensor(n, d, s, path, o) for (n, d, s), o in zip(tensors, offsets, strict=True)]
    length = max([len(head), *(tensor.offset + tensor.nbytes for tensor in laid)])
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        written = os.pwrite(descriptor, head, 0)
        if written != len(head):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        reserve(descriptor, length)
    finally:
        os.close(descriptor)
    return laid


def reserve(descriptor: int, length: int) -> None:
    """Give a file its length and, where the file system can, its blocks.

    Raises:
        OSError: no space left, or a limit on the size of files.
    """
    try:
        os.posix_fallocate(descriptor, 0, length)
    except AttributeError:
        os.ftruncate(descriptor, length)
    except OSError as error:
        # Some file systems know no reservation; the space was compared with what is free before.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP):
            raise
        os.ftruncate(descriptor, length)
