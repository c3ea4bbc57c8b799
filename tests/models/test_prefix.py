"""What texts begin with is read once; answers and confidences are those of reading it in every batch."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import transformers

from merganser.models import prefix
from merganser.models.base import Lengths
from merganser.models.loading import load_backbone
from merganser.models.options import ModelOptions
from merganser.models.prefix import common_length, compute_prefix, keeps_all_tokens, prompt_inputs, run_prompts
from merganser.streams.answers import AnswerSpec
from tests.learner.toys import CUES, model_folder

BEGINNING = "the last film of the year was a great play in the market of the world and the team won: "
TEXTS = [BEGINNING + text for text in [*CUES.values(), "good", "the bank cut its rates and the team won the match"]]
SMALL = {"vocab_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL |= {"hidden_size": 16, "intermediate_size": 32, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


@cache
def backbone() -> Any:
    options = ModelOptions.model_validate({"name": str(model_folder("causal")), "kind": "causal", "precision": "fp32"})
    made = load_backbone(options, Lengths(64, 8), 0)
    with torch.no_grad():  # an adapter that matters
        for number, weight in enumerate(made.trainable().values()):
            weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(number))
    made.module.eval()
    return made


@pytest.mark.parametrize("spec", [AnswerSpec(), AnswerSpec(("good", "bad", "sport and business"), mode="rank")])
@pytest.mark.parametrize("size", [3, 64])
def test_answers_and_confidences_are_those_without_sharing(
    spec: AnswerSpec, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    real = prefix.Prefix.repeated
    monkeypatch.setattr(prefix.Prefix, "repeated", lambda self, n: (computed.append(n), real(self, n))[1])
    shared = backbone().answer(TEXTS, spec, size)
    assert sum(computed) >= len(TEXTS)
    computed.clear()
    monkeypatch.setattr(prefix, "SHORTEST", 1000)
    alone = backbone().answer(TEXTS, spec, size)
    assert not computed
    assert [answer.text for answer in shared] == [answer.text for answer in alone]
    assert [answer.score for answer in shared] == pytest.approx([answer.score for answer in alone], abs=1e-5)
    assert len({answer.text for answer in alone}) > 1


def test_ranking_reads_a_prompt_once_with_the_likelihoods_of_whole_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    model, labels = backbone(), ("good", "bad", "sport and business")
    ids = model._encode(["a film", BEGINNING, "the bank cut its rates"])
    with torch.no_grad():
        cached = model._log_likelihoods(ids, labels)
        monkeypatch.setattr(model, "_cache_is_whole", False)
        whole = model._log_likelihoods(ids, labels)
    torch.testing.assert_close(cached, whole, atol=1e-4, rtol=1e-5)


def test_the_common_beginning_leaves_a_token_of_every_text() -> None:
    assert common_length([[1, 2, 3], [1, 2, 4, 5], [1, 2, 3, 9]]) == 2
    assert common_length([[1, 2], [1, 2, 4, 5]]) == 1
    assert common_length([[1, 2], [1, 2]]) == 1
    assert common_length([[7], [8, 1]]) == 0


def made(architecture: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{architecture}Config")(**{**SMALL, **changes})
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("architecture", ["GPT2", "GPTNeoX", "Qwen3", "OPT"])
def test_padding_between_a_prefix_and_the_rest_changes_nothing(architecture: str) -> None:
    sizes: dict[str, dict[str, Any]] = {
        "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
        "Qwen3": {"num_key_value_heads": 1, "head_dim": 8},
        "OPT": {"ffn_dim": 32, "word_embed_proj_dim": 16},
    }
    model = made(architecture, **sizes.get(architecture, {}))
    beginning = [3 + i * 7 % 30 for i in range(20)]
    rows = [[*beginning, 5], [*beginning, 6, 7, 8, 9]]
    assert keeps_all_tokens(model)
    with torch.no_grad():
        shared, _ = run_prompts(model, prompt_inputs(rows, 0, compute_prefix(model, rows), model.device))
        for row, logits in zip(rows, shared, strict=True):
            torch.testing.assert_close(logits, model(torch.tensor([row])).logits[0, -1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [("Mistral", {"sliding_window": 4}), ("Bloom", {}), ("Mamba", {"state_size": 4})],
)
def test_models_whose_cache_is_no_record_of_all_tokens_share_nothing(
    architecture: str, changes: dict[str, Any]
) -> None:
    assert not keeps_all_tokens(made(architecture, **changes))


def test_a_model_that_goes_on_in_another_way_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    model = backbone()
    ids = model._encode(TEXTS)
    monkeypatch.setattr(model, "_prefix_is_exact", None)
    real = prefix.selected
    monkeypatch.setattr(prefix, "selected", lambda cache, rows: real(cache, rows) if len(rows) == 1 else scaled(cache))

    def scaled(cache: Any) -> Any:
        copy = real(cache, torch.tensor([0, 0]))
        for layer in copy.layers:
            layer.values *= 2
        return copy

    with torch.no_grad(), model._begin(ids):
        assert model._prefix is None
