"""Reading the files of a run: whatever does not say what it should is named, with its line."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from merganser.errors import InputError
from merganser.runs.record import RowFile

RecordT = TypeVar("RecordT", bound=BaseModel)


def damaged(path: Path, why: str) -> InputError:
    """The error for a file of a run that cannot be read."""
    remedy = "Restore it from a copy"
    if any(folder.name == "tasks" for folder in list(path.parents)[1:3]):  # a row's
        remedy += "; or delete its folder under tasks/, if it is the last, to go back to the row before"
    return InputError(f"'{path}' is damaged: {why}.", f"{remedy}.")


def read_text(path: Path) -> str:
    """The text of a file that must be there.

    Raises:
        InputError: it is missing, cannot be read, or is not UTF-8.
    """
    try:
        # newline="": a text that came from elsewhere keeps its own line ends.
        with open(path, encoding="utf-8", newline="") as stream:
            return stream.read()
    except FileNotFoundError as error:
        raise damaged(path, "it is missing") from error
    except UnicodeDecodeError as error:
        raise damaged(path, f"byte {error.start} is not UTF-8") from error
    except OSError as error:
        raise damaged(path, error.strerror or str(error)) from error


def problem(error: ValidationError) -> str:
    """The first problem of a validation in a few words, with the key it is about."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    return f"{key}: {first['msg']}" if key else first["msg"]


def read_record(path: Path, kind: type[RecordT]) -> RecordT:
    """The one record in a JSON file.

    Raises:
        InputError: it is missing or holds something else.
    """
    text = read_text(path)
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise damaged(path, problem(error)) from error


def read_lines(path: Path, kind: type[RecordT]) -> list[RecordT]:
    """The records of a JSON-lines file.

    Raises:
        InputError: it is missing, a line is not such a record (named), or the last line is cut off.
    """
    text = read_text(path)
    if text and not text.endswith("\n"):
        raise damaged(path, f"line {text.count(chr(10)) + 1} is cut off")
    records = []
    # Not splitlines(): texts may hold characters such as U+2028, which end no line in JSON.
    for number, line in enumerate(text.split("\n")[:-1], 1):
        try:
            records.append(kind.model_validate_json(line))
        except ValidationError as error:
            raise damaged(path, f"line {number}: {problem(error)}") from error
    return records


def read_row_lines(folder: Path, name: str, kind: type[RecordT]) -> list[RecordT]:
    """The records of one of the JSON-lines files of a row.

    Raises:
        InputError: as :func:`read_lines`; or it has other lines than the row says: with fewer, what was learned would
            be lost without a word.
    """
    path = folder / f"{name}.jsonl"
    records = read_lines(path, kind)
    told = read_record(folder / "row.json", RowFile).lines.get(name, len(records))
    if len(records) != told:
        raise damaged(path, f"it has {len(records)} lines, and row.json says {told}")
    return records
