"""A matcher of texts, exported: sentence-transformers gives the same vectors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from merganser.models.base import eval_mode
from merganser.models.export import export_model
from merganser.models.matcher import Matcher
from merganser.streams.answers import AnswerSpec
from tests.models.conftest import Loader, disturb

TEXTS = ["the film was good", "the bank cut its rates " * 20, "a"]


@pytest.mark.parametrize(("pooling", "merged"), [("mean", True), ("cls", False), ("last", True)])
def test_the_vectors_are_the_same(load: Loader, tmp_path: Path, pooling: str, merged: bool) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    backbone = load("matcher", pooling=pooling)
    assert isinstance(backbone, Matcher)
    disturb(backbone)
    export_model(backbone, tmp_path, {"mood": AnswerSpec(("good", "bad"), mode="rank")}, merged)
    if not merged:  # the placeholder of an adapter, filled in as its card says
        config = tmp_path / "adapter_config.json"
        config.write_text(config.read_text().replace("./base/bert", backbone.options.name))
    encoder = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu", local_files_only=True)
    vectors = encoder.encode(TEXTS, convert_to_tensor=True)
    with eval_mode(backbone.module), torch.no_grad():
        expected = backbone.module.embed(**backbone._text_batch(backbone._encode(TEXTS)))
    assert torch.allclose(vectors, expected, atol=1e-6, rtol=0)
    assert encoder.max_seq_length == backbone.lengths.input
    assert torch.allclose(vectors.norm(dim=-1), torch.ones(len(TEXTS)))
