from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from merganser.errors import InputError
from merganser.models.base import Lengths
from merganser.streams.answers import AnswerSpec
from merganser.streams.task import Example
from tests.models.conftest import Loader, disturb

EXAMPLES = [
    Example("the film was good", "positive"),
    Example("a bad film with a weak story and a poor end", "negative"),
    Example("the bank cut its rates and the market rose", "business"),
]
TEXTS = [example.input for example in EXAMPLES]
RANK = AnswerSpec(("positive", "negative", "business"), mode="rank")
WRITE = AnswerSpec()


def test_loss_is_on_the_answer_and_its_end(load: Loader) -> None:
    backbone = load("seq2seq")
    disturb(backbone)
    features = backbone.features(EXAMPLES, WRITE)
    end = backbone.tokenizer.eos_token_id
    assert all(feature["labels"][-1] == end for feature in features)
    assert [feature["length"] for feature in features] == [len(f["input_ids"]) + len(f["labels"]) for f in features]
    total, count = 0.0, 0
    with torch.no_grad():
        batch = backbone.collate(features)
        loss = backbone.module.eval()(**batch)["loss"].item()
        for feature in features:  # one by one, unpadded, teacher forcing by hand: decoder starts with pad (0)
            decoder = torch.tensor([[0, *feature["labels"][:-1]]])
            out = backbone.module(input_ids=torch.tensor([feature["input_ids"]]), decoder_input_ids=decoder)
            total += functional.cross_entropy(out.logits[0], torch.tensor(feature["labels"]), reduction="sum").item()
            count += len(feature["labels"])
    assert loss == pytest.approx(total / count, rel=1e-5)
    assert batch["labels"].is_contiguous()
    assert (batch["labels"] == -100).sum() == sum(batch["labels"].shape[1] - len(f["labels"]) for f in features) > 0


def test_long_texts_are_cut_and_keep_their_end(load: Loader) -> None:
    backbone = load("seq2seq", lengths=Lengths(6, 3))
    feature = backbone.features([Example("good " * 50, "great " * 50)], WRITE)[0]
    assert len(feature["input_ids"]) == 6
    assert len(feature["labels"]) == 3
    assert feature["labels"][-1] == backbone.tokenizer.eos_token_id
    assert backbone.features([], WRITE) == []
    assert backbone.answer([], WRITE) == []


def test_rank_equals_scoring_every_label_alone(load: Loader) -> None:
    backbone = load("seq2seq")
    disturb(backbone)
    answers = backbone.answer(TEXTS, RANK, batch_size=2)
    for text, answer in zip(TEXTS, answers, strict=True):
        scores = []
        for label in RANK.labels or ():
            batch = backbone.collate(backbone.features([Example(text, label)], RANK))
            with torch.no_grad():
                loss = backbone.module.eval()(**batch)["loss"]
            scores.append(-loss.item() * batch["labels"].shape[1])  # mean over tokens -> sum
        probability = torch.tensor(scores).softmax(0)
        assert answer.text == (RANK.labels or ())[int(probability.argmax())]
        assert answer.score == pytest.approx(probability.max().item(), abs=1e-4)


def test_generation_is_greedy_and_scored_by_the_tokens_it_wrote(load: Loader) -> None:
    backbone = load("seq2seq")
    disturb(backbone, size=1.0)
    answer = backbone.answer(TEXTS[:1], WRITE)[0]
    ids = torch.tensor([backbone.features(EXAMPLES[:1], WRITE)[0]["input_ids"]])
    written, probabilities = [0], []
    with torch.no_grad():
        while len(probabilities) < backbone.lengths.target and (len(written) == 1 or written[-1] != 1):
            logits = backbone.module.eval()(input_ids=ids, decoder_input_ids=torch.tensor([written])).logits[0, -1]
            best = logits.softmax(-1).max(-1)
            written.append(int(best.indices))
            probabilities.append(best.values.item())
    assert answer.text == backbone.tokenizer.decode(written[1:], skip_special_tokens=True).strip()
    assert answer.score == pytest.approx(sum(probabilities) / len(probabilities), abs=1e-5)


@pytest.mark.parametrize("spec", [RANK, WRITE])
def test_batched_answers_are_those_of_one_by_one(load: Loader, spec: AnswerSpec) -> None:
    backbone = load("seq2seq")
    disturb(backbone, size=1.0)
    texts = [*TEXTS, "film", "the end of the story " * 4, TEXTS[0]]
    batched = backbone.answer(texts, spec, batch_size=4)
    alone = [backbone.answer([text], spec)[0] for text in texts]
    assert [a.text for a in batched] == [a.text for a in alone]
    assert [a.score for a in batched] == pytest.approx([a.score for a in alone], abs=1e-4)
    assert batched[0].text == batched[-1].text


def test_answering_reports_progress_and_restores_training_mode(load: Loader) -> None:
    backbone = load("seq2seq")
    backbone.module.train()
    first = next(backbone.module.children())
    first.eval()
    modes = [part.training for part in backbone.module.modules()]
    done: list[int] = []
    state = torch.get_rng_state()
    one = backbone.answer(TEXTS, WRITE, batch_size=2, on_progress=done.append)
    assert done == [2, 1]
    assert [part.training for part in backbone.module.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert backbone.answer(TEXTS, WRITE, batch_size=2) == one
    with pytest.raises(InputError, match="batch size is 0"):
        backbone.answer(TEXTS, WRITE, batch_size=0)
