from __future__ import annotations

import pytest

from merganser.files.markdown import code_block, code_span, escaped


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("business world", "business world"),
        ("a|b", "a\\|b"),
        ("<script>alert('x')</script> & co", "&lt;script&gt;alert('x')&lt;/script&gt; &amp; co"),
        ("[here](javascript:alert(1))", "\\[here\\](javascript:alert(1))"),
        ("![x](http://y)", "!\\[x\\](http://y)"),
        ("**loud** _low_ ~~gone~~ `code` $x^2$", "\\*\\*loud\\*\\* \\_low\\_ \\~\\~gone\\~\\~ \\`code\\` \\$x\\^2\\$"),
        ("two\nlines\r\tand\u2028more \x00\x1b[31m", "two lines and more \\[31m"),
        ("back\\|slash", "back\\\\\\|slash"),
        ("half \ud800 of one", "half of one"),
        ("\u202eright to left", "right to left"),
    ],
)
def test_text_is_shown_as_it_is(text: str, expected: str) -> None:
    assert escaped(text) == expected
    escaped(text).encode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a/b", "`a/b`"), ("a`b", "`` a`b ``"), ("``", "``` `` ```"), ("a|b\nc", "`a\\|b c`"), ("<b>", "`<b>`")],
)
def test_code_in_a_line(text: str, expected: str) -> None:
    assert code_span(text) == expected


def test_code_in_a_block() -> None:
    assert code_block("a\n", "sh") == "```sh\na\n```\n"
    assert code_block("a\n```\n# not a title", "") == "````\na\n```\n# not a title\n````\n"
