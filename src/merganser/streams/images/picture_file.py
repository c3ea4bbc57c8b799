"""The images that a run directory stores: one safetensors file per task."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from merganser.files.safetensors_file import read_header
from merganser.streams.images.picture import Picture


def write_pictures(file: Path, pictures: Iterable[Picture]) -> None:
    """Write images to a safetensors file, equal ones once.

    A tensor holds the bytes of one encoded image, and its name is their SHA-256.
    """
    save_file({picture.sha256: np.frombuffer(picture.read(), dtype=np.uint8) for picture in pictures}, file)


def read_pictures(file: Path) -> dict[str, Picture]:
    """Return the images in a file of :func:`write_pictures` by SHA-256; their bytes are read when they are decoded.

    Raises:
        InputError: the file is damaged.
    """
    tensors, _ = read_header(file)
    return {t.name: Picture(t.name, path=file, offset=t.offset, size=t.nbytes) for t in tensors}
