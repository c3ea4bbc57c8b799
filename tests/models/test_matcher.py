from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from merganser.errors import InputError
from merganser.models.matcher import Matcher, pool
from merganser.streams.answers import AnswerSpec
from merganser.streams.task import Example
from tests.models.conftest import Loader, disturb

MOOD = AnswerSpec(("positive", "negative"))
TOPIC = AnswerSpec(("sport", "business", "world"), {"sport": "the team won the match"})
TEXTS = ["the film was good", "a bad film with a weak story and a poor end", "the bank cut its rates"]


def matcher(load: Loader, **options: object) -> Matcher:
    backbone = load("matcher", **options)
    assert isinstance(backbone, Matcher)
    return backbone


def test_pool_by_hand() -> None:
    hidden = torch.tensor([[[3.0, 4.0], [0.0, 0.0], [9.0, 9.0]], [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    unit = torch.tensor
    assert torch.allclose(pool(hidden, mask, "mean"), unit([[0.6, 0.8], [1 / 5**0.5, 2 / 5**0.5]]))
    assert torch.allclose(pool(hidden, mask, "cls"), unit([[0.6, 0.8], [1.0, 0.0]]))
    assert torch.allclose(pool(hidden, mask, "last"), unit([[0.0, 0.0], [0.0, 1.0]]))


def test_zero_shot_answer_is_the_nearest_label(load: Loader) -> None:
    backbone = matcher(load)

    def embed(text: str) -> torch.Tensor:
        batch = backbone.tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            hidden = backbone.model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])[0][0]
        return hidden.mean(0) / hidden.mean(0).norm()

    answers = backbone.answer(TEXTS, TOPIC)
    for text, answer in zip(TEXTS, answers, strict=True):
        cosines = torch.stack([embed(text) @ embed(TOPIC.text_of(label)) for label in TOPIC.labels or ()])
        probability = (cosines / 0.05).softmax(0)
        assert answer.text == (TOPIC.labels or ())[int(probability.argmax())]
        assert answer.score == pytest.approx(probability.max().item(), abs=1e-5)


def test_mixed_tasks_share_a_batch(load: Loader) -> None:
    backbone = matcher(load)
    one = backbone.features([Example(TEXTS[0], "negative")], MOOD)
    two = backbone.features([Example(TEXTS[1], "world"), Example(TEXTS[2], "sport")], TOPIC)
    batch = backbone.collate([*one, *two])
    assert batch["candidates"].tolist() == [[0, 1, -100], [2, 3, 4], [2, 3, 4]]
    assert batch["labels"].tolist() == [1, 2, 0]
    backbone.module.eval()
    with torch.no_grad():
        mixed = backbone.module(**batch)["loss"].item()
        alone = [backbone.module(**backbone.collate([f]))["loss"].item() for f in (*one, *two)]
    assert mixed == pytest.approx(sum(alone) / 3, rel=1e-5)
    assert all(f["length"] == len(f["input_ids"]) for f in (*one, *two))


@pytest.mark.parametrize("length", [3, 7, 50])
def test_a_shortened_text_is_what_the_tokenizer_cuts(
    load: Loader, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = matcher(load)
    whole = backbone.features([Example(text, "negative") for text in TEXTS], MOOD)
    cut = backbone.shortened(whole, length)
    expected = backbone.tokenizer(TEXTS, truncation=True, max_length=length)["input_ids"]
    assert [feature["input_ids"] for feature in cut] == expected
    assert [feature["length"] for feature in cut] == [len(ids) for ids in expected]
    assert [feature["label"] for feature in cut] == [feature["label"] for feature in whole]
    monkeypatch.setattr(backbone, "tokenizer", SimpleNamespace(all_special_ids=[]))
    assert backbone.shortened(whole, 3)[1]["input_ids"] == whole[1]["input_ids"][:3]


def test_loss_is_the_cross_entropy_of_what_answer_says(load: Loader) -> None:
    backbone = matcher(load)
    disturb(backbone)
    answer = backbone.answer(TEXTS[:1], MOOD)[0]
    batch = backbone.collate(backbone.features([Example(TEXTS[0], answer.text)], MOOD))
    with torch.no_grad():
        loss = backbone.module.eval()(**batch)["loss"]
    assert loss.exp().reciprocal().item() == pytest.approx(answer.score, abs=1e-5)


@pytest.mark.parametrize("lora", [True, False])
def test_label_vectors_are_those_of_the_pretrained_encoder(load: Loader, lora: bool) -> None:
    options: dict[str, object] = {} if lora else {"lora": None}
    fresh = matcher(load, **options).label_vectors(MOOD)
    trained = matcher(load, **options)
    disturb(trained)
    trained.module.train()
    names = list(trained.trainable())
    assert torch.equal(trained.label_vectors(MOOD), fresh)
    assert list(trained.trainable()) == names  # switching the adapter off and on freezes nothing
    assert torch.allclose(fresh.norm(dim=1), torch.ones(2))
    assert trained.module.training
    # The same vectors whatever was embedded before.
    other = matcher(load, **options)
    other.label_vectors(TOPIC)
    assert torch.equal(other.label_vectors(MOOD), fresh)
    assert len(other.module.bank) == 5


def test_the_bank_is_no_weight(load: Loader) -> None:
    backbone = matcher(load)
    backbone.answer(TEXTS, TOPIC)
    assert not any("bank" in name for name in backbone.module.state_dict())
    assert not any("bank" in name for name in backbone.trainable())
    loss = backbone.module(**backbone.collate(backbone.features([Example(TEXTS[0], "world")], TOPIC)))["loss"]
    loss.backward()  # a bank made while answering must not stop training
    assert all(parameter.grad is not None for parameter in backbone.trainable().values())


def test_all_weights_get_gradients(load: Loader) -> None:
    backbone = matcher(load, lora=None)
    backbone.module(**backbone.collate(backbone.features([Example(TEXTS[0], "world")], TOPIC)))["loss"].backward()
    assert all(parameter.grad is not None for parameter in backbone.trainable().values())
    assert not any("pooler" in name for name in backbone.trainable())


def test_training_moves_the_answer(load: Loader) -> None:
    backbone = matcher(load)
    wrong = next(label for label in ("positive", "negative") if label != backbone.answer(TEXTS[:1], MOOD)[0].text)
    batch = backbone.collate(backbone.features([Example(TEXTS[0], wrong)], MOOD))
    optimizer = torch.optim.AdamW(backbone.trainable().values(), lr=0.02)
    for _ in range(30):
        optimizer.zero_grad()
        backbone.module(**batch)["loss"].backward()
        optimizer.step()
    assert backbone.answer(TEXTS[:1], MOOD)[0].text == wrong


def test_batched_answers_are_those_of_one_by_one(load: Loader) -> None:
    for pooling in ("mean", "cls", "last"):
        backbone = matcher(load, pooling=pooling)
        texts = [*TEXTS, "film", "the end of the story " * 4]
        batched = backbone.answer(texts, TOPIC, batch_size=5)
        alone = [backbone.answer([text], TOPIC)[0] for text in texts]
        assert [a.text for a in batched] == [a.text for a in alone]
        assert [a.score for a in batched] == pytest.approx([a.score for a in alone], abs=1e-4)


def test_what_a_matcher_cannot_answer(load: Loader) -> None:
    backbone = matcher(load)
    with pytest.raises(InputError, match="needs a label set"):
        backbone.answer(TEXTS, AnswerSpec())
    with pytest.raises(InputError, match=r"'postive' is not in.*Did you mean 'positive'"):
        backbone.features([Example(TEXTS[0], "postive")], MOOD)
    with pytest.raises(InputError, match="'a' and 'b' have the same text 'good'"):
        backbone.answer(TEXTS, AnswerSpec(("a", "b"), {"a": "good", "b": "good"}))
