"""Decoding of one image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from merganser.errors import InputError
from merganser.streams.images.picture import Picture
from merganser.streams.loading import load_task
from merganser.streams.task_options import TaskOptions


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_grey_of_sixteen_bits_keeps_its_shades(mode: str, tmp_path: Path) -> None:
    shades = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(shades).save(tmp_path / "deep.png")
    (tmp_path / "deep.pgm").write_bytes(b"P5\n8 8\n65535\n" + shades.astype(">u2").tobytes())
    for name in ("deep.png", "deep.pgm"):
        picture = Picture(name, path=tmp_path / name)
        picture.check()
        pixels = np.asarray(picture.decode(mode)).reshape(8, 8, -1)[..., 0]
        np.testing.assert_array_equal(pixels, np.round(shades / 257))


def test_pixels_of_unknown_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "odd.tiff")
    (tmp_path / "list.csv").write_text("file,kind\nodd.tiff,cat\n")
    with pytest.raises(InputError, match=r"odd\.tiff has pixels of 32 bits"):
        load_task(TaskOptions(name="t", train="list.csv", image="file", output="kind"), tmp_path)


def test_a_part_of_a_file_is_an_image(tmp_path: Path) -> None:
    (tmp_path / "two").write_bytes(b"P5\n1 1\n255\n\x07P5\n1 1\n255\n\x09")
    part = Picture("second", path=tmp_path / "two", offset=12, size=12)
    assert np.asarray(part.decode("L")).tolist() == [[9]]
