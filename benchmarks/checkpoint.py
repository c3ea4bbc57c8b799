"""Write a Llama-shaped checkpoint with random weights, for measurements: the same bytes for the same seed.

    python benchmarks/checkpoint.py OUT --layers 22 --seed 1 [--from BASE --noise 0.001]

With ``--from`` the weights are those of another such checkpoint plus noise, as if fine-tuned. 22 layers are 1.1 billion
parameters (2.2 GB in bfloat16).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from merganser.checkpoints.dtypes import decode, encode
from merganser.checkpoints.tensor_writer import write_bytes
from merganser.files.safetensors_file import create, read_header

HEADS, KEYS, VOCABULARY = 32, 4, 32_000


@dataclass(frozen=True)
class Sizes:
    """Layers, width, width within a layer, and rows of the two largest tensors."""

    layers: int
    hidden: int = 2048
    inner: int = 5632
    vocabulary: int = VOCABULARY


def shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Llama model with grouped keys."""
    hidden, inner, vocabulary = sizes.hidden, sizes.inner, sizes.vocabulary
    keys = hidden * KEYS // HEADS
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(sizes.layers):
        place = f"model.layers.{layer}."
        found |= {
            place + "self_attn.q_proj.weight": (hidden, hidden),
            place + "self_attn.k_proj.weight": (keys, hidden),
            place + "self_attn.v_proj.weight": (keys, hidden),
            place + "self_attn.o_proj.weight": (hidden, hidden),
            place + "mlp.gate_proj.weight": (inner, hidden),
            place + "mlp.up_proj.weight": (inner, hidden),
            place + "mlp.down_proj.weight": (hidden, inner),
            place + "input_layernorm.weight": (hidden,),
            place + "post_attention_layernorm.weight": (hidden,),
        }
    return found | {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}


def config(sizes: Sizes) -> dict[str, object]:
    """``config.json`` of the model."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.inner,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEYS,
        "vocab_size": sizes.vocabulary,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }


def write(
    out: Path,
    sizes: Sizes,
    *,
    seed: int,
    shards: int = 3,
    origin: Path | None = None,
    noise: float = 0.001,
    dtype: str = "BF16",
) -> None:
    """Write the checkpoint; ``origin``: another one of the same shapes, to which noise is added."""
    out.mkdir(parents=True)
    (out / "config.json").write_text(json.dumps(config(sizes), indent=2))
    names = list(shapes(sizes).items())
    source = {}
    if origin is not None:
        for path in sorted(origin.glob("*.safetensors")):
            source |= {tensor.name: tensor for tensor in read_header(path)[0]}
    random = np.random.default_rng(seed)
    pool = random.standard_normal(1 << 22, dtype=np.float32)
    placed = {}
    total = 0
    for shard in range(shards):
        path = out / f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        mine = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        for target in create(path, [(name, dtype, shape) for name, shape in mine], {"format": "pt"}):
            start = int(random.integers(len(pool)))
            values = np.resize(np.roll(pool, start), target.size) * np.float32(noise if origin else 0.02)
            if origin is not None:
                there = source[target.name]
                raw = np.fromfile(there.path, dtype=np.uint8, count=there.nbytes, offset=there.offset)
                values += decode(raw, there.dtype, np.dtype(np.float32))
            with open(path, "r+b") as file:
                write_bytes(file.fileno(), encode(values, dtype), target.offset)
            placed[target.name] = path.name
            total += target.nbytes
    index = {"metadata": {"total_size": total}, "weight_map": placed}
    (out / "model.safetensors.index.json").write_text(json.dumps(index))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--from", dest="origin", type=Path)
    parser.add_argument("--noise", type=float, default=0.001)
    given = parser.parse_args()
    write(given.out, Sizes(given.layers), seed=given.seed, origin=given.origin, noise=given.noise)
