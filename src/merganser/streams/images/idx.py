"""The IDX format of MNIST: arrays of images and of labels in two files."""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from merganser.errors import InputError
from merganser.streams.formats import missing_file

if TYPE_CHECKING:
    import numpy as np


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
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except FileNotFoundError as error:
        raise missing_file(path, shown) from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{shown}: cannot be unpacked or read: {error}.", "Fetch the file again.") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise InputError(f"{shown}: is not an IDX file of unsigned bytes.", "Give a file in MNIST's format.")
    start = 4 + 4 * content[3]
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4))
    if len(content) != start + math.prod(shape):
        raise InputError(
            f"{shown}: its header announces {math.prod(shape)} bytes of values, and it has {len(content) - start}.",
            "The file is truncated or damaged: fetch it again.",
        )
    array = np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)
    return array, hashlib.sha256(content).hexdigest()
