"""Examples and label vectors in the folders of rows, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merganser.files.atomic import full_disk_is_an_error
from merganser.runs.reading import damaged
from merganser.runs.record import KeptExample
from merganser.streams.task import Example

if TYPE_CHECKING:
    from torch import Tensor

    from merganser.streams.images.picture import Picture

IMAGES = "images.safetensors"
PROTOTYPES = "prototypes.safetensors"


def kept_example(task: str, example: Example) -> KeptExample:
    """An example as a line of ``memory.jsonl`` or ``test.jsonl``."""
    image = "" if example.image is None else example.image.sha256
    return KeptExample(task=task, input=example.input, output=example.output, id=example.id, image=image)


def as_line(kept: KeptExample) -> dict[str, Any]:
    """The values of a line; a text says nothing about an image."""
    return kept.model_dump(exclude=None if kept.image else {"image"})


def write_images(folder: Path, examples: Iterable[Example]) -> None:
    """Keep the images of a row's memory and test set beside them; nothing where there are none.

    Raises:
        InputError: an image is not where it was.
        RunError: the disk is full.
    """
    if pictures := [example.image for example in examples if example.image is not None]:
        from merganser.streams.images.picture_file import write_pictures

        with full_disk_is_an_error(folder / IMAGES):
            write_pictures(folder / IMAGES, pictures)


def restored(folder: Path, kept: Iterable[KeptExample]) -> list[tuple[str, Example]]:
    """``(task, example)`` for the lines of a row's file, with images that are read when they are needed.

    Raises:
        InputError: the file of images is damaged or lacks one.
    """
    pictures: Mapping[str, Picture] | None = None
    found = []
    for line in kept:
        image = None
        if line.image:
            from merganser.streams.images.picture_file import read_pictures

            pictures = read_pictures(folder / IMAGES) if pictures is None else pictures
            if line.image not in pictures:
                raise damaged(folder / IMAGES, f"the image {line.image[:12]}... is not in it")
            image = pictures[line.image]
        found.append((line.task, Example(line.input, line.output, line.id, image)))
    return found


def write_prototypes(folder: Path, prototypes: Mapping[str, Tensor]) -> None:
    """Keep label vectors in a row's folder; nothing where there are none.

    Raises:
        RunError: the disk is full.
    """
    from safetensors.torch import save_file

    if prototypes:
        with full_disk_is_an_error(folder / PROTOTYPES):
            save_file(dict(prototypes), folder / PROTOTYPES)


def read_prototypes(folder: Path) -> dict[str, Tensor]:
    """What :func:`write_prototypes` kept.

    Raises:
        InputError: the file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / PROTOTYPES).is_file():
        return {}
    try:
        return load_file(folder / PROTOTYPES)
    except SafetensorError as error:
        raise damaged(folder / PROTOTYPES, str(error)) from error
