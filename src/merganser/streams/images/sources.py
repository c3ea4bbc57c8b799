"""Where images come from: a folder with one sub-folder per class, IDX files, or a table with a field of images."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from merganser.errors import InputError
from merganser.streams.bad_rows import BadCell, BadRows, Problem
from merganser.streams.formats import IDX_IMAGES, Table
from merganser.streams.images.idx import read_idx
from merganser.streams.images.picture import Picture, require_pillow
from merganser.streams.task import Example

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")
IMAGE_FIELD, LABEL_FIELD = "image", "label"
"""Fields of the rows of a folder of images and of IDX files."""

IDX_LABELS = "labels-idx1-ubyte"


def read_images(path: Path, shown: str, classes: Sequence[str] | None = None) -> Table:
    """Read a folder of images or IDX files into rows with the fields ``image`` and ``label``.

    A folder has one sub-folder per class. IDX files are named ``...images-idx3-ubyte`` with ``...labels-idx1-ubyte``
    beside it, both optionally with ``.gz``; ``classes`` names the classes that their labels number.

    Args:
        path: the folder, or the IDX file of images.
        shown: its name in messages.
        classes: names of the classes, for IDX files only.

    Raises:
        InputError: a missing, empty or malformed source, a file that is no image, a class without a name, or pillow is
            not installed.
    """
    require_pillow()
    if not path.is_dir():
        return _idx_table(path, shown, classes)
    if classes is not None:
        raise InputError(f"{shown}: 'classes' names class numbers, and a folder's classes have names.", "Remove it.")
    return _folder_table(path, shown)


def image_example(table: Table, index: int, image: str, output: str) -> Example:
    """Return a row of a table as an example.

    Args:
        table: what :func:`read_images` returned, or a file or hub data set.
        index: 0-based row.
        image, output: fields that hold the image and the label.

    Raises:
        BadCell: the row has no such field, no image that can be read, or no label.
    """
    where = f"{table.where(index)}, field '{image}'"
    cell = table.value(index, image)
    try:
        picture = _picture_of_cell(cell, where, table.folder)
    except InputError as error:
        raise BadCell(table.where(index), _no_image(error)) from error
    return Example(input=picture.name, output=table.text(index, output), image=picture)


def _no_image(error: InputError) -> Problem:
    return Problem("there is no image that can be read", error.remedy, error.cause.removesuffix("."))


def _picture_of_cell(value: Any, where: str, folder: Path) -> Picture:
    """Return the image in a cell: a path relative to ``folder``, or a mapping with ``bytes`` or ``path`` as Parquet
    files and hub data sets hold it."""
    if isinstance(value, Picture):
        return value
    if isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes):
        picture = Picture(where, data=value["bytes"])
    elif isinstance(value, Mapping) and isinstance(value.get("path"), str):
        picture = Picture(value["path"], path=folder / value["path"])
    elif isinstance(value, str) and value.strip():
        picture = Picture(value, path=folder / value)
    else:
        raise InputError(f"{where} is no image.", "Give the path of an image file, or the image itself.")
    picture.check()
    return picture


def _folder_table(folder: Path, shown: str) -> Table:
    rows: list[dict[str, Any]] = []
    places: list[int] = []
    bad = BadRows(f"{shown.rstrip('/')}/", "image")
    digest = hashlib.sha256()
    labels = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not labels:
        raise InputError(f"{shown}: has no sub-folders.", "Put the images of each class into a folder with its name.")
    for label in labels:
        # Sorted by the path's text, so that the order is the same on every file system.
        files = sorted(file for file in (folder / label).rglob("*") if file.suffix.lower() in IMAGE_ENDINGS)
        if not files:
            raise InputError(
                f"{shown}/{label}: has no images.",
                f"Put images in ({', '.join(IMAGE_ENDINGS)}), or remove the folder.",
            )
        for file in files:
            place = len(rows) + len(bad) + 1
            picture = Picture(str(Path(shown) / file.relative_to(folder)), path=file)
            try:
                picture.check()
            except InputError as error:
                bad.add(place, _no_image(error))
                continue
            places.append(place)
            digest.update(f"{label}\0{picture.sha256}\n".encode())
            rows.append({IMAGE_FIELD: picture, LABEL_FIELD: label})
    return Table(shown, folder.resolve().name, rows, places, "image", digest.hexdigest(), bad=bad)


def _idx_table(path: Path, shown: str, classes: Sequence[str] | None) -> Table:
    labels_path = path.with_name(path.name.replace(IDX_IMAGES, IDX_LABELS))
    images, images_sha256 = read_idx(path, shown)
    labels, labels_sha256 = read_idx(labels_path, shown.replace(IDX_IMAGES, IDX_LABELS))
    has_colours = images.ndim == 4 and images.shape[3] == 3
    if (images.ndim != 3 and not has_colours) or 0 in images.shape:
        raise InputError(
            f"{shown}: holds an array of shape {images.shape}.", "Images are number x height x width [x 3]."
        )
    if labels.shape != images.shape[:1]:
        raise InputError(
            f"{shown}: {len(images)} images, but {labels_path.name} has labels of shape {labels.shape}.",
            "Give the two files that belong together.",
        )
    names = list(map(str, range(256))) if classes is None else list(classes)
    if (highest := int(labels.max())) >= len(names):
        raise InputError(
            f"{shown}: has the label {highest}, but 'classes' has {len(names)} names (0 to {len(names) - 1}).",
            "Name every class, in the order of the numbers.",
        )
    # PGM and PPM: a line of header before the raw pixels. The stored bytes do not depend on a library's encoder.
    header = f"P{6 if has_colours else 5}\n{images.shape[2]} {images.shape[1]}\n255\n".encode()
    rows = [
        {IMAGE_FIELD: Picture(f"{shown}, image {i}", data=header + image.tobytes()), LABEL_FIELD: names[int(label)]}
        for i, (image, label) in enumerate(zip(images, labels, strict=True), start=1)
    ]
    digest = hashlib.sha256(f"{images_sha256} {labels_sha256}".encode()).hexdigest()
    places = range(1, len(rows) + 1)
    return Table(shown, path.name, rows, places, "image", digest, bad=BadRows(shown, "image"))
