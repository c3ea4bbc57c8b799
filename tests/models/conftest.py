"""Tiny models, written once for all tests of the room."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from merganser.models.base import Backbone, Lengths
from merganser.models.loading import load_backbone
from merganser.models.options import LoraOptions, ModelOptions
from tests import tiny

Loader = Callable[..., Backbone]

LORA = LoraOptions()
LENGTHS = Lengths(48, 8)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tiny")
    return {
        "seq2seq": tiny.tiny_t5(root / "t5"),
        "causal": tiny.tiny_llama(root / "llama"),
        "matcher": tiny.tiny_bert(root / "bert"),
        "chat": tiny.tiny_llama(root / "chat", chat=True, pad=True),
        "wide seq2seq": tiny.tiny_t5(root / "wide t5", width=64),
        "wide causal": tiny.tiny_llama(root / "wide llama", width=64),
        "wide matcher": tiny.tiny_bert(root / "wide bert", width=64),
    }


@pytest.fixture
def load(folders: dict[str, Path]) -> Loader:
    def _load(
        which: str,
        seed: int = 0,
        lora: LoraOptions | None = LORA,
        lengths: Lengths = LENGTHS,
        **options: object,
    ) -> Backbone:
        kind = "causal" if which == "chat" else which
        if options.get("weights") == "4bit":
            which = f"wide {which}"  # some kernels of bitsandbytes read rows of less than a block of 64 values wrongly
        asked = ModelOptions.model_validate(
            {"name": str(folders[which]), "kind": kind, "lora": lora, "precision": "fp32", **options}
        )
        return load_backbone(asked, lengths, seed)

    return _load


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def disturb(backbone: Backbone, seed: int = 1, size: float = 0.3) -> None:
    """Moves every trained weight, as training would, so that answers differ from the pretrained ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in backbone.trainable().values():
            parameter += size * torch.randn(parameter.shape, generator=generator)
