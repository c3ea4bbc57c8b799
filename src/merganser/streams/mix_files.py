"""Read the data that are mixed into a task."""

from __future__ import annotations

from pathlib import Path

from merganser.errors import InputError
from merganser.streams.bad_rows import settle
from merganser.streams.examples import Part, read_parts, reading_remarks
from merganser.streams.task import Mix
from merganser.streams.task_options import MixOptions


def read_mix(options: MixOptions | None, base: Path, train: Part) -> tuple[Mix | None, tuple[str, ...]]:
    """Read the data that are mixed into a task.

    Args:
        options: the file and how to read it; ``None``: nothing is mixed in.
        base: folder that relative paths start from.
        train: the task's own training examples.

    Returns:
        the examples, and what to know about how they were read.

    Raises:
        InputError: a file that is missing or malformed, bad rows, images, or the file of the task itself.
    """
    if options is None:
        return None, ()
    parts = read_parts(options.as_task(), base)
    part = parts["train"]
    remarks = (*settle([part.bad], options.on_bad_rows), *reading_remarks(parts))
    if part.source.rpartition(" ")[2] == train.source.rpartition(" ")[2]:
        raise InputError(
            f"{options.file}: 'mix' has the same content as the task's own training examples.",
            "Give other data, such as general instructions, or leave mix out.",
        )
    if not part.examples:
        raise InputError(f"{options.file}: no row of the data to mix in can be used.", "Correct them.")
    if any(example.image is not None for example in part.examples):
        raise InputError(f"{options.file}: 'mix' has images.", "Mix in texts.")
    return Mix(part.examples, options.share, part.source), remarks
