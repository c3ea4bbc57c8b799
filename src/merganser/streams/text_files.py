"""Rows of text files: JSON, JSON Lines, and columns separated by commas, semicolons or tabs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from merganser.errors import InputError, first_repeated
from merganser.files.documents import Malformed, parse_json
from merganser.streams.bad_rows import BadRows, Problem
from merganser.streams.decoding import convert_remedy, decode_file, first_surrogate, likely_encoding, undecodable_byte

NOT_UTF8 = "is not UTF-8"

Rows = tuple[list[dict[str, Any]], Sequence[int]]
"""Field name -> value for each row, and the place of each row."""


def read_text(data: bytes, path: Path, bad: BadRows) -> Rows:
    """Read the rows of a ``.json``, ``.jsonl``, ``.csv`` or ``.tsv`` file.

    Args:
        data: its content.
        path: the file.
        bad: receives the rows that cannot be read.

    Raises:
        InputError: the file as a whole is malformed, or is neither UTF-8 nor UTF-16 with a byte-order mark.
    """
    text = decode_file(data, bad.shown, path)
    undecodable = first_surrogate(text) is not None  # JSON escapes are not decoded yet: these are bytes
    remedy = convert_remedy(path, likely_encoding(data)) if undecodable else ""
    return READERS[path.suffix.lower()](text, bad, remedy)


def _not_utf8(text: str) -> str:
    """Return the first byte of a text that was not UTF-8, as ``byte 0xe9``; an empty string if there is none."""
    position = first_surrogate(text)
    byte = "" if position is None else undecodable_byte(text[position])
    return f"byte {byte}" if byte else ""


def _json(text: str, bad: BadRows, encoding_remedy: str) -> Rows:
    shown = bad.shown
    try:
        values = parse_json(text)
    except Malformed as error:
        remedy = "Write a list of objects: [{...}, {...}]."
        if error.reason == "Extra data":
            remedy = "If every line is an object, end the file's name in .jsonl."
        where = f"{shown}, line {error.line}" if error.line else shown
        raise InputError(f"{where}: malformed JSON: {error.reason}.", remedy) from error
    if isinstance(values, dict) and isinstance(values.get("Instances"), list):
        values = _natural_instructions(values)
    if not isinstance(values, list):
        raise InputError(f"{shown}: holds a {type(values).__name__}, not a list.", "Write a list of objects.")
    rows, places = [], []
    for number, row in enumerate(values, start=1):
        if encoding_remedy and (byte := _not_utf8(json.dumps(row, ensure_ascii=False))):
            bad.add(number, Problem(NOT_UTF8, encoding_remedy, byte))
        elif isinstance(row, dict):
            rows.append(row)
            places.append(number)
        else:
            bad.add(number, Problem(f"is a {type(row).__name__}", "Make it an object: {...}."))
    return rows, places


def _natural_instructions(file: dict[str, Any]) -> list[Any]:
    """Return the instances of a task file of SuperNI, each with the task's definition."""
    definition = file.get("Definition", "")
    return [{"Definition": definition, **row} if isinstance(row, dict) else row for row in file["Instances"]]


def _jsonl(text: str, bad: BadRows, encoding_remedy: str) -> Rows:
    rows, places = [], []
    # Not splitlines(): texts may hold characters such as U+2028, which end no line in JSON.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        if encoding_remedy and (byte := _not_utf8(line)):
            bad.add(number, Problem(NOT_UTF8, encoding_remedy, byte))
            continue
        try:
            row = parse_json(line)
        except Malformed as error:
            bad.add(number, Problem("malformed JSON", "Write one object per line: {...}.", error.reason))
            continue
        if isinstance(row, dict):
            rows.append(row)
            places.append(number)
        else:
            bad.add(number, Problem(f"is a {type(row).__name__}", "Make it an object: {...}."))
    return rows, places


def _separated(text: str, bad: BadRows, encoding_remedy: str, delimiter: str) -> Rows:
    rows: list[dict[str, Any]] = []
    places: list[int] = []
    header: list[str] | None = None
    # The limit is a setting of the whole process: 131,072 characters unless raised, less than one long document.
    before = csv.field_size_limit(max(len(text), 1))
    try:
        for place, cells in _records(text, bad, delimiter):
            if not cells:
                continue
            if header is None:
                header = _header(cells, bad.shown, encoding_remedy)
            elif encoding_remedy and (byte := _not_utf8("".join(cells))):
                bad.add(place, Problem(NOT_UTF8, encoding_remedy, byte))
            elif len(cells) != len(header):
                remedy = "Quote cells that hold the separator or a line break, and double the quotes inside them."
                bad.add(
                    place,
                    Problem(f"not as many cells as the {len(header)} column names", remedy, f"{len(cells)} cells"),
                )
            else:
                rows.append(dict(zip(header, cells, strict=True)))
                places.append(place)
    finally:
        csv.field_size_limit(before)
    return rows, places


def _header(cells: Sequence[str], shown: str, encoding_remedy: str) -> list[str]:
    """Return the names of the columns."""
    if encoding_remedy and (byte := _not_utf8("".join(cells))):
        raise InputError(f"{shown}, line 1: {NOT_UTF8}: {byte}.", encoding_remedy)
    header = [cell.strip() for cell in cells]
    twice = first_repeated(cell for cell in header if cell)
    if twice is not None or "" in header:
        problem = "has a column without a name" if twice is None else f"names '{twice}' twice"
        raise InputError(f"{shown}: the header line {problem}.", "Give every column its own name.")
    return header


def _records(text: str, bad: BadRows, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the last line and the cells of each row; a malformed row of one line is a bad row.

    Raises:
        InputError: a quoted cell that goes wrong after a line break: where the next row begins is then unknown.
    """
    remedy = "Put cells with quotation marks in quotes, and double the quotes inside them."
    # strict: a stray quotation mark would otherwise swallow the rows after it without a word.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        begin = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if reader.line_num > begin:
                cause = f"{bad.shown}, line {reader.line_num}: {error} (in the row that begins in line {begin})."
                raise InputError(cause, remedy) from error
            bad.add(begin, Problem(str(error), remedy))
        else:
            yield reader.line_num, cells


def _csv(text: str, bad: BadRows, encoding_remedy: str) -> Rows:
    header = next((line for line in text.splitlines() if line.strip()), "")
    # Spreadsheets write semicolons where the comma is the decimal separator.
    return _separated(text, bad, encoding_remedy, next((mark for mark in ",;\t" if _columns(header, mark) > 1), ","))


def _columns(header: str, delimiter: str) -> int:
    """Return the number of columns of a header line if its columns are separated by ``delimiter``; 0 if malformed."""
    try:
        return len(next(csv.reader([header], delimiter=delimiter, strict=True), []))
    except csv.Error:
        return 0


def _tsv(text: str, bad: BadRows, encoding_remedy: str) -> Rows:
    return _separated(text, bad, encoding_remedy, "\t")


READERS: dict[str, Callable[[str, BadRows, str], Rows]] = {
    ".json": _json,
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".tsv": _tsv,
}
UNITS = {".jsonl": "line", ".csv": "line", ".tsv": "line"}
"""What the places of rows count, where it is not rows."""
