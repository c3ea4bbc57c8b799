"""Chat templates, end-of-turn tokens and generation settings: what a result has, and what the other models had."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merganser.checkpoints.source import read_json
from merganser.errors import InputError
from merganser.files.documents import Malformed, read_text

TEMPLATES = "additional_chat_templates"
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
"""Token ids that stand in ``config.json`` beside those of the generation settings."""

_UNIMPORTANT = ("transformers_version", "_from_model_config")


@dataclass(frozen=True)
class ChatSettings:
    """Settings of a model beside its weights.

    Attributes:
        templates: name of a chat template (``default``, or that of its file) -> its text.
        end_token: the end-of-turn token.
        generation: key -> value, of ``generation_config.json``, token ids of ``config.json`` where that omits them.
    """

    templates: dict[str, str]
    end_token: str | None
    generation: dict[str, Any]


def read_chat_settings(folder: Path) -> ChatSettings:
    """Read the settings of a model's folder.

    Raises:
        InputError: one of its files cannot be read.
    """
    tokenizer = _read_optional(folder / "tokenizer_config.json")
    special = _read_optional(folder / "special_tokens_map.json")
    config = _read_optional(folder / "config.json")
    generation = {key: config[key] for key in TOKEN_IDS if config.get(key) is not None}
    generation |= {k: v for k, v in _read_optional(folder / "generation_config.json").items() if v is not None}
    return ChatSettings(
        _templates(folder, tokenizer),
        _token_text(tokenizer.get("eos_token")) or _token_text(special.get("eos_token")),
        {key: value for key, value in generation.items() if key not in _UNIMPORTANT},
    )


def dropped_settings(kept: Path, others: Sequence[tuple[str, Path]]) -> list[str]:
    """List the settings of other models that the result lacks or has otherwise.

    Args:
        kept: folder that the result's tokenizer and generation settings come from.
        others: label and folder of every model.

    Raises:
        InputError: a file of a model cannot be read.
    """
    result = read_chat_settings(kept)
    listed = []
    for label, folder in others:
        if folder.resolve() == kept.resolve():
            continue
        other = read_chat_settings(folder)
        for name, text in other.templates.items():
            if result.templates.get(name) != text:
                listed.append(f"chat template{'' if name == 'default' else f' {name}'} of {label}")
        if other.end_token not in (None, result.end_token):
            listed.append(f"end-of-turn token {other.end_token!r:.60} of {label} (here {result.end_token!r:.60})")
        for key, value in other.generation.items():
            if result.generation.get(key) != value:
                here = _short(result.generation[key]) if key in result.generation else "not set"
                listed.append(f"generation setting {key} {_short(value)} of {label} (here {here})")
    return list(dict.fromkeys(listed))


def _short(value: Any) -> str:
    return f"{json.dumps(value, ensure_ascii=False):.60}"


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _token_text(token: Any) -> str | None:
    text = token.get("content") if isinstance(token, Mapping) else token
    return text if isinstance(text, str) else None


def _templates(folder: Path, tokenizer: Mapping[str, Any]) -> dict[str, str]:
    """Read chat templates: a file of their own takes precedence over the tokenizer's settings, as in transformers."""
    templates: dict[str, str] = {}
    for stored in (tokenizer.get("chat_template"), _read_optional(folder / "chat_template.json").get("chat_template")):
        named = stored if isinstance(stored, list) else [{"name": "default", "template": stored}]
        for entry in named:
            text = entry.get("template") if isinstance(entry, Mapping) else None
            if isinstance(text, str):
                templates[str(entry.get("name"))] = text
    files = {"default": folder / "chat_template.jinja"}
    files |= {path.stem: path for path in sorted((folder / TEMPLATES).glob("*.jinja"))}
    for name, path in files.items():
        if path.is_file():
            try:
                templates[name] = read_text(path)
            except (OSError, Malformed) as error:
                raise InputError(f"{path} cannot be read: {error}.", "Download or save it again.") from error
    return templates
