"""Licence and languages of a pretrained model, from its own card or licence file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from merganser.errors import InputError
from merganser.files.documents import Malformed, parse_yaml, read_text
from merganser.files.markdown import one_line
from merganser.models.source import ModelSource

CARD = "README.md"

HEADING = re.compile(r"^# +(?:model card (?:for|of) +)?(?P<name>.+?) *#*$", re.IGNORECASE | re.MULTILINE)
"""The first heading of a card."""

LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING")

KNOWN_TEXTS = {"apache-2.0": ("Apache License", "Version 2.0"), "mit": ("MIT License", "Permission is hereby granted")}
"""Words of a licence file by which a licence is recognised."""

LONGEST = 100
"""Characters of a value; what is longer is not what the hub means by these keys."""


def base_card(source: ModelSource) -> dict[str, Any]:
    """Return ``license``, ``license_name``, ``license_link`` and ``language`` of a pretrained model, as far as known.

    Of a model without a card, a licence file is ``other`` unless its text is a known one.
    """
    try:
        card = _from_card(source)
        return card if "license" in card else {**card, **_from_file(source)}
    except (InputError, Malformed, OSError):
        return {}  # a card that cannot be read is no reason not to train: the licence is then unknown


def card_title(folder: Path) -> str:
    """Return the name of a model that the heading of its card gives, such as ``all-MiniLM-L6-v2``.

    Empty where the folder has no card, or its heading is a sentence rather than a name.
    """
    try:
        text = read_text(folder / CARD)
    except (Malformed, OSError):
        return ""  # the name of the folder does as well
    heading = HEADING.search(text.removeprefix("---").partition("\n---")[2] if text.startswith("---") else text)
    name = one_line(heading["name"]).rpartition("/")[2] if heading else ""
    return name if 0 < len(name) <= LONGEST and " " not in name else ""


def _from_card(source: ModelSource) -> dict[str, Any]:
    path = source.file(CARD)
    text = "" if path is None else read_text(path)
    if not text.startswith("---"):
        return {}
    head = parse_yaml(text.split("\n---", 1)[0].removeprefix("---"))
    if not isinstance(head, dict):
        return {}
    card: dict[str, Any] = {}
    for key in ("license", "license_name", "license_link"):
        if isinstance(value := head.get(key), str) and 0 < len(value) <= LONGEST:
            card[key] = one_line(value)
    languages = head.get("language")
    languages = [languages] if isinstance(languages, str) else languages
    if isinstance(languages, list):
        codes = [one_line(code) for code in languages if isinstance(code, str) and 0 < len(code) <= LONGEST]
        card |= {"language": codes} if codes else {}
    return card


def _from_file(source: ModelSource) -> dict[str, Any]:
    for name in LICENCE_FILES:
        path = source.file(name, downloaded=True)
        if path is None:
            continue
        text = read_text(path)
        for licence, words in KNOWN_TEXTS.items():
            if all(word in text for word in words):
                return {"license": licence}
        return {"license": "other", "license_name": "of-the-pretrained-model", "license_link": name}
    return {}
