"""Read the files of a run; errors name the damaged file, with its line."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from merganser.errors import InputError
from merganser.files import documents
from merganser.runs.record import RowFile

RecordT = TypeVar("RecordT", bound=BaseModel)


def damaged(path: Path, why: str) -> InputError:
    """Return the error for a file of a run that cannot be read."""
    remedy = "Restore it from a copy"
    if any(folder.name == "tasks" for folder in list(path.parents)[1:3]):  # a row's
        run = shlex.quote(str(next(folder.parent for folder in path.parents if folder.name == "tasks")))
        remedy += f" of the run; `merganser verify {run}` checks every file, and makes again what can be made again"
    return InputError(f"'{path}' is damaged: {why}.", f"{remedy}.")


def read_text(path: Path) -> str:
    """Read the text of a file.

    Raises:
        InputError: it is missing, cannot be read, or is not UTF-8.
    """
    try:
        return documents.read_text(path)  # texts from other systems keep their line ends
    except FileNotFoundError as error:
        raise damaged(path, "it is missing") from error
    except documents.Malformed as error:
        raise damaged(path, str(error)) from error
    except OSError as error:
        raise damaged(path, error.strerror or str(error)) from error


def problem(error: ValidationError) -> str:
    """Describe the first problem of a validation in a few words, with its key."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    return f"{key}: {first['msg']}" if key else first["msg"]


def read_record(path: Path, kind: type[RecordT]) -> RecordT:
    """Read the one record in a JSON file.

    Raises:
        InputError: it is missing or damaged.
    """
    text = read_text(path)
    try:
        return kind.model_validate(documents.parse_json(text))
    except documents.Malformed as error:
        raise damaged(path, str(error)) from error
    except ValidationError as error:
        raise damaged(path, problem(error)) from error
    except InputError as error:  # labels, prompt and metric of a task check themselves
        raise damaged(path, error.cause.rstrip(".")) from error


def read_lines(path: Path, kind: type[RecordT]) -> list[RecordT]:
    """Read the records of a JSON-lines file.

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
            records.append(kind.model_validate(documents.parse_json(line)))
        except documents.Malformed as error:
            raise damaged(path, f"line {number}: {error.reason}") from error
        except ValidationError as error:
            raise damaged(path, f"line {number}: {problem(error)}") from error
    return records


def read_counted_lines(folder: Path, name: str, kind: type[RecordT], row: RowFile) -> list[RecordT]:
    """Read one of the JSON-lines files of a row.

    Args:
        row: ``row.json`` beside it, which has the number of lines.

    Raises:
        InputError: as :func:`read_lines`; or the number of lines is another: with fewer, something learned would be
            lost without notice.
    """
    path = folder / f"{name}.jsonl"
    records = read_lines(path, kind)
    expected = row.lines.get(name, len(records))
    if len(records) != expected:
        raise damaged(path, f"it has {len(records)} lines, and row.json records {expected}")
    return records
