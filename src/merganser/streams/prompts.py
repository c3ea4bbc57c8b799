"""Prompt templates: plain field names in braces, nothing else.

``str.format`` would also follow attributes and indices (``{input.__class__}``) and run format specifications. A
template comes from a configuration file that may have been passed around, so only the literal text and the names are
used here and the values are put in as they are: braces inside a value stay text.
"""

from __future__ import annotations

import string
from collections.abc import Mapping

from merganser.errors import InputError, nearest

_REMEDY = "Write {field} with the plain name of a field, or {input}; a literal brace is written twice: {{ or }}."


def parse_prompt(template: str) -> list[tuple[str, str | None]]:
    """Split a template into ``(literal text, field name or None)`` pairs.

    Raises:
        InputError: unbalanced braces, an empty name, or anything but a plain name (attributes, indices, conversions,
            format specifications).
    """
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise InputError(f"The prompt {template!r} cannot be read: {error}.", _REMEDY) from error
    result: list[tuple[str, str | None]] = []
    for literal, name, spec, conversion in pieces:
        if name is not None:
            if spec or conversion:
                raise InputError(f"The prompt {template!r} gives field '{name}' a format or conversion.", _REMEDY)
            if not name.strip() or any(character in name for character in ".[]{}") or name.isdigit():
                raise InputError(f"The prompt {template!r} has '{{{name}}}', which is not a plain field name.", _REMEDY)
        result.append((literal, name))
    return result


def prompt_fields(template: str) -> tuple[str, ...]:
    """Return the names of the fields a template uses, each once, in order of appearance.

    Raises:
        InputError: as :func:`parse_prompt`.
    """
    return tuple(dict.fromkeys(name for _, name in parse_prompt(template) if name is not None))


def fill_prompt(template: str, values: Mapping[str, str]) -> str:
    """Return the text of one example: the template with every ``{field}`` replaced by its value.

    Raises:
        InputError: the template is not a valid one, or ``values`` lacks a field it names.
    """
    parts: list[str] = []
    for literal, name in parse_prompt(template):
        parts.append(literal)
        if name is None:
            continue
        if name not in values:
            fields = ", ".join(values) or "none"
            raise InputError(
                f"The prompt {template!r} needs field '{name}', which is missing (present: {fields}).",
                nearest(name, values) or "Give the field, or change the prompt.",
            )
        parts.append(values[name])
    return "".join(parts)


def fill_with_text(template: str, text: str) -> str:
    """Put ``text`` in place of the only field of the template.

    Raises:
        InputError: the template is not a valid one, or has several fields, so that one text cannot fill it.
    """
    fields = prompt_fields(template)
    if len(fields) != 1:
        raise InputError(
            f"The prompt {template!r} has {len(fields)} fields ({', '.join(fields) or 'none'}), not one.",
            "Give every field by its name.",
        )
    return fill_prompt(template, {fields[0]: text})
