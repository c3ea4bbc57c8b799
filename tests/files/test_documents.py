"""JSON, YAML and files that anyone may have written: an error with its place, or work in proportion to the size."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merganser.files.documents import (
    MOST_REPEATED,
    Malformed,
    parse_json,
    parse_yaml,
    read_bytes,
    read_text,
    yaml_document,
)


def aliases(levels: int, width: int) -> str:
    """``width ** levels`` values in ``levels`` lines."""
    lines = ["l0: &l0 [" + ", ".join("x" * width) + "]"]
    lines += [f"l{n}: &l{n} [" + ", ".join([f"*l{n - 1}"] * width) + "]" for n in range(1, levels)]
    return "\n".join(lines)


def merge_keys(levels: int) -> str:
    """PyYAML's own loader copies ``2 ** levels`` pairs."""
    lines = ["m0: &m0 {x: 1}"]
    lines += [f"m{n}: &m{n} {{<<: [*m{n - 1}, *m{n - 1}]}}" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "reason", "line"),
    [
        (aliases(9, 9), "repeat more than", 6),
        (merge_keys(60), "repeat more than", None),
        ("a: &a [*a]", "an alias contains itself", 1),
        ("- &a0 []\n" + "".join(f"- &a{n} [*a{n - 1}]\n" for n in range(1, 300)), "nested more than", None),
        ("[" * 150 + "]" * 150, "nested more than", None),
        ("a: 1\nb: 2\na: 3", "the key 'a' stands twice", 3),
        ("1: a\ntrue: b", "the key True stands twice", 2),
        ("a: {<<: {b: 1}, <<: {c: 1}}", "the key '<<' stands twice", 1),
        ("a: 1" + "0" * 5000, "a number has 5,001 characters", 1),
        ("a: " + "1:" * 3000 + "1", "a number has 6,001 characters", 1),
        ("a: 2024-13-45", "'2024-13-45' is not a value of the type 'timestamp'", 1),
        ("b: 1\na: !!bool maybe", "'maybe' is not a value of the type 'bool'", 2),
        ("a: !!int ''", "not a value of the type 'int'", 1),
        ("a: \x00", "the character U+0000 is not allowed", 1),
        ('a: "\\ud800"', "half a character", 1),
        ('a: "\\U0011FFFF"', "an escape names no character", None),
        ("? [a]\n: 1", "a key is a list or a mapping", 1),
        ("!!python/object/apply:os.system [exit]", "could not determine a constructor", 1),
        ("a: 1\n---\nb: 1", "found another document", 2),
    ],
)
def test_yaml_that_is_refused(text: str, reason: str, line: int | None) -> None:
    with pytest.raises(Malformed, match=re.escape(reason)) as caught:
        parse_yaml(text)
    assert line is None or caught.value.line == line


def test_ordinary_yaml_keeps_its_meaning() -> None:
    text = "base: &base {a: 1, b: [x, y]}\nfirst: {<<: *base, a: 2}\nsecond: *base\n'on': yes\nnothing:\n"
    assert parse_yaml(text) == {
        "base": {"a": 1, "b": ["x", "y"]},
        "first": {"a": 2, "b": ["x", "y"]},
        "second": {"a": 1, "b": ["x", "y"]},
        "on": True,
        "nothing": None,
    }
    assert parse_yaml("") is None
    # As many repetitions as anyone needs: one list of a hundred values for each of five hundred tasks.
    shared = "l: &l [" + ", ".join("x" * 100) + "]\n" + "".join(f"k{n}: *l\n" for n in range(500))
    assert MOST_REPEATED > 500 * 100
    assert len(parse_yaml(shared)["k499"]) == 100


@pytest.mark.parametrize(
    ("text", "reason", "line"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' stands twice in an object", None),
        ('{"a":\n' + "1" * 1001 + "}", "a number has 1,001 digits", None),
        ("[" * 100_000, "nested too deeply", None),
        ('{"a": 1,\n"b"}', "Expecting ':' delimiter", 2),
    ],
)
def test_json_that_is_refused(text: str, reason: str, line: int | None) -> None:
    with pytest.raises(Malformed, match=reason) as caught:
        parse_json(text)
    assert caught.value.line == line


def test_json_numbers_of_a_thousand_digits_are_read() -> None:
    assert parse_json("[" + "7" * 1000 + ", -1.5e3, null]") == [int("7" * 1000), -1500.0, None]


def test_pipes_devices_and_folders_are_not_read(tmp_path: Path) -> None:
    """Opening a pipe that nobody writes to would wait for ever, /dev/zero never ends."""
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "pipe"), (Path("/dev/zero"), "device"), (tmp_path, "folder")):
        with pytest.raises(OSError, match=f"it is a {kind}, not a file"):
            read_bytes(path)


@pytest.mark.parametrize(
    ("name", "reason"), [("a\0b", "NUL"), ("\ud83d", "not valid Unicode"), ("x" * 300, "name too long")]
)
def test_names_that_no_file_can_have(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(OSError, match=reason):
        read_bytes(tmp_path / name)


def test_text_that_is_not_utf8_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes("\ufeffone\ntwo".encode())
    assert read_text(tmp_path / "x") == "one\ntwo"
    (tmp_path / "x").write_bytes(b"one\ntw\xf6")
    with pytest.raises(Malformed, match="byte 0xf6 is not UTF-8 at line 2"):
        read_text(tmp_path / "x")


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)


@given(st.dictionaries(st.text(max_size=8), PLAIN | st.lists(PLAIN, max_size=3), max_size=5))
def test_what_is_written_as_yaml_is_read_again(value: dict[str, Any]) -> None:
    assert parse_yaml(yaml_document(value, width=30)) == value


def test_yaml_keeps_the_order_of_keys_and_letters_of_all_languages() -> None:
    value = {"label": "Straße 東京", "mood": "🎉", "a": [1.5, None], "b": {"c": True}}
    assert yaml_document(value) == "label: Straße 東京\nmood: 🎉\na:\n- 1.5\n- null\nb:\n  c: true\n"
