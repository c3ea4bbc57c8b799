"""Text from outside in Markdown files: it is shown as it is, and is neither markup, nor HTML, nor a link."""

from __future__ import annotations

import re

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_MARKUP = re.compile(r"[\\`*_\[\]|~$^]")


def one_line(text: str) -> str:
    """Return text on one line, without control characters and halves of characters."""
    printable = (letter if letter.isprintable() else " " for letter in text)
    return " ".join("".join(printable).split())


def escaped(text: str) -> str:
    """Return text that Markdown (also in a cell of a table) shows literally, on one line."""
    entities = "".join(_ENTITIES.get(letter, letter) for letter in one_line(text))
    return _MARKUP.sub(lambda match: f"\\{match[0]}", entities)


def code_span(text: str) -> str:
    """Return text as inline code, also in a cell of a table."""
    text = one_line(text).replace("|", "\\|")
    fence = "`" * (1 + _longest_run(text))
    space = " " if "`" in text or not text else ""
    return f"{fence}{space}{text}{space}{fence}"


def code_block(text: str, language: str) -> str:
    """Return text as a block of code that nothing in it can end."""
    fence = "`" * max(3, 1 + _longest_run(text))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}\n"


def _longest_run(text: str) -> int:
    """Return the length of the longest run of backquotes."""
    return max(map(len, re.findall("`+", text)), default=0)
