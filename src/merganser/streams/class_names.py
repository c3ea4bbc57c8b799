"""Class numbers to class names, as ``datasets`` describes them in the metadata of a Parquet file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from merganser.streams.bad_rows import BadRows, Problem

_METADATA = b"huggingface"


def class_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, list[str]]:
    """Return the class names of each ``ClassLabel`` column, from the metadata of a schema."""
    try:
        features = json.loads((metadata or {}).get(_METADATA, b"{}"))["info"]["features"]
        labels = {key: value for key, value in features.items() if value.get("_type") == "ClassLabel"}
        return {key: [str(name) for name in value["names"]] for key, value in labels.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}  # metadata of another program, or of another version: the numbers stay


def class_name(number: int | None, classes: Sequence[str]) -> str | None:
    """Return the name of a class; ``None`` for -1, which marks rows whose label is withheld (the tests of GLUE)."""
    return classes[number] if number is not None and number >= 0 else None


def name_classes(
    rows: Sequence[dict[str, Any]], names: Mapping[str, Sequence[str]], bad: BadRows
) -> tuple[list[dict[str, Any]], list[int]]:
    """Replace class numbers by names.

    Args:
        rows: all rows of a file.
        names: field -> class names.
        bad: receives the rows with a number beyond the names.

    Returns:
        The other rows, and their 1-based numbers.
    """
    kept, places = [], []
    for place, row in enumerate(rows, start=1):
        numbers = {field: row[field] for field in names if isinstance(row.get(field), int)}
        beyond = next((field for field, number in numbers.items() if number >= len(names[field])), None)
        if beyond is None:
            kept.append(row | {field: class_name(number, names[field]) for field, number in numbers.items()})
            places.append(place)
        else:
            kind = f"field '{beyond}' has a class number beyond the {len(names[beyond])} names of the file"
            remedy = "Correct the number, or write the file again with all names."
            bad.add(place, Problem(kind, remedy, str(numbers[beyond])))
    return kept, places
