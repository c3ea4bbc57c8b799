"""The sources of a task to examples, and the rows that cannot become examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from merganser.errors import InputError
from merganser.streams.bad_rows import UNLABELLED, BadCell, BadRows, Problem
from merganser.streams.checks import label_problem, unlearned_problem
from merganser.streams.formats import HUB, Table, is_image_source, read_table
from merganser.streams.options import SplitOptions
from merganser.streams.preferences import PreferenceReader, has_preferences
from merganser.streams.row_formats import RowReader, row_reader
from merganser.streams.task import Example
from merganser.streams.task_options import TaskOptions, TaskSettings

SPLITS = ("train", "dev", "test")
_HUB_SPLITS = {"train": "train", "dev": "validation", "test": "test"}


@dataclass
class Part:
    """The examples of one split.

    Attributes:
        examples: in the order of the source.
        places: for each example, its 1-based line or number in the source.
        bad: the rows that are no examples.
        source: what they were read from, for the record.
        stripped: number of answers around which white space was removed.
        remarks: what else to know about how the rows were read.
    """

    examples: list[Example]
    places: list[int]
    bad: BadRows
    source: str = ""
    stripped: int = 0
    remarks: list[str] = field(default_factory=list)

    def drop(self, problem: Callable[[Example], Problem | None]) -> None:
        """Turn the examples with a problem into bad rows.

        Args:
            problem: returns what is wrong with an example, or ``None``.
        """
        kept = []
        for example, place in zip(self.examples, self.places, strict=True):
            wrong = problem(example)
            if wrong is None:
                kept.append((example, place))
            else:
                self.bad.add(place, wrong)
        self.examples, self.places = [example for example, _ in kept], [place for _, place in kept]
        self.bad.good = len(kept)


def read_parts(options: TaskOptions | SplitOptions, base: Path) -> dict[str, Part]:
    """Read train, dev and test of a task, as far as they are given.

    Args:
        options: the sources and how to read them.
        base: folder that relative paths start from.

    Raises:
        InputError: a source that is missing or malformed as a whole, a field that no row has.
    """
    sources = {"train": options.train, "dev": options.dev, "test": options.test}
    return {
        split: _part(source, options, base, _HUB_SPLITS[split])
        for split, source in sources.items()
        if source is not None
    }


def drop_unlabelled(parts: dict[str, Part], mark: str) -> None:
    """Turn examples whose answer is a published mark for "no label" into bad rows."""
    problem = Problem(f"the answer '{mark}' marks a text without a label", "Remove the row.", code=UNLABELLED)
    for part in parts.values():
        part.drop(lambda example: problem if example.output == mark else None)


def drop_outsiders(parts: dict[str, Part], labels: Sequence[str] | None) -> None:
    """Turn examples whose answer is not a label, or that no training example has, into bad rows.

    Args:
        labels: the closed set of answers; ``None``: every answer is allowed.
    """
    if labels is None:
        return
    known = frozenset(labels)
    for part in parts.values():
        part.drop(lambda example: label_problem(example.output, known, labels))
    learned = {example.output for example in parts["train"].examples}
    for split in SPLITS[1:]:
        if split in parts and learned:
            parts[split].drop(lambda example: unlearned_problem(example.output, learned))


def reading_remarks(parts: dict[str, Part]) -> tuple[str, ...]:
    """Describe how rows were read, and how many answers lost white space around them."""
    remarks = [remark for part in parts.values() for remark in part.remarks]
    remarks += [
        f"{part.bad.shown}: white space around {part.stripped:,} of {len(part.bad) + part.bad.good:,} answers removed"
        for part in parts.values()
        if part.stripped
    ]
    return tuple(dict.fromkeys(remarks))


def _part(source: str, options: TaskOptions | SplitOptions, base: Path, default_split: str) -> Part:
    """Read one split."""
    if not source.startswith(HUB) and is_image_source(base / source):
        from merganser.streams.images.sources import IMAGE_FIELD, LABEL_FIELD, image_example, read_images

        table = read_images(base / source, source, options.classes)
        part = _collect(table, [LABEL_FIELD], lambda index: image_example(table, index, IMAGE_FIELD, LABEL_FIELD))
    elif options.classes is not None:
        raise InputError(f"{source}: 'classes' names the classes of IDX files, and this is none.", "Remove it.")
    elif options.image is not None:
        from merganser.streams.images.picture import require_pillow
        from merganser.streams.images.sources import image_example

        require_pillow()
        image, table = options.image, read_table(source, base, default_split)
        part = _collect(
            table, [image, options.output], lambda index: image_example(table, index, image, options.output)
        )
    else:
        table = read_table(source, base, default_split)
        part = _texts(table, options)
    part.source = f"{table.name} sha256:{table.sha256}"
    return part


def _texts(table: Table, options: TaskSettings) -> Part:
    reader: RowReader
    if has_preferences(table, options):
        reader, format_remark = PreferenceReader(table, options), ""
    else:
        reader, format_remark = row_reader(table, options)
    part = _collect(table, reader.required, reader.read)
    part.remarks = [
        f"{table.shown}: {remark}" for remark in [*([format_remark] if format_remark else []), *reader.remarks()]
    ]
    return part


def _collect(table: Table, fields: Sequence[str], example: Callable[[int], Example]) -> Part:
    """Make an example of every row, and a bad row of every one that cannot be one."""
    table.require(fields)
    part = Part([], [], table.bad)
    for index, place in enumerate(table.places):
        try:
            made = example(index)
        except BadCell as error:
            part.bad.add(place, error.problem)
            continue
        if (answer := made.output.strip()) != made.output:
            made = replace(made, output=answer)
            part.stripped += 1
        part.examples.append(made)
        part.places.append(place)
    part.bad.good = len(part.examples)
    return part
