"""``references.json``: scores of single-task models, sealed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from merganser.files.atomic import write_bytes
from merganser.files.documents import parse_json, read_bytes
from merganser.metrics.score import Score
from merganser.runs.checksums import CHANGED, is_intact, sealed
from merganser.runs.reading import damaged, read_text

REFERENCES = "references.json"


def write_references(file: Path, references: Mapping[str, Score]) -> None:
    """Write the scores by task.

    Raises:
        RunError: the disk is full; the file is as it was before.
    """
    write_bytes(file, sealed({"scores": {name: score.model_dump() for name, score in references.items()}}))


def read_references(file: Path) -> dict[str, Score]:
    """Read the scores by task; none where there is no file.

    Raises:
        InputError: the file is damaged.
    """
    if not file.exists():
        return {}
    try:
        content = parse_json(read_text(file))
        checksum = content.get("checksum")
        # Without a checksum, the scores are the document itself.
        scores = content["scores"] if isinstance(checksum, str) else content
        references = {name: Score.model_validate(score) for name, score in scores.items()}
    except (ValueError, AttributeError, KeyError) as error:
        raise damaged(file, "no scores in it") from error
    if isinstance(checksum, str) and not is_intact(read_bytes(file), checksum):
        raise damaged(file, CHANGED)
    return references
