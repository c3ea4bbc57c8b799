from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from merganser.errors import InputError
from merganser.models.base import Lengths
from merganser.models.causal import Causal
from merganser.streams.answers import AnswerSpec
from merganser.streams.task import Example
from tests.models.conftest import Loader, disturb

EXAMPLES = [
    Example("is this text positive or negative? the film was good answer:", "positive"),
    Example("a bad film with a weak story answer:", "negative"),
    Example("the bank cut its rates topic:\n", "business world"),
]
TEXTS = [example.input for example in EXAMPLES]
RANK = AnswerSpec(("positive", "negative", "business world"), mode="rank")
WRITE = AnswerSpec()


def test_loss_is_on_the_answer_and_its_end(load: Loader) -> None:
    backbone = load("causal")
    disturb(backbone)
    features = backbone.features(EXAMPLES, WRITE)
    batch = backbone.collate(features)
    total, count = 0.0, 0
    with torch.no_grad():
        loss = backbone.module.eval()(**batch)["loss"].item()
        for feature in features:  # one by one, unpadded: token t is predicted at t - 1
            ids, start = feature["input_ids"], feature["prompt"]
            logits = backbone.module(input_ids=torch.tensor([ids])).logits[0, start - 1 : -1]
            total += functional.cross_entropy(logits, torch.tensor(ids[start:]), reduction="sum").item()
            count += len(ids) - start
    assert loss == pytest.approx(total / count, rel=1e-5)
    for feature, example, labels in zip(features, EXAMPLES, batch["labels"].tolist(), strict=True):
        counted = [label for label in labels if label != -100]
        assert counted[-1] == backbone.tokenizer.eos_token_id
        assert backbone.tokenizer.decode(counted[:-1]).strip() == example.output
        assert feature["length"] == len(feature["input_ids"])


def test_the_answer_stands_where_it_would_in_the_text(load: Loader) -> None:
    backbone = load("causal")
    tokenizer = backbone.tokenizer

    def parts(prompt: str) -> tuple[str, str]:
        feature = backbone.features([Example(prompt, "positive")], WRITE)[0]
        ids, n = feature["input_ids"], feature["prompt"]
        return tokenizer.decode(ids[:n], skip_special_tokens=True), tokenizer.decode(ids[n:-1])

    assert parts("answer:") == ("answer:", " positive")
    assert parts("answer: ") == ("answer:", " positive")  # the space moves to the answer
    assert parts("answer:\n") == ("answer:\n", "positive")


def test_prompt_in_training_is_the_prompt_when_asked(load: Loader) -> None:
    backbone = load("causal")

    @settings(max_examples=50, deadline=None)
    @given(prompt=st.text(max_size=20), answer=st.text(min_size=1, max_size=10))
    def check(prompt: str, answer: str) -> None:
        feature = backbone.features([Example(prompt, answer)], WRITE)[0]
        assert feature["input_ids"][: feature["prompt"]] == backbone._encode([prompt])[0]
        assert 1 <= feature["prompt"] <= backbone.lengths.input
        assert 1 <= feature["length"] - feature["prompt"] <= backbone.lengths.target

    check()


def test_padding_token_is_never_the_end_that_is_learned(load: Loader) -> None:
    backbone = load("causal")
    assert backbone.tokenizer.pad_token_id == backbone.tokenizer.eos_token_id  # the tiny Llama has none of its own
    batch = backbone.collate(backbone.features(EXAMPLES, WRITE))
    assert ((batch["labels"] == backbone.tokenizer.eos_token_id).sum(1) == 1).all()
    assert (
        batch["attention_mask"].sum(1) == torch.tensor([f["length"] for f in backbone.features(EXAMPLES, WRITE)])
    ).all()


def test_rank_equals_scoring_every_label_alone(load: Loader) -> None:
    backbone = load("causal")
    disturb(backbone)
    answers = backbone.answer(TEXTS, RANK)
    for text, answer in zip(TEXTS, answers, strict=True):
        scores = []
        for label in RANK.labels or ():
            feature = backbone.features([Example(text, label)], RANK)[0]
            with torch.no_grad():
                loss = backbone.module.eval()(**backbone.collate([feature]))["loss"]
            scores.append(-loss.item() * (feature["length"] - feature["prompt"]))
        probability = torch.tensor(scores).softmax(0)
        assert answer.text == (RANK.labels or ())[int(probability.argmax())]
        assert answer.score == pytest.approx(probability.max().item(), abs=1e-4)


@pytest.mark.parametrize("spec", [RANK, WRITE])
def test_left_padding_changes_nothing(load: Loader, spec: AnswerSpec) -> None:
    backbone = load("causal")
    disturb(backbone)
    texts = [*TEXTS, "film", "the end of the story " * 3]
    batched = backbone.answer(texts, spec, batch_size=5)
    alone = [backbone.answer([text], spec)[0] for text in texts]
    assert [a.text for a in batched] == [a.text for a in alone]
    assert [a.score for a in batched] == pytest.approx([a.score for a in alone], abs=1e-4)


def test_generation_equals_decoding_by_hand(load: Loader) -> None:
    backbone = load("causal")
    disturb(backbone)
    ids = backbone._encode(TEXTS[:1])[0]
    start, probabilities = len(ids), []
    with torch.no_grad():
        while len(ids) - start < backbone.lengths.target and (len(ids) == start or ids[-1] != 2):
            best = backbone.module.eval()(input_ids=torch.tensor([ids])).logits[0, -1].softmax(-1).max(-1)
            ids = [*ids, int(best.indices)]
            probabilities.append(best.values.item())
    answer = backbone.answer(TEXTS[:1], WRITE)[0]
    assert answer.text == backbone.tokenizer.decode(ids[start:], skip_special_tokens=True).strip()
    assert answer.score == pytest.approx(sum(probabilities) / len(probabilities), abs=1e-5)


def test_chat_template_wraps_the_input(load: Loader) -> None:
    backbone = load("chat", chat_template=True)
    feature = backbone.features([Example("the film was good", "positive")], WRITE)[0]
    text = backbone.tokenizer.decode(feature["input_ids"])
    assert text == "<|user|>the film was good<|end|><|assistant|>positive<|end|>"
    assert backbone.answer(["the film was good"], RANK)[0].text in (RANK.labels or ())


def test_chat_template_survives_cutting(load: Loader) -> None:
    backbone = load("chat", chat_template=True, lengths=Lengths(12, 4))
    assert isinstance(backbone, Causal)
    ids = backbone._encode(["the film was good " * 20])[0]
    text = backbone.tokenizer.decode(ids)
    assert len(ids) <= 12
    assert text.startswith("<|user|>the film was good")
    assert text.endswith("<|end|><|assistant|>")
    with pytest.raises(InputError, match="template alone"):
        load("chat", chat_template=True, lengths=Lengths(3, 4)).answer(["the film"], WRITE)
