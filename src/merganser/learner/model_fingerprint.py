"""The fingerprint of a pretrained model and of its tokenizer, by which a run recognises them on another machine."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from merganser.checkpoints.source import read_json
from merganser.files.digests import file_digest
from merganser.lineage import model_digest
from merganser.models.base import Backbone
from merganser.models.source import CONFIG


def fingerprint(backbone: Backbone) -> str:
    """Return the SHA-256 of a pretrained model: every byte of its weights, and its configuration.

    How the tensors are divided among files does not matter. Of a .gguf file, the bytes of the file.

    Raises:
        InputError: a file of the model is damaged.
    """
    source = backbone.pretrained_from.source
    if source.gguf is not None:
        return file_digest(source.gguf)
    config = source.file(CONFIG, downloaded=True)
    return model_digest(source.weight_files(), {} if config is None else read_json(config))


def tokenizer_digest(backbone: Backbone) -> str:
    """Return the SHA-256 of a tokenizer's vocabulary, special tokens and chat template; empty where no text is read.

    How its files are written does not matter, which differs between versions of transformers.
    """
    tokenizer = backbone.tokenizer.tokenizer if backbone.modality == "image" else backbone.tokenizer
    settings = backbone.pretrained_from.settings.tokenizer
    if tokenizer is None or settings is None:
        return ""
    special = {**tokenizer.special_tokens_map, "pad_token": settings.attributes["pad_token"]}
    content = [sorted(tokenizer.get_vocab().items()), sorted(special.items(), key=str), tokenizer.chat_template]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def hub_commit(backbone: Backbone) -> str | None:
    """Return the commit of a pretrained model that was read from the hub's cache, which has a folder per commit."""
    source = backbone.pretrained_from.source
    path = None if Path(source.location).is_dir() else source.file(CONFIG, downloaded=True)
    return path.parent.name if path is not None and path.parent.parent.name == "snapshots" else None
