"""The file in which a run directory stores images."""

from __future__ import annotations

from pathlib import Path

from merganser.streams.images.picture_file import read_pictures, write_pictures
from merganser.streams.loading import load_task
from merganser.streams.task_options import TaskOptions


def test_a_run_keeps_images_in_one_file(folder: Path, tmp_path: Path) -> None:
    task = load_task(TaskOptions(name="pets", train="pets"), folder)
    pictures = [example.image for example in task.train if example.image is not None]
    write_pictures(tmp_path / "images.safetensors", [*pictures, pictures[0]])
    found = read_pictures(tmp_path / "images.safetensors")
    assert sorted(found) == sorted(picture.sha256 for picture in pictures)
    for picture in pictures:
        kept = found[picture.sha256]
        assert kept.data is None
        assert kept.read() == picture.read()
        assert kept.nbytes == picture.nbytes == len(picture.read())
