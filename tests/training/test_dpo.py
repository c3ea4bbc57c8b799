"""The loss of DPO: by hand, against TRL's, and in batches beside other examples."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from merganser import AnswerSpec, Example
from merganser.models.pairs import PREFERENCE, answer_log_probabilities, measure_pairs, model_inputs
from merganser.streams.dpo import DpoLoss, DpoOptions
from merganser.training.data import ignore_padding
from merganser.training.distributed import SplitBatch, num_examples, num_loss_items
from merganser.training.dpo import References, loss_on_own_preferences, margins, preference_loss
from merganser.training.rehearsal import model_loss
from tests import tiny

SPEC = AnswerSpec(dpo=DpoOptions(beta=0.5))
PAIRS = [
    Example("is this text positive or negative? answer:", "positive", rejected="negative with a weak end"),
    Example("what is the topic of this text? topic:", "sport", rejected="business"),
    Example("the team won the match", "in the last minute", rejected="and the market rose"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_llama(tmp_path_factory.mktemp("dpo") / "llama", pad=True)


def backbone(folder: Path, kind: str = "causal") -> Any:
    from merganser.models.base import Lengths
    from merganser.models.loading import load_backbone
    from merganser.models.options import ModelOptions

    options = ModelOptions(name=str(folder), kind=kind, precision="fp32", lora={"r": 2, "dropout": 0.0})  # type: ignore[arg-type]
    return load_backbone(options, Lengths(32, 16), 0)


def test_by_hand() -> None:
    log_probabilities = torch.tensor([-1.0, -2.0, -3.0, -2.5])  # chosen, chosen, rejected, rejected
    preference = torch.tensor([[-1.5, -3.5, 0.1, 0.0], [-2.0, -2.0, 0.5, 0.0]])
    # 0.1 * ((-1 + 1.5) - (-3 + 3.5)) = 0; 0.5 * ((-2 + 2) - (-2.5 + 2)) = 0.25
    found = margins(log_probabilities, preference)
    assert found.tolist() == pytest.approx([0.0, 0.25])


def test_loss_of_a_model_and_its_likelihoods(folder: Path) -> None:
    model = backbone(folder)
    features = model.features(PAIRS, SPEC)
    References(features).measure(model, 2)
    batch = model.collate(features)
    assert (num_examples(batch), num_loss_items(batch)) == (3, 3)
    assert batch["input_ids"].shape[0] == 6
    assert sum(feature["length"] for feature in features) == int(batch["attention_mask"].sum())  # of both answers
    # At the reference every margin is 0, so that the loss is log 2.
    assert model_loss(model.module, batch).item() == pytest.approx(math.log(2), abs=1e-6)
    # The same likelihoods as those by which labels are ranked.
    for row, pair in zip(measure_pairs(model, features, 2).tolist(), PAIRS, strict=True):
        ids = model._encode([pair.input])
        assert row == pytest.approx(model._log_likelihoods(ids, pair.answers)[0].tolist(), abs=1e-4)
    means = model.features(PAIRS, AnswerSpec(dpo=DpoOptions(loss="sigmoid_norm")))
    sides = [[f["chosen"], f["rejected"]] for f in features]
    sizes = torch.tensor([[len(f["input_ids"]) - f["prompt"] for f in pair] for pair in sides])
    assert torch.allclose(measure_pairs(model, means, 3), measure_pairs(model, features, 3) / sizes, atol=1e-5)


def test_encoder_decoders(tmp_path: Path) -> None:
    model = backbone(tiny.tiny_t5(tmp_path / "t5"), "seq2seq")
    features = model.features(PAIRS, SPEC)
    References(features).measure(model, 2)
    loss = model_loss(model.module.eval(), model.collate(features))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)
    ids = model._encode([PAIRS[0].input])
    likelihoods = model._log_likelihoods(ids, PAIRS[0].answers)[0].tolist()
    assert features[0]["reference"] == pytest.approx(likelihoods, abs=1e-4)


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed")
@pytest.mark.parametrize("loss", ["sigmoid", "sigmoid_norm"])
def test_loss_and_gradient_are_those_of_trl(loss: DpoLoss, folder: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    reference = AutoModelForCausalLM.from_pretrained(tiny.tiny_llama(tmp_path / "reference", seed=1, pad=True))
    model = AutoModelForCausalLM.from_pretrained(folder)
    rows = [{"prompt": pair.input, "chosen": f" {pair.output}", "rejected": f" {pair.rejected}"} for pair in PAIRS]
    trainer = DPOTrainer(
        model,
        ref_model=reference,
        args=DPOConfig(
            output_dir=str(tmp_path / "out"), beta=0.5, loss_type=loss, report_to=[], use_cpu=True, bf16=False
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    batch = trainer.data_collator(list(trainer.train_dataset))
    theirs = trainer.compute_loss(trainer.model, batch)
    theirs.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()

    ours = {key: batch[key] for key in ("input_ids", "attention_mask")}
    ours["labels"] = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    settings = torch.tensor([[0.0, 0.0, 0.5, float(loss == "sigmoid_norm")]]).repeat(len(rows), 1)
    with torch.no_grad():
        measured, _ = answer_log_probabilities(reference.eval(), {**ours, PREFERENCE: settings})
    settings[:, 0], settings[:, 1] = measured.chunk(2)
    value, _ = preference_loss(model, {**ours, PREFERENCE: settings})
    value.backward()
    assert value.item() == pytest.approx(theirs.item(), abs=1e-6)
    assert max(gradient.abs().max() for gradient in gradients.values()) > 1e-3
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, gradients[name], atol=1e-6), name


def test_pairs_beside_other_examples_weigh_by_their_number(folder: Path) -> None:
    model = backbone(folder)
    texts = [Example("the film was good:", "positive"), Example("the bank cut its rates:", "the market rose")]
    features = [*model.features(texts[:1], AnswerSpec()), *model.features(PAIRS, SPEC)]
    features += model.features(texts[1:], AnswerSpec())
    batch = SplitBatch.of(features, model.collate, shifted=True)
    assert [num_examples(part.batch) for part in batch.parts] == [2, 3]
    assert batch.weights == pytest.approx([2 / 5, 3 / 5])
    split = SplitBatch.of(features, model.collate, True, 2)
    assert [num_examples(part.batch) for part in split.parts] == [2, 2, 1]
    assert split.weights == pytest.approx([2 / 5, 2 / 5, 1 / 5])

    def mean(parts: SplitBatch) -> float:
        return parts.mean([model_loss(model.module, part.batch).item() for part in parts.parts])

    with torch.no_grad():
        assert mean(batch) == pytest.approx(mean(split), abs=1e-5)


def test_padding_pairs_count_nothing(folder: Path) -> None:
    model = backbone(folder)
    features = [{**feature, "is_padding": True} for feature in model.features(PAIRS[:1], SPEC)]
    batch = ignore_padding(model.collate)(features)
    assert num_loss_items(batch) == 0
    assert model_loss(model.module, batch).isfinite()


def test_preferences_drawn_from_the_model(folder: Path) -> None:
    model = backbone(folder)
    batch = model.collate(model.features(PAIRS * 100, SPEC))
    batch[PREFERENCE][:, 2] = 1e-4  # chosen or rejected by the toss of a coin
    drawn = loss_on_own_preferences(model.module, batch, 3)
    assert drawn.item() == pytest.approx(math.log(2), abs=1e-2)
    assert loss_on_own_preferences(model.module, batch, 3).item() == drawn.item()
    batch[PREFERENCE][:, 2] = 1e3  # it is certain of the likelier answer
    assert loss_on_own_preferences(model.module, batch, 3).item() == pytest.approx(0.0, abs=1e-6)
    assert set(batch) - set(model_inputs(batch)) == {PREFERENCE}
