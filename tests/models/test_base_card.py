"""Licence and languages of a pretrained model, from its card or licence file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from merganser.models.base_card import base_card
from merganser.models.source import ModelSource

OTHER = {"license": "other", "license_name": "of-the-pretrained-model", "license_link": "LICENSE"}


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, {}),
        ({"README.md": "# no header"}, {}),
        ({"README.md": "---\nlicense: mit\nlanguage: en\n---\n# x"}, {"license": "mit", "language": ["en"]}),
        ({"README.md": "---\nlicense: [a]\nlanguage: [en, false, de]\n---\n"}, {"language": ["en", "de"]}),
        ({"README.md": "---\n: [\n---\n"}, {}),
        ({"LICENSE": "Apache License\nVersion 2.0, January 2004"}, {"license": "apache-2.0"}),
        ({"README.md": "---\ntags: [x]\n---\n", "LICENSE": "My terms"}, OTHER),
        (
            {"README.md": "---\nlicense: other\nlicense_name: llama3\n---\n"},
            {"license": "other", "license_name": "llama3"},
        ),
    ],
)
def test_licence_and_languages(files: dict[str, str], found: dict[str, Any], tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert base_card(ModelSource("x", str(tmp_path))) == found
