"""Keep the tables of options in these pages equal to the schema that the program reads.

    python docs/tables.py            # rewrites every table between its marks

A table is between ``<!-- options: Name -->`` and ``<!-- end -->``, where ``Name`` is a section's class as in
``merganser schema`` (``RunConfig`` for the whole file, ``StudyOptions`` for that of a study). A test fails when a table
differs from what this writes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from merganser.config import RunConfig
from merganser.study.options import StudyOptions

MARKED = re.compile(r"(<!-- options: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
TYPES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "`true`, `false`"}


@functools.cache
def schema() -> dict[str, Any]:
    """Return the JSON schema of every section by class name."""
    whole, study = RunConfig.model_json_schema(), StudyOptions.model_json_schema()
    return {"RunConfig": whole, **whole["$defs"], "StudyOptions": study, **study["$defs"]}


def plain(value: Any) -> str:
    """Return a value as YAML writes it."""
    if value is None:
        return "`null`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:.4g}`" if isinstance(value, float) else f"`{value}`"


def values(field: dict[str, Any]) -> str:
    """Return which values a key takes."""
    if "anyOf" in field or "oneOf" in field:
        alternatives = field.get("anyOf") or field.get("oneOf", [])
        return " or ".join(dict.fromkeys(values(alternative) for alternative in alternatives))
    if "$ref" in field:
        return "a section, see below"
    if "const" in field:
        return plain(field["const"])
    if "enum" in field:
        return ", ".join(plain(value) for value in field["enum"])
    kind = field.get("type")
    if kind == "null":
        return "`null`"
    if kind == "array":
        inner = field.get("items", {})
        return "list of sections, see below" if "$ref" in inner else "list"
    if kind == "object":
        return "mapping"
    bounds = [f"{sign} {field[key]}" for key, sign in BOUNDS.items() if key in field]
    return " ".join([TYPES[kind], ", ".join(bounds)]).strip() if isinstance(kind, str) else "any"


def cells(section: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Yield key, values, default and meaning of every key of a section."""
    sections = schema()
    for key, field in section["properties"].items():
        meaning = field.get("description", "")
        if not meaning and "$ref" in field:
            meaning = sections[field["$ref"].rsplit("/", 1)[-1]]["description"].split(".")[0]
        if "const" in field:
            meaning = meaning or "selects the method"
        default = plain(field["default"]) if "default" in field else ""
        if isinstance(field.get("default"), dict):
            default = "its defaults"
        if key in section.get("required", ()):
            default = "required"
        if field.get("type") in ("object", "array"):
            default = default or "none"
        yield f"`{key}`", values(field), default or "its defaults", re.sub(r"([|\[])", r"\\\1", meaning)


def table(name: str) -> str:
    """Return the table of one section.

    Raises:
        KeyError: there is no such section.
    """
    lines = ["| key | values | default | meaning |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in cells(schema()[name])]
    return "\n".join(lines) + "\n"


def with_tables(text: str) -> str:
    """Return the page with all its tables up to date."""
    return MARKED.sub(lambda match: match[1] + table(match[2]) + match[3], text)


def main() -> None:
    for page in sorted(Path(__file__).parent.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        if (new := with_tables(text)) != text:
            page.write_text(new, encoding="utf-8")
            print(f"{page}: tables rewritten")


if __name__ == "__main__":
    main()
