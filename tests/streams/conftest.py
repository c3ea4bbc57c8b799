"""Images of a few pixels, as IDX files and in a folder."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.streams.images.idx_bytes import idx


@pytest.fixture
def idx_files(tmp_path: Path) -> Path:
    """Twelve images of 4 x 4 of the classes 0 to 2, packed; every pixel of image i is i."""
    images = np.repeat(np.arange(12), 16).reshape(12, 4, 4)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.arange(12) % 3)))
    return tmp_path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two classes of three images each."""
    for label, shade in (("cat", 20), ("dog", 200)):
        (tmp_path / "pets" / label).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (6, 4), (shade + i, 0, 0)).save(tmp_path / "pets" / label / f"{i}.png")
    return tmp_path
