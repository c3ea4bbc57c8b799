"""Sidecar files of a model: config, tokenizer and generation settings are copied, other files are reported."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from merganser.checkpoints.chat_settings import TEMPLATES
from merganser.checkpoints.source import ADAPTER_CONFIG, PICKLES, SIDECAR_FILES, read_json
from merganser.files.links import leads_outside

_WEIGHTS = (".safetensors", ".gguf", ".h5", ".msgpack", ".onnx", *PICKLES)
_NOT_COPIED = (
    *(".index.json", ADAPTER_CONFIG, "trainer_state.json", "aim_merging.json", "labels.json"),
    *("lineage.json", "merganser.json"),
)
"""Not copied: training states and origins describe one model only; a matcher's labels need their vectors."""
_REPLACED = ("README.md", "merge.yaml", "lineage.json", "ROW", "trainer_state.json", "aim_merging.json", ADAPTER_CONFIG)
"""Rewritten, or meaningless elsewhere (``ROW``: which task's weights a run's ``model/`` has)."""
_NAMING_CODE = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")


def copy_sidecar_files(source: Path, folder: Path, shards: Sequence[str], tokenizer: Path | None = None) -> None:
    """Copy config, tokenizer and generation settings; nothing that holds weights or code, or is a link to elsewhere.

    Args:
        source: folder of a model or an adapter. Without a config nothing is copied: files beside a single .safetensors
            file need not belong to it.
        folder: destination.
        shards: names of the model's safetensors files.
        tokenizer: folder whose tokenizer and generation settings are copied instead of those of ``source``.
    """
    texts = source if tokenizer is None else tokenizer
    for origin in dict.fromkeys((source, texts)):
        for path in sorted(origin.iterdir()) if _has_config(origin) else ():
            wanted = tokenizer is None or origin == (source if _is_config(path) else tokenizer)
            if path.is_file() and _is_sidecar(path, shards if origin == source else ()) and wanted:
                shutil.copyfile(path, folder / path.name)
    templates = sorted((texts / TEMPLATES).glob("*.jinja")) if _has_config(texts) else []
    if templates:
        (folder / TEMPLATES).mkdir()
    for path in templates:
        if leads_outside(path, texts):
            continue
        shutil.copyfile(path, folder / TEMPLATES / path.name)


def _is_config(path: Path) -> bool:
    """Return whether a sidecar file describes the model, not its tokenizer or how it generates."""
    return path.name == "config.json" or path.name.endswith("processor_config.json")


def _has_config(source: Path) -> bool:
    return any((source / name).is_file() for name in ("config.json", ADAPTER_CONFIG))


def _is_sidecar(path: Path, shards: Sequence[str]) -> bool:
    known = any(fnmatchcase(path.name, pattern) for pattern in SIDECAR_FILES)
    copied = known and not path.name.endswith(_NOT_COPIED) and path.name not in shards
    return copied and not leads_outside(path, path.parent)


def uncopied_files(source: Path, shards: Sequence[str]) -> list[str]:
    """List the files of a model, other than weights, that are not copied, and the code that a config needs.

    A config whose ``auto_map`` names a file loads only when that file is put beside it (or, by ``owner/name--file``,
    comes from the hub).

    Raises:
        InputError: one of the configs is not JSON.
    """
    if not _has_config(source):
        return []
    code: dict[str, str] = {}
    for name in _NAMING_CODE:
        if (source / name).is_file():
            for file in _code_of(read_json(source / name)):
                code.setdefault(file, f"{file} (auto_map of {name} needs it)")
    names = {path.name for path in source.iterdir() if path.is_file() and not _is_sidecar(path, shards)}
    other = {name for name in names if not name.startswith(".") and name not in _REPLACED}
    other = {name for name in other if not name.endswith((*_WEIGHTS, ".index.json")) and name not in shards}
    return sorted(code.get(name, name) for name in other | set(code))


def _code_of(config: dict[str, Any]) -> list[str]:
    """List files beside the config that its ``auto_map`` names."""
    named = config.get("auto_map")
    values = list(named.values()) if isinstance(named, dict) else []
    texts = [text for value in values for text in (value if isinstance(value, list) else [value])]
    return [f"{text.partition('.')[0]}.py" for text in texts if isinstance(text, str) and "--" not in text]
