"""Messages stay short and quick to make, whatever names and values they are about."""

from __future__ import annotations

import time

import pytest

from merganser.errors import LONGEST_CAUSE, InputError, first_repeated, nearest, short


def test_the_nearest_of_very_many_or_very_long_words() -> None:
    started = time.process_time()
    assert nearest("acuracy", ["accuracy", "f1"]) == "Did you mean 'accuracy'?"
    assert nearest("acuracy", ["x" * 10**6, "accuracy"]) == "Did you mean 'accuracy'?"
    assert nearest("a" * 10**6, ["a" * 10**6 + "b"]) == ""
    assert nearest("label", (f"label number {number}" for number in range(10**6))) == ""
    assert time.process_time() - started < 3


@pytest.mark.parametrize(("values", "twice"), [("abcb", "b"), ("abba", "b"), ("abc", None), ("", None)])
def test_first_repeated(values: str, twice: str | None) -> None:
    assert first_repeated(values) == twice


def test_long_texts_are_cut_in_the_middle() -> None:
    error = InputError("x.json: field '" + "y" * 10**6 + "' is missing", "Add it")
    assert len(error.cause) < LONGEST_CAUSE + 10
    assert error.cause.startswith("x.json: field 'yyy")
    assert error.cause.endswith("yyy' is missing.")
    assert str(error).endswith("Add it.")
    assert short("z" * 300) == "'" + "z" * 199 + "..."
    assert short(5) == "5"
