"""Write examples and label vectors into the folders of rows, and read them back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merganser.files.atomic import new_file, write_tensors
from merganser.runs.reading import damaged
from merganser.runs.record import KeptExample
from merganser.runs.rows import IMAGES, Row
from merganser.streams.conversation import restored
from merganser.streams.task import Example

if TYPE_CHECKING:
    from torch import Tensor

    from merganser.streams.images.picture import Picture

PROTOTYPES = "prototypes.safetensors"


def kept_example(task: str, example: Example) -> KeptExample:
    """Convert an example to a line of ``memory.jsonl``, ``test.jsonl`` or ``dev.jsonl``."""
    image = "" if example.image is None else example.image.sha256
    read = {"input": example.input} if example.conversation is None else example.conversation.stored()
    return KeptExample(task=task, output=example.output, id=example.id, image=image, rejected=example.rejected, **read)


def as_line(kept: KeptExample) -> dict[str, Any]:
    """Return the values of a line, without keys for what the example does not have."""
    unused = {"input"} if kept.messages else {"messages"}
    absent = (name for name in ("image", "tools", "rejected") if not getattr(kept, name))
    return kept.model_dump(exclude={*unused, *absent})


def write_images(folder: Path, examples: Iterable[Example]) -> None:
    """Write the images of a row's memory and test set beside them; nothing where there are none.

    Raises:
        InputError: an image file was moved or deleted.
        RunError: the disk is full.
    """
    if pictures := [example.image for example in examples if example.image is not None]:
        from merganser.streams.images.picture_file import write_pictures

        with new_file(folder / IMAGES) as temporary:
            write_pictures(temporary, pictures)


def stored_examples(row: Row, name: str) -> list[tuple[str, Example]]:
    """Read a row's ``memory.jsonl``, ``test.jsonl`` or ``dev.jsonl``; images are read when they are needed.

    Returns:
        Pairs of a task's name and an example.

    Raises:
        InputError: the file is damaged, or the file of images is damaged or lacks one.
    """
    pictures: Mapping[str, Picture] | None = None
    examples = []
    for line in row.examples(name):
        image = None
        if line.image:
            from merganser.streams.images.picture_file import read_pictures

            pictures = read_pictures(row.checked(IMAGES)) if pictures is None else pictures
            if line.image not in pictures:
                raise damaged(row.folder / IMAGES, f"the image {line.image[:12]}... is not in it")
            image = pictures[line.image]
        examples.append((line.task, _example(row, name, line, image)))
    return examples


def _example(row: Row, name: str, line: KeptExample, image: Picture | None) -> Example:
    if not line.messages:
        return Example(line.input, line.output, line.id, image, rejected=line.rejected)
    try:
        example = Example.of_conversation(restored(line.messages, line.tools), line.id)
        return replace(example, rejected=line.rejected)
    except (KeyError, TypeError) as error:
        raise damaged(row.folder / f"{name}.jsonl", "a conversation in it is malformed") from error


def write_prototypes(folder: Path, prototypes: Mapping[str, Tensor]) -> None:
    """Write label vectors into a row's folder; nothing where there are none.

    Raises:
        RunError: the disk is full.
    """
    if prototypes:
        write_tensors(folder / PROTOTYPES, prototypes)


def read_prototypes(row: Row) -> dict[str, Tensor]:
    """Read what :func:`write_prototypes` wrote into a row's folder.

    Raises:
        InputError: the file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = row.checked(PROTOTYPES)
    if not path.is_file():
        return {}
    try:
        return load_file(path)
    except SafetensorError as error:
        raise damaged(path, str(error)) from error
