"""Training a causal model with padded, flattened and packed batches: tokens per second.

    python benchmarks/packing.py > benchmarks/results/packing.md

A Llama of modest size with random weights learns made-up texts whose lengths vary as those of chats do (log-normal).
All weights are trained, in fp32, on one thread. Tokens are those of the texts; padding is not counted. Of each setting
the median of several rounds, all settings in turn.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from merganser.models.padding import attention_mask, pad
from merganser.runs.versions import versions
from merganser.training.data import OWN
from merganser.training.options import TrainingOptions
from merganser.training.records import TaskRecords
from merganser.training.trainer import train_task

SETTINGS: dict[str, dict[str, Any]] = {
    "padded, any order": {"packing": "none", "group_by_length": False},
    "padded, similar lengths together (default)": {"packing": "none", "group_by_length": True},
    "padding_free, any order": {"packing": "padding_free", "group_by_length": False},
    "packed, any order": {"packing": "packed", "group_by_length": False},
    "packed, similar lengths together": {"packing": "packed", "group_by_length": True},
}


class Trained:
    """A Llama of 4 layers, width 128, vocabulary of 2,000, with a collator."""

    precision = "fp32"

    def __init__(self, attention: str) -> None:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=2000,
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=512,
            attn_implementation=attention,
        )
        self.module = LlamaForCausalLM(config)

    def collate(self, features: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Pad as the backbone does."""
        rows = [feature["input_ids"] for feature in features]
        labels = [[-100] * (len(row) // 2) + row[len(row) // 2 :] for row in rows]
        return {
            "input_ids": pad(rows, 0, limit=512),
            "attention_mask": attention_mask(rows, limit=512),
            "labels": pad(labels, -100, limit=512),
        }


def texts(number: int, seed: int = 0) -> list[dict[str, Any]]:
    """Random tokens; the median length is 60, one in ten is longer than 170."""
    rng = np.random.default_rng(seed)
    sizes = np.clip(np.exp(rng.normal(np.log(60), 0.8, number)), 4, 400).astype(int).tolist()
    return [{"input_ids": rng.integers(3, 2000, size).tolist(), "length": size} for size in sizes]


def rate(attention: str, setting: dict[str, Any], features: list[dict[str, Any]]) -> float:
    """Tokens per second of one pass over the texts."""
    options = TrainingOptions(epochs=1, batch=8, warmup=0, learning_rate=1e-4, **setting)
    outcome = train_task(Trained(attention), features, options, seed=0, records=TaskRecords())
    return outcome.trained[OWN][1] / outcome.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=192)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    features = texts(arguments.texts)
    print("| attention | layout of a batch of 8 texts | tokens/s | of the default |")
    print("|---|---|---|---|")
    for attention in ("sdpa", "eager"):
        rates: dict[str, list[float]] = {name: [] for name in SETTINGS}
        for _ in range(arguments.rounds):
            for name, setting in SETTINGS.items():
                rates[name].append(rate(attention, setting, features))
        default = statistics.median(rates["padded, similar lengths together (default)"])
        for name, measured in rates.items():
            median = statistics.median(measured)
            print(f"| {attention} | {name} | {median:,.0f} | {median / default:.2f} |", flush=True)
    sizes = np.array([feature["length"] for feature in features][: len(features) // 8 * 8]).reshape(-1, 8)
    print(f"\nOf a batch of 8 texts in their order, {1 - sizes.mean() / sizes.max(axis=1).mean():.0%} is padding.")
    found = ", ".join(f"{key} {value}" for key, value in versions().items())
    command = f"python benchmarks/packing.py --rounds {arguments.rounds} --texts {arguments.texts}"
    print(f"\nCommand: `{command}`, seed 0. {found}.")


if __name__ == "__main__":
    main()
