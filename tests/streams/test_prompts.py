"""Prompt templates put plain fields into text and do nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merganser.errors import InputError
from merganser.streams.prompts import fill_prompt, fill_with_text, prompt_fields


def test_fields_are_filled_and_braces_stay() -> None:
    template = "Premise: {premise}\nQuestion: {the question} {{json}} {premise}"
    assert prompt_fields(template) == ("premise", "the question")
    assert fill_prompt(template, {"premise": "{a}", "the question": "b"}) == "Premise: {a}\nQuestion: b {json} {a}"


@given(st.text())
def test_values_are_never_read_as_templates(text: str) -> None:
    assert fill_prompt("<{input}>", {"input": text}) == f"<{text}>"
    assert fill_with_text("<{premise}>", text) == f"<{text}>"


@pytest.mark.parametrize(
    "template",
    [
        "{input.__class__}",
        "{input[0]}",
        "{input!r}",
        "{input:>99999999}",
        "{}",
        "{0}",
        "{ }",
        "{input",
        "input}",
        "{a{b}}",
    ],
)
def test_anything_but_plain_names_is_refused(template: str) -> None:
    with pytest.raises(InputError) as caught:
        fill_prompt(template, {"input": "x", "a": "y", "b": "z"})
    assert template in str(caught.value)
    assert "plain name" in caught.value.remedy


def test_a_field_that_is_not_given() -> None:
    with pytest.raises(InputError, match=r"needs field 'premis'.*present: premise\)\. Did you mean 'premise'\?"):
        fill_prompt("{premis}", {"premise": "x"})


def test_one_text_cannot_fill_two_fields() -> None:
    with pytest.raises(InputError, match=r"has 2 fields \(a, b\)"):
        fill_with_text("{a} {b}", "x")
