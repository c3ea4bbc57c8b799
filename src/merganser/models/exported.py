"""``merganser.json`` of an export: what is needed, beside the weights, to answer as the run did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from merganser.errors import InputError
from merganser.files.atomic import json_bytes
from merganser.files.documents import Malformed, parse_json, read_text
from merganser.models.base import Lengths
from merganser.streams.answers import AnswerSpec

FILE = "merganser.json"

FORMAT = 1
"""Version of the record; one with a larger number is refused."""


class ExportedRecord(BaseModel):
    """How an exported model answers.

    Attributes:
        model: the ``model`` section of the run, with what ``auto`` resolved to; ``name`` as in ``lineage.json``.
        holds: ``adapter``, or ``model`` with all weights.
        lengths: longest input and answer in tokens.
        per_task_models: whether the method keeps a model per task.
        tasks: how each task is answered, by name.
    """

    model_config = ConfigDict(extra="forbid")

    format: int = FORMAT
    model: dict[str, Any]
    holds: str
    lengths: Lengths
    per_task_models: bool = False
    tasks: dict[str, AnswerSpec]


def write_record(folder: Path, record: ExportedRecord) -> None:
    """Write ``merganser.json`` into the folder of an export."""
    (folder / FILE).write_bytes(json_bytes(record.model_dump(mode="json")))


def read_record(folder: Path) -> ExportedRecord:
    """Read ``merganser.json``.

    Raises:
        InputError: it is missing or damaged, or a newer version wrote it.
    """
    path = folder / FILE
    try:
        content = parse_json(read_text(path))
        written = content.get("format") if isinstance(content, dict) else None
        if isinstance(written, int) and written > FORMAT:
            raise InputError(
                f"'{path}' was written by a newer version (format {written}; this version reads {FORMAT}).",
                "Upgrade: pip install --upgrade merganser.",
            )
        return ExportedRecord.model_validate(content)
    except (Malformed, OSError) as error:
        raise InputError(f"'{path}' is damaged: {error}.", "Export or download the model again.") from error
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise InputError(f"'{path}' is damaged: {reason}.", "Export or download the model again.") from error
