"""One file, or one data set of the Hugging Face hub, read into rows.

Files are read whole: a task is a few thousand texts, and the sum over its bytes belongs to the record of a run.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merganser.errors import InputError, first_repeated, nearest
from merganser.files.documents import Malformed, parse_json, read_bytes

IDX_IMAGES = "images-idx3-ubyte"
"""What the names of MNIST's files of images contain."""
ENDINGS = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
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
    """

    shown: str
    name: str
    rows: Sequence[Mapping[str, Any]]
    places: Sequence[int]
    unit: str
    sha256: str
    folder: Path = Path()

    def where(self, index: int) -> str:
        """Return the place of row ``index`` (0-based) for messages, as ``file, line 7``."""
        return f"{self.shown}, {self.unit} {self.places[index]}"

    def value(self, index: int, field: str) -> Any:
        """Return the content of one cell.

        Raises:
            InputError: no such field in this row.
        """
        row = self.rows[index]
        if field not in row:
            raise InputError(
                f"{self.where(index)}: there is no field '{field}'; the fields are {_listed(row)}.",
                nearest(field, [str(key) for key in row]) or "Name the fields of the file with 'input' and 'output'.",
            )
        return row[field]

    def text(self, index: int, field: str) -> str:
        """Return one cell as text; numbers and booleans are written as in JSON.

        Raises:
            InputError: no such field in this row, a value that is not text, an empty text.
        """
        value = self.value(index, field)
        if isinstance(value, str):
            text = value
        elif isinstance(value, bool | int | float) and value == value:  # NaN, which is not equal to itself, is no text
            text = json.dumps(value)
        else:
            kind = "missing" if value is None or value != value else f"a {type(value).__name__}, not a text"
            raise InputError(f"{self.where(index)}: field '{field}' is {kind}.", "Give the row a text, or remove it.")
        if not text.strip():
            raise InputError(f"{self.where(index)}: field '{field}' is empty.", "Give the row a text, or remove it.")
        return text


def _listed(names: Iterable[str]) -> str:
    """List at most twenty names."""
    shown = [repr(name) for name in names]
    return ", ".join(shown[:20]) + (f" and {len(shown) - 20:,} more" if len(shown) > 20 else "")


def is_image_source(path: Path) -> bool:
    """Return whether :mod:`merganser.streams.images` reads a path: a folder, or an IDX file by its usual name."""
    return path.is_dir() or IDX_IMAGES in path.name


def read_table(source: str, base: Path, default_split: str = "train") -> Table:
    """Read ``source``: a path (relative ones are relative to ``base``) or ``hub:owner/name[:config][:split]``.

    Args:
        source: what the configuration says.
        base: folder that relative paths start from.
        default_split: split of a hub data set when ``source`` names none.

    Raises:
        InputError: a missing, empty, malformed or unreadable file, an unknown ending, a hub data set that is not there.
    """
    return read_hub(source, default_split) if source.startswith(HUB) else read_file(base / source, shown=source)


def read_file(path: Path, shown: str | None = None) -> Table:
    """Read one ``.json`` (a list of objects), ``.jsonl``, ``.csv``, ``.tsv`` (with a header line) or ``.parquet`` file.

    Text files are UTF-8, with or without a byte-order mark.

    Raises:
        InputError: see :func:`read_table`.
    """
    shown = shown or str(path)
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        if not ending and not path.exists():
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
    if ending == ".parquet":
        rows, places, unit = _parquet(data, shown)
    else:
        rows, places, unit = _TEXT_READERS[ending](_decode(data, shown), shown)
    if not rows:
        raise InputError(f"{shown}: the file has no rows.", "Give it at least one row.")
    return Table(shown, path.name, rows, places, unit, hashlib.sha256(data).hexdigest(), path.parent)


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

    try:
        data = datasets.load_dataset(name, config, split=split)
    except (DatasetsError, OSError, ValueError) as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{source}: split '{split}' cannot be loaded: {first_line}",
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
            # -1 marks rows whose label is withheld (the test sets of GLUE): no label rather than the last class.
            row[key] = classes[row[key]] if row[key] is not None and row[key] >= 0 else None
        digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
        rows.append(row)
    if not rows:
        raise InputError(f"{source}: split '{split}' has no rows.", "Choose another split.")
    return Table(source, source, rows, range(1, len(rows) + 1), "row", digest.hexdigest())


_Rows = tuple[list[dict[str, Any]], Sequence[int], str]


def _json(text: str, shown: str) -> _Rows:
    try:
        rows = parse_json(text)
    except Malformed as error:
        remedy = "Write a list of objects: [{...}, {...}]."
        if error.reason == "Extra data":
            remedy = "If every line is an object, end the file's name in .jsonl."
        where = f"{shown}, line {error.line}" if error.line else shown
        raise InputError(f"{where}: malformed JSON: {error.reason}.", remedy) from error
    if not isinstance(rows, list):
        raise InputError(f"{shown}: holds a {type(rows).__name__}, not a list.", "Write a list of objects.")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise InputError(f"{shown}, row {number}: is a {type(row).__name__}.", "Make it an object: {...}.")
    return rows, range(1, len(rows) + 1), "row"


def _jsonl(text: str, shown: str) -> _Rows:
    rows, places = [], []
    # Not splitlines(): texts may hold characters such as U+2028, which end no line in JSON.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except Malformed as error:
            raise InputError(
                f"{shown}, line {number}: malformed JSON: {error.reason}.", "Write one object per line: {...}."
            ) from error
        if not isinstance(row, dict):
            raise InputError(f"{shown}, line {number}: is a {type(row).__name__}.", "Make it an object: {...}.")
        rows.append(row)
        places.append(number)
    return rows, places, "line"


def _separated(text: str, shown: str, delimiter: str) -> _Rows:
    rows: list[dict[str, Any]] = []
    places: list[int] = []
    header: list[str] | None = None
    # The limit is a setting of the whole process: 131,072 characters unless raised, less than one long document.
    before = csv.field_size_limit(max(len(text), 1))
    # strict: a stray quotation mark would otherwise swallow the rows after it without a word.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            if not cells:
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                twice = first_repeated(cell for cell in header if cell)
                if twice is not None or "" in header:
                    problem = "has a column without a name" if twice is None else f"names '{twice}' twice"
                    raise InputError(f"{shown}: the header line {problem}.", "Give every column its own name.")
            elif len(cells) != len(header):
                raise InputError(
                    f"{shown}, line {reader.line_num}: {len(cells)} cells under {len(header)} column names.",
                    "Quote cells that hold the separator or a line break, and double the quotes inside them.",
                )
            else:
                rows.append(dict(zip(header, cells, strict=True)))
                places.append(reader.line_num)
    except csv.Error as error:
        raise InputError(
            f"{shown}, line {reader.line_num}: {error}.",
            "Put cells with quotation marks in quotes, and double the quotes inside them.",
        ) from error
    finally:
        csv.field_size_limit(before)
    return rows, places, "line"


def _csv(text: str, shown: str) -> _Rows:
    return _separated(text, shown, ",")


def _tsv(text: str, shown: str) -> _Rows:
    return _separated(text, shown, "\t")


_TEXT_READERS = {".json": _json, ".jsonl": _jsonl, ".csv": _csv, ".tsv": _tsv}


def _parquet(data: bytes, shown: str) -> _Rows:
    from merganser.streams.parquet import read_parquet

    rows = read_parquet(data, shown)
    return rows, range(1, len(rows) + 1), "row"


def _decode(data: bytes, shown: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{shown}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8.",
            "Save the file as UTF-8 (iconv -t utf-8).",
        ) from error


def missing_file(path: Path, shown: str) -> InputError:
    """Create the error for a missing file, with the nearest existing name."""
    return InputError(f"{shown}: there is no such file.", _neighbour(path))


def _neighbour(path: Path) -> str:
    try:
        names = sorted(entry.name for entry in path.parent.iterdir())
    except OSError:
        return f"The folder {path.parent} is not there either."
    return nearest(path.name, names) or "Check the path; relative paths start from the configuration file's folder."
