"""The ``config.json`` of a merged model: that of the reference, with what the merge changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merganser.checkpoints.chat_settings import TOKEN_IDS
from merganser.checkpoints.plan import Plan
from merganser.checkpoints.source import read_json
from merganser.checkpoints.vocabularies.common_rows import number_of_rows
from merganser.checkpoints.vocabularies.tied_names import EMBEDDING


def write_config(plan: Plan, path: Path) -> None:
    """Change a copied ``config.json``: the type, the tying, the number of tokens and their ids."""
    if not path.is_file():
        return
    content = before = read_json(path)
    if plan.recipe.dtype is not None:
        keys = [key for key in ("dtype", "torch_dtype") if key in content] or ["dtype"]
        content = {**content, **dict.fromkeys(keys, plan.recipe.dtype)}
    if plan.untied:
        content = _with(content, "tie_word_embeddings", False)
    rows = [number_of_rows(plan.tokenizer.tensors[name]) for name in plan.rows if EMBEDDING.search(name)]
    if rows:
        content = _with(content, "vocab_size", max(rows))
    if plan.located.tokenizer is not None:
        content = _with_token_ids(content, plan.tokenizer.config)
    if content != before:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _with(content: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Set a key where it is, in the whole or in the language model's part; in the whole where it is nowhere."""
    changed = dict(content)
    for part in (part for part, inner in content.items() if isinstance(inner, dict) and key in inner):
        changed[part] = {**content[part], key: value}
    if key in content or changed == content:
        changed[key] = value
    return changed


def _with_token_ids(content: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
    """Take the token ids of another configuration, nested ones included."""
    changed = {key: value for key, value in content.items() if key not in TOKEN_IDS}
    changed |= {key: source[key] for key in TOKEN_IDS if key in source}
    for key, value in content.items():
        if key.endswith("_config") and isinstance(value, dict) and isinstance(source.get(key), dict):
            changed[key] = _with_token_ids(value, source[key])
    return changed
