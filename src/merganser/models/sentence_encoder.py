"""The files beside an exported text encoder that make ``SentenceTransformer(folder)`` give the matcher's vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from merganser.models.matcher import Matcher
from merganser.models.options import Pooling

POOLING_KEYS: dict[Pooling, str] = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "last": "pooling_mode_lasttoken",
}
"""Names of the ways to pool in files of sentence-transformers, as all its versions read them."""

MODULES = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
"""Folder and class of each module, in the order in which a text passes through them."""


def write_sentence_encoder(backbone: Matcher, folder: Path) -> None:
    """Write ``modules.json`` and the settings of the modules: length, pooling and normalisation of a matcher of texts.

    Args:
        folder: of the exported encoder and its tokenizer.
    """
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"}
        for index, (path, name) in enumerate(MODULES)
    ]
    config: Any = backbone.model.config
    pooling: dict[str, Any] = {"word_embedding_dimension": config.get_text_config().hidden_size}
    pooling |= {key: way == backbone.options.pooling for way, key in POOLING_KEYS.items()}
    (folder / "1_Pooling").mkdir(exist_ok=True)  # normalisation has no settings, and so no folder
    _write(folder / "modules.json", modules)
    _write(folder / "1_Pooling" / "config.json", pooling)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": backbone.lengths.input, "do_lower_case": False})
    settings: dict[str, Any] = {"similarity_fn_name": "cosine", "prompts": {}, "default_prompt_name": None}
    _write(folder / "config_sentence_transformers.json", settings)


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
