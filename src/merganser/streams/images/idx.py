"""The IDX format of MNIST: arrays of images and of labels in two files."""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from merganser.errors import InputError
from merganser.files.documents import read_bytes
from merganser.streams.formats import missing_file

if TYPE_CHECKING:
    import numpy as np


UNPACKED_BYTES, BYTES_PER_BYTE = 1 << 28, 200
"""Bytes that a packed file may hold: this many, or this many per byte of the file, whichever is more."""


def read_idx(path: Path, shown: str) -> tuple[np.ndarray, str]:
    """Read an IDX file of unsigned bytes, compressed with gzip or not.

    The format is described beside MNIST (LeCun): two zero bytes, the type (8: unsigned byte), the number of
    dimensions, the dimensions as big-endian 32-bit numbers, the values.

    Args:
        path: the file.
        shown: its name in messages.

    Returns:
        The array, and the SHA-256 of the uncompressed file.

    Raises:
        InputError: a missing or truncated file, or one of another format or type.
    """
    import numpy as np

    try:
        content = read_bytes(path)
        if content[:2] == b"\x1f\x8b":
            content = _unpacked(content, shown)
    except FileNotFoundError as error:
        raise missing_file(path, shown) from error
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{shown}: cannot be unpacked or read: {reason}.", "Fetch the file again.") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise InputError(f"{shown}: is not an IDX file of unsigned bytes.", "Give a file in MNIST's format.")
    start = 4 + 4 * content[3]
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4))
    if len(content) != start + math.prod(shape):
        raise InputError(
            f"{shown}: its header announces {math.prod(shape)} bytes of values, and it has {len(content) - start}.",
            "The file is truncated or damaged: fetch it again.",
        )
    try:
        array = np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)
    except ValueError as error:  # no values, in more dimensions or longer ones than an array can have
        raise InputError(
            f"{shown}: its header announces {len(shape)} dimensions: {error}.", "Fetch it again."
        ) from error
    return array, hashlib.sha256(content).hexdigest()


def _unpacked(content: bytes, shown: str) -> bytes:
    most = max(UNPACKED_BYTES, BYTES_PER_BYTE * len(content))
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        unpacked = file.read(most + 1)
    if len(unpacked) > most:
        raise InputError(f"{shown}: unpacks to more than {most:,} bytes, far more than its own size.", "Unpack it.")
    return unpacked
