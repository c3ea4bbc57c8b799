"""Labels that a model cannot tell apart are refused; texts that are cut are counted."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from merganser.errors import InputError
from merganser.models.base import Backbone, Lengths
from merganser.models.distinct_labels import Reading, refuse_equal_vectors
from merganser.streams.answers import AnswerSpec
from merganser.streams.task import Example
from tests.models.conftest import Loader

BEGINNING = "the same beginning of a long label that tells nothing "
ALIKE = (BEGINNING + "a", BEGINNING + "b")
APART = ("positive", "negative", "sport")


def refused(backbone: Backbone, labels: tuple[str, ...], **spec: Any) -> str:
    """The message about labels; empty if they are accepted."""
    try:
        backbone.check_labels(AnswerSpec(labels, **spec), "Task 't'")
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", ["causal", "chat", "seq2seq"])
@pytest.mark.parametrize("mode", ["rank", "generate"])
def test_answers_cut_to_the_same_tokens_are_refused_up_to_the_length_that_the_message_names(
    load: Loader, kind: str, mode: str
) -> None:
    backbone = load(kind, lengths=Lengths(300, 8))
    message = refused(backbone, (*APART, *ALIKE), mode=mode)
    assert message.startswith("Task 't': the model cannot tell apart the labels 'the same beginning of a long l")
    assert all(f"{label[-25:]}'" in message for label in ALIKE)
    assert "8 of their tokens are used (training.max_target)" in message
    needed = int(message.partition("at least ")[2].partition(",")[0])
    backbone.lengths = Lengths(300, needed - 1)
    assert refused(backbone, ALIKE, mode=mode)
    backbone.lengths = Lengths(300, needed)
    assert not refused(backbone, ALIKE, mode=mode)


def word_tokenizer(words: str) -> Any:
    """A tokenizer of whole words, as old models have; all others are unknown."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "</s>", "<unk>", *words.split()]
    raw = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def test_labels_of_unknown_tokens(load: Loader) -> None:
    backbone = load("seq2seq")
    backbone.tokenizer = word_tokenizer("good bad very film")
    message = refused(backbone, ("gut", "good", "schlecht", "egal", "bof"))
    assert message == (
        "Task 't': the model cannot tell apart the labels 'gut', 'schlecht', 'egal' and 1 more: they differ in words "
        "that the model's vocabulary lacks (unknown tokens). Give them other names, or use a model whose tokenizer "
        "keeps them apart."
    )
    assert "'very gut' and 'very schlecht'; nor 'gut' and 'egal'" in refused(
        backbone, ("very gut", "gut", "very schlecht", "egal")
    )
    assert not refused(backbone, ("gut", "good", "bad"))  # one unknown label is unlike the known ones
    assert backbone.unwritable_labels(AnswerSpec(("gut", "good"))) == {"gut": ""}
    assert backbone.unwritable_labels(AnswerSpec(("gut", "good"), mode="rank")) == {}


@pytest.mark.parametrize(
    ("labels", "texts", "why"),
    [
        (("Yes", "yes"), {}, "they differ in letter case only"),
        (("好", "坏"), {}, "vocabulary lacks (unknown tokens)"),
        (("cafe", "café"), {}, "turns them into the same tokens"),
        (("x", "y"), {"x": "Good  film", "y": "good film"}, "turns them into the same tokens"),
        (("x", "y"), dict(zip("xy", ALIKE, strict=True)), "8 of their tokens are used (training.max_input)"),
    ],
)
def test_labels_that_an_encoder_reads_as_one(
    load: Loader, labels: tuple[str, ...], texts: dict[str, str], why: str
) -> None:
    message = refused(load("matcher", lengths=Lengths(8, 8)), labels, label_texts=texts)
    assert f"the labels '{labels[0]}' and '{labels[1]}': " in message
    assert why in message


@pytest.mark.parametrize("kind", ["causal", "seq2seq", "matcher"])
def test_other_labels_are_accepted(load: Loader, kind: str) -> None:
    assert not refused(load(kind), APART)


@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_equal_vectors_are_found_among_many(noise: float) -> None:
    generator = torch.Generator().manual_seed(5)
    # Directions as close together as those of an encoder's texts.
    vectors = torch.nn.functional.normalize(1 + 0.2 * torch.randn(400, 48, generator=generator), dim=-1)
    labels = [f"label {i}" for i in range(400)]
    reading = Reading("Task 't'", "", None, "Rename them.")
    closest = min((a - b).norm() for a, b in itertools.combinations(vectors[:50], 2))
    assert closest > 1e-3
    refuse_equal_vectors(labels, vectors, reading)
    vectors[311] = vectors[7] + noise * torch.randn(48, generator=generator)
    with pytest.raises(
        InputError, match="the labels 'label 7' and 'label 311': the encoder gives them the same vector"
    ):
        refuse_equal_vectors(labels, vectors, reading)


@pytest.mark.parametrize("kind", ["causal", "chat", "seq2seq", "matcher"])
def test_texts_that_are_cut_are_counted(load: Loader, kind: str) -> None:
    """Against what a model with more room reads: texts of 1 to 30 words around a limit of 20 tokens."""
    words = "the film was good and the play was great " * 4
    texts = [" ".join(words.split()[:number]) for number in range(1, 31)]
    spec = AnswerSpec(tuple(texts)) if kind == "matcher" else AnswerSpec()
    examples = [Example(text, text) for text in texts]
    roomy = load(kind, lengths=Lengths(100, 100)).features(examples, spec)
    backbone = load(kind, lengths=Lengths(20, 9))
    counted = backbone.count_truncated(examples, spec)
    if kind == "matcher":
        inputs = answers = sum(len(feature["input_ids"]) > 20 for feature in roomy)  # a label's text is an input, too
    elif kind == "seq2seq":
        inputs = sum(len(feature["input_ids"]) > 20 for feature in roomy)
        answers = sum(len(feature["labels"]) > 9 for feature in roomy)
    else:
        inputs = sum(feature["prompt"] > 20 for feature in roomy)
        answers = sum(feature["length"] - feature["prompt"] > 9 for feature in roomy)
    assert 0 < inputs < 30
    assert (counted.inputs, counted.answers) == (inputs, answers)
    assert load(kind, lengths=Lengths(100, 100)).count_truncated(examples, spec).inputs == 0
