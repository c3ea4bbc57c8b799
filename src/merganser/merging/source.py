"""Checkpoints to read from: a folder in Hugging Face layout, a single file, or a hub id."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merganser.errors import InputError
from merganser.merging.safetensors_file import Tensor, read_header

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(@[\w./-]+)?")
_WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken"]


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a model on disk.

    Attributes:
        label: as the user named it.
        folder: where its files are.
        shards: names of its safetensors files, in order.
        tensors: by name, in the order of the shards.
        metadata: of the first shard.
        config: ``config.json``, or an empty map.
    """

    label: str
    folder: Path
    shards: tuple[str, ...]
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    config: dict[str, Any]


def locate(label: str) -> Path:
    """The file or folder behind a name: a path, or a hub id (``name``, ``owner/name``, ``owner/name@revision``).

    Raises:
        InputError: neither exists.
    """
    path = Path(label).expanduser()
    if path.exists():
        return path
    looks_like_path = label.startswith((".", "/", "~")) or label.count("/") > 1
    if looks_like_path or not _HUB_ID.fullmatch(label):
        raise InputError(f"There is no file or folder {label}.", "Check the path.")
    from huggingface_hub import snapshot_download

    name, _, revision = label.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=_WANTED))
    except Exception as error:
        # The hub client raises many kinds for one thing: the repository can't be had.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{label} is no file or folder, and can't be had from the hub: {reason}", "Check the name and the network."
        ) from error


def is_adapter(path: Path) -> bool:
    """Whether the folder is a PEFT adapter."""
    return path.is_dir() and (path / ADAPTER_CONFIG).is_file()


def open_checkpoint(label: str) -> Checkpoint:
    """Read the headers of a checkpoint; no tensor is read.

    Raises:
        InputError: nothing there, pickle files only, missing shards, an index that does not match its shards, a file
        that
            is not whole.
    """
    path = locate(label)
    if path.is_file():
        _refuse_pickle(path)
        tensors, metadata = read_header(path)
        return Checkpoint(label, path.parent, (path.name,), {t.name: t for t in tensors}, metadata, {})
    config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    if "quantization_config" in config:
        raise InputError(
            f"{label} holds quantised weights (quantization_config in its config.json).",
            "Merge the weights it was made from, then quantise the result.",
        )
    if (path / INDEX).is_file():
        return _sharded(label, path, config)
    name = SINGLE if (path / SINGLE).is_file() else _only_file(label, path)
    tensors, metadata = read_header(path / name)
    return Checkpoint(label, path, (name,), {t.name: t for t in tensors}, metadata, config)


def _sharded(label: str, folder: Path, config: dict[str, Any]) -> Checkpoint:
    index = read_json(folder / INDEX)
    placed = index.get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(shard, str) for shard in placed.values()):
        raise InputError(f"{folder / INDEX} has no weight_map.", "Download or save the checkpoint again.")
    shards = tuple(sorted(set(placed.values())))
    for shard in shards:
        if Path(shard).name != shard:
            raise InputError(f"{folder / INDEX} names a shard outside its folder: {shard}.", "Use shards beside it.")
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise InputError(f"{label} lacks {len(missing)} of its shards: {_few(missing)}.", "Download them again.")
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for shard in shards:
        found, shard_metadata = read_header(folder / shard)
        metadata = metadata or shard_metadata
        for tensor in found:
            if placed.get(tensor.name) != shard:
                raise InputError(
                    f"{folder / shard} holds {tensor.name}, which the index places in {placed.get(tensor.name)}.",
                    "The index and the shards are of different versions: download them again.",
                )
            tensors[tensor.name] = tensor
    lost = sorted(set(placed) - set(tensors))
    if lost:
        raise InputError(f"The shards of {label} lack tensors of the index: {_few(lost)}.", "Download them again.")
    return Checkpoint(label, folder, shards, tensors, metadata, config)


def _only_file(label: str, folder: Path) -> str:
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    if len(files) == 1:
        return files[0]
    if files:
        raise InputError(
            f"{label} has {len(files)} safetensors files and no {INDEX}.", "Add the index, or name one of the files."
        )
    for path in sorted(folder.iterdir()):
        _refuse_pickle(path)
    raise InputError(f"{label} holds no safetensors file.", f"A checkpoint is a folder with {SINGLE} or {INDEX}.")


def _refuse_pickle(path: Path) -> None:
    if path.suffix not in _PICKLES:
        return
    if path.name.startswith("pytorch_model"):
        command = (
            f'python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained('{path.parent}').save_pretrained('{path.parent}-safetensors')\""
        )
    else:
        command = (
            f'python -c "import torch; from safetensors.torch import save_file; '
            f"save_file(torch.load('{path}', weights_only=True), '{path.with_suffix('.safetensors')}')\""
        )
    raise InputError(f"{path} is a pickle, which can run code when it is read.", f"Convert it first: {command}")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        InputError: it can't be read, or is something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} can't be read as JSON: {error}.", "Download or save it again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object.", "Download or save it again.")
    return content


def _few(names: list[str], count: int = 5) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
