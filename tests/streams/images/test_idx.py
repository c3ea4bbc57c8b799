"""IDX files, alone and as tasks."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from merganser.errors import InputError
from merganser.streams.images.idx import read_idx
from merganser.streams.loading import load_task
from merganser.streams.task_options import TaskOptions
from tests.streams.images.idx_bytes import idx


def test_idx_files_become_examples_with_named_classes(idx_files: Path) -> None:
    options = TaskOptions(name="t", train="train-images-idx3-ubyte.gz", classes=["zero", "one", "two"])
    task = load_task(options, idx_files)
    assert task.spec.labels == ("one", "two", "zero")
    assert [example.output for example in task.train[:4]] == ["zero", "one", "two", "zero"]
    image = task.train[5].image
    assert image is not None
    assert np.array_equal(np.asarray(image.decode("L")), np.full((4, 4), 5))
    assert task.train[5].input == "train-images-idx3-ubyte.gz, image 6"
    assert task.spec.metric == "accuracy"


def test_idx_files_packed_or_not_are_the_same_task(idx_files: Path) -> None:
    packed = load_task(TaskOptions(name="t", train="train-images-idx3-ubyte.gz"), idx_files)
    for file in list(idx_files.iterdir()):
        (idx_files / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    plain = load_task(TaskOptions(name="t", train="train-images-idx3-ubyte"), idx_files)
    assert plain.fingerprint() == packed.fingerprint()
    assert plain.spec.labels == ("0", "1", "2")


def test_bad_idx_files_are_refused(idx_files: Path) -> None:
    images, labels = idx_files / "train-images-idx3-ubyte.gz", idx_files / "train-labels-idx1-ubyte.gz"
    options = TaskOptions(name="t", train=images.name)
    with pytest.raises(InputError, match=r"label 2, but 'classes' has 2 names"):
        load_task(TaskOptions(name="t", train=images.name, classes=["a", "b"]), idx_files)
    whole = images.read_bytes()
    images.write_bytes(gzip.compress(gzip.decompress(whole)[:-5]))
    with pytest.raises(InputError, match="announces 192 bytes of values, and it has 187"):
        load_task(options, idx_files)
    images.write_bytes(whole[:-9])
    with pytest.raises(InputError, match="cannot be unpacked"):
        load_task(options, idx_files)
    images.write_bytes(b"something else")
    with pytest.raises(InputError, match="not an IDX file of unsigned bytes"):
        load_task(options, idx_files)
    images.write_bytes(whole)
    labels.write_bytes(gzip.compress(idx(np.arange(11) % 3)))
    with pytest.raises(InputError, match="12 images, but train-labels"):
        load_task(options, idx_files)
    labels.unlink()
    with pytest.raises(InputError, match=r"train-labels-idx1-ubyte\.gz: there is no such file"):
        load_task(options, idx_files)


def test_idx_of_colours(tmp_path: Path) -> None:
    array = np.arange(2 * 3 * 4 * 3).reshape(2, 3, 4, 3)
    (tmp_path / "images-idx3-ubyte").write_bytes(idx(array))
    (tmp_path / "labels-idx1-ubyte").write_bytes(idx(np.array([0, 1])))
    read, _ = read_idx(tmp_path / "images-idx3-ubyte", "images")
    assert read.shape == (2, 3, 4, 3)
    task = load_task(TaskOptions(name="t", train="images-idx3-ubyte"), tmp_path)
    image = task.train[1].image
    assert image is not None
    assert np.array_equal(np.asarray(image.decode("RGB")), array[1])


def test_packed_files_that_stand_for_far_more_than_their_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("merganser.streams.images.idx.UNPACKED_BYTES", 1 << 16)
    path = tmp_path / "x-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(idx(np.zeros((1000, 28, 28)))))
    with pytest.raises(InputError, match=r"unpacks to more than .* bytes, far more than its own size"):
        read_idx(path, path.name)


@pytest.mark.parametrize("sizes", [[0] + [2**32 - 1] * 3, [0] + [1] * 69])
def test_dimensions_that_no_array_has(sizes: list[int], tmp_path: Path) -> None:
    """A size of zero hides the others from a check of the number of values."""
    header = b"\0\0\x08" + bytes([len(sizes)]) + b"".join(size.to_bytes(4, "big") for size in sizes)
    (tmp_path / "x").write_bytes(header)
    with pytest.raises(InputError, match=f"announces {len(sizes)} dimensions"):
        read_idx(tmp_path / "x", "x")
