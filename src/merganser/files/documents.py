"""Read files, JSON and YAML that anyone may have written.

Whatever a file holds, reading it takes time and memory in proportion to its size: pipes and devices are not opened,
repetition by YAML aliases is bounded, and numbers have a limit. A key that stands twice in one object is an error: one
of its two values would be lost.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

import yaml

from merganser.errors import first_repeated

try:
    from yaml import CSafeDumper, CSafeLoader
except ImportError:  # PyYAML without libyaml
    from yaml import SafeDumper as CSafeDumper  # type: ignore[assignment]
    from yaml import SafeLoader as CSafeLoader  # type: ignore[assignment]

MOST_DIGITS = 1000
"""Characters of a number; longer ones take quadratic time and cannot be printed."""

MOST_REPEATED = 100_000
"""Values that YAML aliases may repeat in one document; nine lines of aliases can name a billion."""

DEEPEST = 100
"""Levels of nesting in a YAML document."""

LONGEST = 1000
"""Characters of a line, and brackets, with which a YAML document is certain not to exhaust libyaml's stack."""

_HALF_CHARACTER = re.compile(r"[\ud800-\udfff]")


class Malformed(ValueError):
    """A document that cannot be read.

    Attributes:
        reason: what is wrong, without a full stop.
        line: 1-based line, where it is known.
    """

    def __init__(self, reason: str, line: int | None = None) -> None:
        self.reason = reason
        self.line = line
        super().__init__(f"{reason} at line {line}" if line else reason)


def open_file(path: Path) -> BufferedReader:
    """Open an ordinary file to read it; a pipe or a device, which might never end, is refused.

    Raises:
        OSError: it cannot be read; ``strerror`` is the reason in words.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except UnicodeEncodeError as error:
        raise OSError(errno.EINVAL, "its name is not valid Unicode", str(path)) from error
    except ValueError as error:
        raise OSError(errno.EINVAL, "its name holds a NUL character", str(path)) from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = "folder" if stat.S_ISDIR(mode) else "pipe" if stat.S_ISFIFO(mode) else "device"
        raise OSError(errno.EINVAL, f"it is a {kind}, not a file", str(path))
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path) -> bytes:
    """Read an ordinary file whole.

    Raises:
        OSError: as for :func:`open_file`; or it is larger than the memory.
    """
    with open_file(path) as file:
        try:
            return file.read()
        except MemoryError as error:
            raise OSError(errno.ENOMEM, "it is larger than the memory", str(path)) from error


def read_text(path: Path) -> str:
    """Read an ordinary file of UTF-8 text, with or without a byte-order mark; line ends are kept.

    Raises:
        OSError: as for :func:`read_bytes`.
        Malformed: it is not UTF-8.
    """
    data = read_bytes(path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Malformed(f"byte 0x{data[error.start]:02x} is not UTF-8", line) from error


def is_unicode(text: str) -> bool:
    """Return whether a text can be written: the escapes of JSON can name half of a character (a lone surrogate)."""
    return text.isascii() or _HALF_CHARACTER.search(text) is None


# JSON ----------------------------------------------------------------------------------------------------------------


def parse_json(text: str) -> Any:
    """Parse one JSON document.

    Raises:
        Malformed: it is not JSON, nested too deeply, a key stands twice in an object, or a number is too long.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_int=_whole_number)
    except json.JSONDecodeError as error:
        raise Malformed(error.msg, error.lineno) from error
    except RecursionError as error:
        raise Malformed("nested too deeply") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise Malformed(f"the key {_short(first_repeated(key for key, _ in pairs))} stands twice in an object")
    return value


def _whole_number(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise Malformed(f"a number has {len(digits):,} digits, more than {MOST_DIGITS:,}")
    return int(digits)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


# YAML ----------------------------------------------------------------------------------------------------------------


def parse_yaml(text: str) -> Any:
    """Parse one YAML document into plain values.

    Raises:
        Malformed: it is not YAML, nested too deeply, a key stands twice in a mapping, aliases repeat more than
            :data:`MOST_REPEATED` values or contain themselves, or a number is too long.
    """
    # A level of nesting takes a column or a bracket.
    if max(map(len, text.splitlines()), default=0) + text.count("[") + text.count("{") <= LONGEST:
        with suppress(yaml.YAMLError, ValueError, RecursionError):  # the other loader raises what it is, and where
            return _value(_FastLoader(text))
    try:
        return _value(_Loader(text))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise Malformed(f"the character U+{error.character:04X} is not allowed", line) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or " ".join(str(error).split())
        raise Malformed(reason, mark.line + 1 if mark else None) from error
    except RecursionError as error:
        raise Malformed("nested too deeply") from error
    except ValueError as error:
        raise Malformed("an escape names no character") from error


def _value(loader: _Constructor) -> Any:
    node = loader.get_single_node()
    if node is None:
        return None
    _check(node, loader)
    return loader.construct_document(node)


class _Constructor(yaml.constructor.SafeConstructor):
    """The safe constructor, whose errors have a line: impossible dates and numbers raise whatever Python raises."""

    get_single_node: Callable[[], yaml.Node | None]

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        kind = node.tag.rpartition(":")[2]
        if not isinstance(node, yaml.ScalarNode):
            return super().construct_object(node, deep)
        if kind in ("int", "float") and len(node.value) > MOST_DIGITS:
            reason = f"a number has {len(node.value):,} characters, more than {MOST_DIGITS:,}"
            raise _at(node, reason)
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:
            reason = f"{_short(node.value)} is not a value of the type '{kind}'"
            raise _at(node, reason) from error


def yaml_document(value: Mapping[str, Any], width: int = 80) -> str:
    """Return plain values as a YAML document, with keys in the order given.

    Args:
        width: characters after which a long text is broken.
    """
    # libyaml is ten times as fast, but escapes what is beyond the basic plane, such as emoji. PyYAML itself leaves
    # that readable; beside a few control characters, though, it writes something else, or nothing that can be read.
    value = dict(value)
    text = yaml.dump(value, Dumper=CSafeDumper, sort_keys=False, allow_unicode=True, width=width)
    if "\\U" in text:
        readable = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=width)
        with suppress(yaml.YAMLError):
            if yaml.load(readable, CSafeLoader) == value:
                return readable
    return text


class _Loader(_Constructor, yaml.SafeLoader):
    """The loader in Python, whose messages people know."""

    def fetch_flow_collection_start(self, TokenClass: type[yaml.Token]) -> None:
        # The scanner looks ahead, in time that grows with the square of the depth.
        if self.flow_level >= DEEPEST:
            raise yaml.scanner.ScannerError(None, None, f"nested more than {DEEPEST} deep", self.get_mark())
        super().fetch_flow_collection_start(TokenClass)


class _FastLoader(_Constructor, CSafeLoader):
    """The loader of libyaml, ten times as fast."""


def _check(root: yaml.Node, loader: _Constructor) -> None:
    """Refuse what constructing the values would repeat without bound, or lose."""
    sizes: dict[int, tuple[int, int] | None] = {}

    def visit(node: yaml.Node) -> tuple[int, int]:
        """Return how many values a node stands for and how deep they are nested. Anchors come before their aliases."""
        if id(node) in sizes:
            known = sizes[id(node)]
            if known is None:
                raise _at(node, "an alias contains itself")
            return known
        sizes[id(node)] = None
        if isinstance(node, yaml.ScalarNode) and not is_unicode(node.value):
            raise _at(node, "it holds half a character (a lone surrogate)")
        count = depth = 0
        for child in _children(node):
            below = visit(child)
            count, depth = count + below[0], max(depth, below[1])
        if isinstance(node, yaml.MappingNode):
            _check_keys(node, loader)
        if depth >= DEEPEST:
            raise _at(node, f"nested more than {DEEPEST} deep")
        if count > len(sizes) + MOST_REPEATED:
            raise _at(node, f"its aliases repeat more than {MOST_REPEATED:,} values")
        sizes[id(node)] = 1 + count, 1 + depth
        return 1 + count, 1 + depth

    visit(root)


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key
            yield value
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _check_keys(mapping: yaml.MappingNode, loader: _Constructor) -> None:
    seen: set[Any] = set()
    for node, _ in mapping.value:
        if not isinstance(node, yaml.ScalarNode):
            raise _at(node, "a key is a list or a mapping")
        special = node.tag in ("tag:yaml.org,2002:merge", "tag:yaml.org,2002:value")
        key = node.value if special else loader.construct_object(node)
        if key in seen:
            raise _at(node, f"the key {_short(key)} stands twice in a mapping")
        seen.add(key)


def _at(node: yaml.Node, problem: str) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
