"""Small checkpoints on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from merganser.checkpoints.dtypes import encode
from merganser.checkpoints.tensor_writer import write_bytes
from merganser.files.safetensors_file import create

Write = Callable[..., Path]


def write_file(path: Path, tensors: Mapping[str, np.ndarray], dtype: str = "F32") -> Path:
    """A safetensors file; integers as they are, floating-point numbers as ``dtype``."""
    kinds = {"i": "I64", "f": dtype, "b": "BOOL"}
    laid = create(path, [(name, kinds[value.dtype.kind], value.shape) for name, value in tensors.items()], {})
    with open(path, "r+b") as file:
        for place in laid:
            value = np.ascontiguousarray(tensors[place.name])
            stored = encode(value.reshape(-1).copy(), dtype) if value.dtype.kind == "f" else value
            if stored.size:
                write_bytes(file.fileno(), stored, place.offset)
    return path


def write_folder(folder: Path, tensors: Mapping[str, np.ndarray], shards: int = 1, dtype: str = "F32") -> Path:
    """A checkpoint in Hugging Face layout, with a config and a tokenizer file."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "dtype": "float32"}))
    (folder / "tokenizer.json").write_text("{}")
    if shards == 1:
        write_file(folder / "model.safetensors", tensors, dtype)
        return folder
    names = list(tensors)
    placed = {}
    for shard in range(shards):
        mine = names[shard::shards]
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        write_file(folder / file, {name: tensors[name] for name in mine}, dtype)
        placed |= dict.fromkeys(mine, file)
    index = {"metadata": {}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def example(seed: int, shift: float = 0.0, origin: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """Tensors of a small model with two layers; with ``origin`` a fine-tuned version of it."""
    generator = np.random.default_rng(seed)
    shapes = {
        "model.embed_tokens.weight": (50, 8),
        "model.layers.0.self_attn.q_proj.weight": (8, 8),
        "model.layers.0.mlp.up_proj.weight": (16, 8),
        "model.layers.1.self_attn.q_proj.weight": (8, 8),
        "model.layers.1.mlp.up_proj.weight": (16, 8),
        "model.norm.weight": (8,),
        "model.scale": (),
    }
    found: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        noise = generator.normal(size=shape).astype(np.float32)
        found[name] = np.asarray(
            noise if origin is None else origin[name] + np.float32(0.1) * noise + shift, np.float32
        )
    found["model.position_ids"] = np.arange(10)
    return found


@pytest.fixture
def family(tmp_path: Path) -> dict[str, Path]:
    """A base and two fine-tuned models as folders: the base in two shards, one model in three, one in one file."""
    base = example(0)
    write_folder(tmp_path / "base", base, shards=2)
    write_folder(tmp_path / "a", example(1, origin=base), shards=3)
    write_folder(tmp_path / "b", example(2, origin=base))
    return {name: tmp_path / name for name in ("base", "a", "b")}
