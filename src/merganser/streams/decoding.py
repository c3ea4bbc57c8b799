"""Bytes of a text file to characters, and what to do about a file in another encoding."""

from __future__ import annotations

import codecs
import shlex
from pathlib import Path

from merganser.errors import InputError

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_PROBED = 1000
"""How many bytes at the beginning tell whether a file is UTF-16."""
UNICODE_REMEDY = "Replace these characters, or remove the row."


def decode_file(data: bytes, shown: str, path: Path) -> str:
    """Decode a file: UTF-8 with or without a byte-order mark, UTF-16 or UTF-32 with one.

    Bytes that are not UTF-8 become lone surrogates, so that the rows that hold them can be named; see
    :func:`undecodable_byte`.

    Args:
        data: the content.
        shown: the file's name in messages.
        path: the file, for a command that converts it.

    Raises:
        InputError: UTF-16 or UTF-32 that is malformed, or UTF-16 without a byte-order mark.
    """
    marked = data.startswith(tuple(mark for mark, _ in _MARKS))
    if not marked and (name := _utf16_without_mark(data[:_PROBED])):
        raise InputError(f"{shown}: is UTF-16 without a byte-order mark.", convert_remedy(path, name))
    return decode_text(data, shown)


def decode_text(data: bytes, shown: str) -> str:
    """Decode bytes as :func:`decode_file` does.

    Raises:
        InputError: UTF-16 or UTF-32 that is malformed.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            try:
                return data.decode(encoding)
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{shown}: byte {error.start + 1} is not {encoding.upper()}, which its byte-order mark announces.",
                    "Write it again as UTF-8.",
                ) from error
    return data.decode("utf-8-sig", errors="surrogateescape")


def convert_remedy(path: Path, encoding: str) -> str:
    """Return the remedy for a file in another encoding: a command that writes it as UTF-8 beside it."""
    target = path.with_name(f"{path.stem}-utf8{path.suffix}")
    command = f"iconv -f {encoding} -t UTF-8 {shlex.quote(str(path))} > {shlex.quote(str(target))}"
    return f"Convert it to UTF-8 with `{command}`."


def likely_encoding(data: bytes) -> str:
    """Return the name, for ``iconv``, of the encoding that a file which is not UTF-8 most likely has."""
    try:
        data.decode("cp1252")
    except UnicodeDecodeError:
        return "ISO-8859-1"  # in which every byte is a character
    return "WINDOWS-1252"


def first_surrogate(text: str) -> int | None:
    """Return the position of the first lone surrogate in a text, or ``None`` if the text is valid Unicode.

    Lone surrogates come from JSON escapes (one half of an emoji cut in two), and from arguments or file names of
    undecodable bytes. No tokenizer reads them, and no file in UTF-8 can hold them.
    """
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def unicode_problem(text: str) -> str:
    """Return why a text is no valid Unicode, as a half-sentence; an empty string for a valid one."""
    position = first_surrogate(text)
    if position is None:
        return ""
    if byte := undecodable_byte(text[position]):
        return f"it holds the byte {byte}, which is not UTF-8"
    return f"it holds half a character (\\u{ord(text[position]):04x})"


def undecodable_byte(character: str) -> str:
    """Return the byte, as ``0xe9``, that became this surrogate when it was decoded; an empty string if none did."""
    code = ord(character)
    return f"0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else ""


def _utf16_without_mark(start: bytes) -> str:
    """Return the name of the byte order if every second byte of the beginning is zero, as in English UTF-16."""
    half = len(start) // 2
    if start[1::2].count(0) > 0.9 * half and start[0::2].count(0) < 0.1 * half:
        return "UTF-16LE"
    if start[0::2].count(0) > 0.9 * half and start[1::2].count(0) < 0.1 * half:
        return "UTF-16BE"
    return ""
