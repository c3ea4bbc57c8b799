"""One file, or one data set of the Hugging Face hub, read into rows.

Files are read whole: a task is a few thousand texts, and the sum over its bytes belongs to the record of a run.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from merganser.errors import InputError, MerganserError, RunError, first_line, nearest
from merganser.files.documents import read_bytes
from merganser.files.hub import cut_connections, hub_failure, is_offline
from merganser.streams.bad_rows import EMPTY, BadCell, BadRows, Problem
from merganser.streams.class_names import class_name
from merganser.streams.decoding import UNICODE_REMEDY, unicode_problem
from merganser.streams.parquet import read_parquet
from merganser.streams.text_files import READERS, UNITS, read_text

IDX_IMAGES = "images-idx3-ubyte"
"""What the names of MNIST's files of images contain."""
ENDINGS = (*READERS, ".parquet")
HUB = "hub:"
_SPLIT_NAMES = {"train", "validation", "valid", "val", "dev", "test"}
_HUB_FORM = re.compile(
    r"hub:(?P<name>[\w.-]+/[\w.-]+|[\w.-]+)(?P<first>:[\w.-]*(?:\[[^\]]*\])?)?(?P<second>:[\w.-]+(?:\[[^\]]*\])?)?"
)
_HUB_REMEDY = "Write hub:owner/name, hub:owner/name:config, hub:owner/name:config:split or hub:owner/name::split."


@dataclass(frozen=True)
class Table:
    """Rows of one source.

    Attributes:
        shown: the source as a person named it, for messages.
        name: file name without its folders, or the hub id, for the record.
        rows: field name -> value, one mapping per row.
        places: for each row, its 1-based line (text files) or row number.
        unit: ``line`` or ``row``: what ``places`` counts.
        sha256: of the file's bytes; of the rows as JSON for a hub data set.
        folder: that paths in the cells start from.
        bad: rows that could not be read, such as a malformed line.
    """

    shown: str
    name: str
    rows: Sequence[Mapping[str, Any]]
    places: Sequence[int]
    unit: str
    sha256: str
    folder: Path = Path()
    bad: BadRows = field(default_factory=lambda: BadRows("", "row"))

    def where(self, index: int) -> str:
        """Return the place of row ``index`` (0-based) for messages, as ``file, line 7``."""
        return f"{self.shown}, {self.unit} {self.places[index]}"

    def require(self, fields: Sequence[str]) -> None:
        """Refuse a table of which no row has one of the fields: its name is wrong, not its rows.

        Raises:
            InputError: naming the fields that the rows have.
        """
        missing = dict.fromkeys(fields)
        known: dict[str, None] = {}
        for row in self.rows:
            missing = {name: None for name in missing if name not in row}
            if not missing:
                return
            known.update(dict.fromkeys(map(str, row)))
        if known:
            name = next(iter(missing))
            raise InputError(
                f"{self.where(0)}: there is no field '{name}'; the fields are {_listed(known)}.",
                nearest(name, known) or "Name the fields of the file with 'input' and 'output'.",
            )

    def value(self, index: int, field: str) -> Any:
        """Return the content of one cell.

        Raises:
            BadCell: no such field in this row.
        """
        row = self.rows[index]
        if field not in row:

            def remedy() -> str:
                return nearest(field, map(str, row)) or f"Give the row the field '{field}', or remove it."

            problem = Problem(f"there is no field '{field}'", remedy, f"the fields are {_listed(row)}")
            raise BadCell(self.where(index), problem)
        return row[field]

    def text(self, index: int, field: str, *, optional: bool = False) -> str:
        """Return one cell as text; numbers and booleans are written as in JSON.

        Args:
            optional: return an empty string for white space and for a missing value.

        Raises:
            BadCell: no such field in this row, a value that is not text, an empty text, text that is no valid Unicode.
        """
        value = self.value(index, field)
        if optional and (value is None or (isinstance(value, str) and not value.strip())):
            return ""
        return self.text_of(index, field, value)

    def text_of(self, index: int, field: str, value: Any) -> str:
        """Return a value of one cell as text.

        Raises:
            BadCell: as :meth:`text`.
        """
        where, remedy = self.where(index), "Give the row a text, or remove it."
        if isinstance(value, str):
            text = value
        elif isinstance(value, bool | int | float) and value == value:  # NaN, which is not equal to itself, is no text
            text = json.dumps(value)
        else:
            kind = "missing" if value is None or value != value else f"a {type(value).__name__}, not a text"
            if isinstance(value, list) and value and isinstance(value[0], Mapping):
                remedy = "For a list of messages use format: messages, and leave 'input' and 'output' out."
            raise BadCell(where, Problem(f"field '{field}' is {kind}", remedy))
        if not text.strip():
            raise BadCell(where, Problem(f"field '{field}' is empty", remedy, code=EMPTY))
        if problem := unicode_problem(text):
            raise BadCell(where, Problem(f"field '{field}' is no valid Unicode", UNICODE_REMEDY, problem))
        return text


def _listed(names: Collection[Any]) -> str:
    """List at most twenty names."""
    more = f" and {len(names) - 20:,} more" if len(names) > 20 else ""
    return ", ".join(map(repr, itertools.islice(names, 20))) + more


def is_image_source(path: Path) -> bool:
    """Return whether :mod:`merganser.streams.images` reads a path: a folder, or an IDX file by its usual name."""
    return os.path.isdir(path) or IDX_IMAGES in path.name


def read_table(source: str, base: Path, default_split: str = "train") -> Table:
    """Read ``source``: a path (relative ones are relative to ``base``) or ``hub:owner/name[:config][:split]``.

    Args:
        source: the source in the configuration.
        base: folder that relative paths start from.
        default_split: split of a hub data set when ``source`` names none.

    Raises:
        InputError: a missing, empty, malformed or unreadable file, an unknown ending, a hub data set that is not there.
    """
    return read_hub(source, default_split) if source.startswith(HUB) else read_file(base / source, shown=source)


def read_file(path: Path, shown: str | None = None) -> Table:
    """Read one ``.json`` (a list of objects), ``.jsonl``, ``.csv``, ``.tsv`` (with a header line) or ``.parquet`` file.

    Text files are UTF-8, or UTF-16 with a byte-order mark. Columns of a ``.csv`` file are separated by commas, or by
    semicolons or tabs where its header line has no comma. Rows that cannot be read are in ``bad`` of the table.

    Raises:
        InputError: see :func:`read_table`.
    """
    shown = shown or str(path)
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        if not ending and not os.path.exists(path):
            raise InputError(f"{shown}: there is no such file or folder.", _neighbour(path))
        raise InputError(
            f"{shown}: the ending '{ending}' is not one that can be read.",
            f"Use one of {', '.join(ENDINGS)}, or hub:owner/name for a data set of the hub.",
        )
    try:
        data = read_bytes(path)
    except FileNotFoundError as error:
        raise missing_file(path, shown) from error
    except OSError as error:
        raise InputError(
            f"{shown}: cannot be read: {error.strerror}.", "Check the path and its permissions."
        ) from error
    if not data.strip():
        raise InputError(f"{shown}: the file is empty.", "Give it at least one row.")
    unit = UNITS.get(ending, "row")
    bad = BadRows(shown, unit)
    rows, places = read_parquet(data, bad) if ending == ".parquet" else read_text(data, path, bad)
    if not rows and not bad:
        raise InputError(f"{shown}: the file has no rows.", "Give it at least one row.")
    return Table(shown, path.name, rows, places, unit, hashlib.sha256(data).hexdigest(), path.parent, bad)


def parse_hub(source: str, default_split: str) -> tuple[str, str | None, str]:
    """Parse ``hub:owner/name[:config][:split]`` into name, configuration or ``None``, and split.

    A single suffix is the split if it is named like one (train, validation, valid, val, dev, test) or has a slice
    (``train[:1000]``), else the configuration; ``hub:owner/name::split`` is never ambiguous.

    Raises:
        InputError: the source has another form.
    """
    match = _HUB_FORM.fullmatch(source)
    if match is None:
        raise InputError(f"'{source}' is not a hub data set.", _HUB_REMEDY)
    first = (match["first"] or "").removeprefix(":")
    second = (match["second"] or "").removeprefix(":")
    if not second and (first in _SPLIT_NAMES or "[" in first):
        first, second = "", first
    if "[" in first:
        raise InputError(f"'{source}': the configuration '{first}' has a slice.", _HUB_REMEDY)
    return match["name"], first or None, second or default_split


def read_hub(source: str, default_split: str) -> Table:
    """Read one split of a hub data set with ``datasets``; class numbers become class names. Runs no remote code.

    Raises:
        InputError: a malformed source, or a data set, configuration or split that cannot be loaded.
    """
    name, config, split = parse_hub(source, default_split)
    import datasets
    from datasets.exceptions import DatasetsError

    doing = f"{source}: split '{split}' cannot be loaded from the hub"
    try:
        with cut_connections(doing):
            data = datasets.load_dataset(name, config, split=split)
    except (DatasetsError, OSError, ValueError) as error:
        if (failure := hub_failure(error, doing)) is not None:
            raise failure from error
        raise InputError(
            f"{source}: split '{split}' cannot be loaded: {first_line(error)}",
            "Check the name, configuration and split, and that the hub can be reached; or download the data to a file.",
        ) from error
    for key, feature in data.features.items():
        if isinstance(feature, datasets.Image):
            data = data.cast_column(key, datasets.Image(decode=False))  # as bytes; decoded when a batch is made
    names = {key: feature.names for key, feature in data.features.items() if isinstance(feature, datasets.ClassLabel)}
    digest = hashlib.sha256()
    rows = []
    for row in data:
        for key, classes in names.items():
            row[key] = class_name(row[key], classes)
        digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
        rows.append(row)
    if not rows:
        raise InputError(f"{source}: split '{split}' has no rows.", "Choose another split.")
    bad = BadRows(source, "row")
    return Table(source, source, rows, range(1, len(rows) + 1), "row", digest.hexdigest(), bad=bad)


def is_unreachable(error: MerganserError) -> bool:
    """Return whether an error is that the hub cannot be asked for a data set that is not on this machine."""
    return error.cause.startswith(HUB) and (isinstance(error, RunError) or is_offline())


def missing_file(path: Path, shown: str) -> InputError:
    """Create the error for a missing file, with the nearest existing name."""
    return InputError(f"{shown}: there is no such file.", _neighbour(path))


def _neighbour(path: Path) -> str:
    try:
        names = sorted(entry.name for entry in path.parent.iterdir())
    except OSError:
        return f"The folder {path.parent} is not there either."
    return nearest(path.name, names) or "Check the path; relative paths start from the configuration file's folder."
