"""``tags.json``: names that a person gave to rows, sealed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field, ValidationError

from merganser.errors import InputError
from merganser.files.documents import Malformed, parse_json, read_bytes
from merganser.runs.checksums import CHANGED, is_intact, sealed, sha256_of
from merganser.runs.reading import damaged, problem, read_text
from merganser.runs.record import Record
from merganser.runs.row_names import RowName
from merganser.runs.rows import RECORD, ROW_FOLDER
from merganser.streams.task_options import name_problem

TAGS = "tags.json"


class Tag(Record):
    """A name for a row."""

    row: str = Field(description="its folder under tasks/")
    sha256: str = Field(description="of its row.json: the tag never names another row that takes this one's place")
    created: str = Field(description="UTC time, ISO 8601")


def tag_of(row: Path) -> Tag:
    """Return a tag for the row in a folder."""
    return Tag(row=row.name, sha256=sha256_of(row / RECORD), created=datetime.now(UTC).isoformat(timespec="seconds"))


def is_of(tag: Tag, row: Path) -> bool:
    """Return whether a tag names the row in a folder."""
    return tag.row == row.name and (row / RECORD).is_file() and tag.sha256 == sha256_of(row / RECORD)


def tags_bytes(tags: Mapping[str, Tag]) -> bytes:
    """Encode the tags."""
    return sealed({"tags": {name: tag.model_dump() for name, tag in tags.items()}})


def read_tags(file: Path) -> dict[str, Tag]:
    """Read the tags by name; none where there is no file.

    Raises:
        InputError: the file is damaged.
    """
    if not file.exists():
        return {}
    try:
        content = parse_json(read_text(file))
        tags = {name: Tag.model_validate(tag) for name, tag in content["tags"].items()}
        checksum = content["checksum"]
    except Malformed as error:
        raise damaged(file, str(error)) from error
    except ValidationError as error:
        raise damaged(file, problem(error)) from error
    except (TypeError, AttributeError, KeyError) as error:
        raise damaged(file, "no tags in it") from error
    if not is_intact(read_bytes(file), checksum):
        raise damaged(file, CHANGED)
    return tags


def check_tag_name(name: str, rows: Sequence[RowName]) -> None:
    """Refuse a name that no tag can have.

    Raises:
        InputError: it cannot name a task either, or names a row already.
    """
    if name_problem(name):
        cause = name_problem(name).replace("task name", "tag", 1).replace("cannot name a folder", "is none")
        raise InputError(f"{cause[0].upper()}{cause[1:]}.", "Choose another name.")
    if ROW_FOLDER.fullmatch(name) or any(name in (row.short, *row.tasks) for row in rows):
        raise InputError(f"'{name}' names a row already.", "Choose a name that is no task's and no folder's of a row.")
