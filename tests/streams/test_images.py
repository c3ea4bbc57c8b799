"""Image sources, and the file a run keeps images in."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from merganser.errors import InputError
from merganser.streams.images import Picture, read_idx, read_pictures, write_pictures
from merganser.streams.loading import load_stream, load_task
from merganser.streams.memory import memory_bytes
from merganser.streams.options import StreamOptions, TaskOptions


def idx(array: np.ndarray) -> bytes:
    """An array of unsigned bytes in the IDX format."""
    shape = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + shape + array.astype(np.uint8).tobytes()


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


def test_idx_files_become_examples_with_named_classes(idx_files: Path) -> None:
    options = TaskOptions(name="t", train="train-images-idx3-ubyte.gz", classes=["zero", "one", "two"])
    task = load_task(options, idx_files)
    assert task.labels == ("one", "two", "zero")
    assert [example.output for example in task.train[:4]] == ["zero", "one", "two", "zero"]
    assert task.has_images
    image = task.train[5].image
    assert image is not None
    assert np.array_equal(np.asarray(image.decode("L")), np.full((4, 4), 5))
    assert task.train[5].input == "train-images-idx3-ubyte.gz, image 6"
    assert task.metric == "accuracy"


def test_idx_files_packed_or_not_are_the_same_task(idx_files: Path) -> None:
    packed = load_task(TaskOptions(name="t", train="train-images-idx3-ubyte.gz"), idx_files)
    for file in list(idx_files.iterdir()):
        (idx_files / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    plain = load_task(TaskOptions(name="t", train="train-images-idx3-ubyte"), idx_files)
    assert plain.fingerprint() == packed.fingerprint()
    assert plain.labels == ("0", "1", "2")


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


def test_a_folder_has_a_class_per_sub_folder(folder: Path) -> None:
    task = load_task(TaskOptions(name="pets", train="pets", test="pets"), folder)
    assert task.labels == ("cat", "dog")
    assert [example.output for example in task.train] == ["cat"] * 3 + ["dog"] * 3
    assert task.train[4].input == "pets/dog/1.png"
    assert memory_bytes(task.train[:1]) == len("pets/cat/0.pngcat") + (folder / "pets/cat/0.png").stat().st_size


def test_bad_folders_are_refused(folder: Path) -> None:
    options = TaskOptions(name="pets", train="pets")
    (folder / "pets/dog/1.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"pets/dog/1\.png is not an image"):
        load_task(options, folder)
    for file in (folder / "pets/dog").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="pets/dog: has no images"):
        load_task(options, folder)
    with pytest.raises(InputError, match="pets/cat: has no sub-folders"):
        load_task(TaskOptions(name="pets", train="pets/cat"), folder)
    with pytest.raises(InputError, match="'classes' names"):
        load_task(TaskOptions(name="pets", train="pets", classes=["a", "b"]), folder)


def test_a_table_names_paths_or_holds_images(folder: Path) -> None:
    (folder / "list.csv").write_text("file,kind\npets/cat/0.png,cat\npets/dog/0.png,dog\n")
    options = TaskOptions(name="t", train="list.csv", image="file", output="kind")
    listed = load_task(options, folder)
    data = [(folder / f"pets/{kind}/0.png").read_bytes() for kind in ("cat", "dog")]
    table = pyarrow.table({"img": [{"bytes": each, "path": None} for each in data], "kind": ["cat", "dog"]})
    pyarrow.parquet.write_table(table, folder / "t.parquet")
    packed = load_task(TaskOptions(name="t", train="t.parquet", image="img", output="kind"), folder)
    assert packed.fingerprint() == listed.fingerprint()
    (folder / "list.csv").write_text("file,kind\npets/cat/0.png,cat\npets/dog/9.png,dog\n")
    with pytest.raises(InputError, match=r"pets/dog/9\.png: there is no such file"):
        load_task(options, folder)
    with pytest.raises(ValueError, match="also an 'input' or a 'prompt'"):
        TaskOptions(name="t", train="list.csv", image="file", prompt="Look: {input}")


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


def split(**values: object) -> StreamOptions:
    base = {"train": "train-images-idx3-ubyte.gz", "classes": ["zero", "one", "two"]}
    return StreamOptions.model_validate({"split": {**base, **values}})


def test_a_split_gives_each_task_some_classes(idx_files: Path) -> None:
    stream = load_stream(split(classes_per_task=2, test_share=0.25), idx_files)
    assert [task.name for task in stream.tasks] == ["classes-01", "classes-02"]
    assert [task.labels for task in stream.tasks] == [("zero", "one"), ("two",)]
    first = stream.tasks[0]
    assert len(first.train) == 6
    assert len(first.test) == 2
    assert {example.output for example in first.test} == {"zero", "one"}
    names = [example.input for task in stream.tasks for part in (task.train, task.test) for example in part]
    assert len(set(names)) == 12


def test_the_order_of_classes_is_listed_read_or_drawn(idx_files: Path) -> None:
    def order(**values: object) -> list[str]:
        stream = load_stream(split(classes_per_task=1, **values), idx_files)
        return [label for task in stream.tasks for label in task.labels or ()]

    assert order() == ["zero", "one", "two"]
    assert order(order=["two", "zero", "one"]) == ["two", "zero", "one"]
    (idx_files / "order.txt").write_text("one\ntwo\nzero\n")
    assert order(order="order.txt") == ["one", "two", "zero"]
    assert order(exclude=["one"]) == ["zero", "two"]
    drawn = [tuple(order(order_seed=seed)) for seed in range(6)]
    assert drawn == [tuple(order(order_seed=seed)) for seed in range(6)]
    assert len(set(drawn)) > 1
    for wrong, message in (
        ({"order": ["two", "zero"]}, "lacks 1 of the classes, first 'one'"),
        ({"order": ["two", "zero", "zero", "one"]}, "'zero' is there twice"),
        ({"order": ["two", "zero", "ten"]}, "there is no class 'ten'"),
        ({"order": "absent.txt"}, "there is no such file"),
        ({"exclude": ["tow"]}, "there is no class 'tow'"),
        ({"exclude": ["zero", "one", "two"]}, "leaves no class"),
    ):
        with pytest.raises(InputError, match=message):
            order(**wrong)


def test_a_split_into_a_number_of_tasks(idx_files: Path) -> None:
    stream = load_stream(split(tasks=2, prefix="t"), idx_files)
    assert [(task.name, task.labels) for task in stream.tasks] == [("t-01", ("zero", "one")), ("t-02", ("two",))]
    with pytest.raises(InputError, match="4 tasks for 3 classes"):
        load_stream(split(tasks=4), idx_files)
    with pytest.raises(InputError, match="neither 'tasks' nor"):
        load_stream(split(), idx_files)


def test_a_split_of_texts(tmp_path: Path) -> None:
    rows = "\n".join(f"text {i},{label}" for i in range(4) for label in "abcd")
    (tmp_path / "t.csv").write_text(f"input,output\n{rows}\n")
    values = {"train": "t.csv", "classes_per_task": 2, "labels": {label: f"letter {label}" for label in "abcd"}}
    stream = load_stream(StreamOptions.model_validate({"split": values, "limit": 6}), tmp_path)
    assert [task.labels for task in stream.tasks] == [("a", "b"), ("c", "d")]
    assert stream.tasks[1].label_text("c") == "letter c"
    assert [len(task.train) for task in stream.tasks] == [6, 6]


def test_a_built_in_set_reads_a_folder(tmp_path: Path) -> None:
    labels = [f"kind-{i:02d}" for i in range(100)]
    for part in ("train", "test"):
        for label in labels:
            (tmp_path / part / label).mkdir(parents=True)
            Image.new("L", (4, 4)).save(tmp_path / part / label / "0.png")
    options = StreamOptions.model_validate({"name": "cifar100-5", "folder": ".", "split": {"order_seed": 1}})
    stream = load_stream(options, tmp_path)
    assert [task.name for task in stream.tasks] == [f"cifar100-5-{i:02d}" for i in range(1, 6)]
    assert sorted(label for task in stream.tasks for label in task.labels or ()) == labels
    again = {"name": "cifar100-5", "folder": ".", "split": {"classes_per_task": 40, "order": list_of(stream)}}
    assert len(load_stream(StreamOptions.model_validate(again), tmp_path).tasks) == 3
    shutil.rmtree(tmp_path / "train" / "kind-07")
    with pytest.raises(InputError, match=r"is a stream of 100 classes, and \./train has 99"):
        load_stream(options, tmp_path)


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


def test_a_folder_that_is_not_there(folder: Path) -> None:
    with pytest.raises(InputError, match=r"pest: there is no such file or folder\. Did you mean 'pets'"):
        load_task(TaskOptions(name="pets", train="pest"), folder)


def list_of(stream: object) -> list[str]:
    return [label for task in stream.tasks for label in task.labels]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"split": {"classes_per_task": 2}}, "'split' needs 'train'"),
        ({"split": {"train": "x", "tasks": 2, "classes_per_task": 2}}, "gives both 'tasks' and 'classes_per_task'"),
        ({"split": {"train": "x", "order": ["a"], "order_seed": 1}}, "gives both 'order' and 'order_seed'"),
        ({"split": {"train": "x", "test": "y", "test_share": 0.1}}, "gives both 'test' and 'test_share'"),
        ({"split": {"train": "x", "dev_share": 0.6, "test_share": 0.4}}, "nothing to train on"),
        ({"split": {"train": "x", "prefix": "/"}}, "cannot name a folder"),
        ({"split": {"train": "x", "labels": None}}, "cannot be none"),
        ({"split": {"train": "x"}, "tasks": [{"name": "a", "train": "b"}]}, "gives both 'tasks' and 'split'"),
        ({"name": "cifar100-5", "overrides": {"a": {}}}, "do not apply to a split"),
        ({"name": "cifar100-6"}, "cifar100-5"),
    ],
)
def test_impossible_splits(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StreamOptions.model_validate(values)


def test_a_part_of_a_file_is_an_image(tmp_path: Path) -> None:
    (tmp_path / "two").write_bytes(b"P5\n1 1\n255\n\x07P5\n1 1\n255\n\x09")
    part = Picture("second", path=tmp_path / "two", offset=12, size=12)
    assert np.asarray(part.decode("L")).tolist() == [[9]]
