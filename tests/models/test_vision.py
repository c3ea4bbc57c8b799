"""Image encoders as matchers: what they read, where label vectors come from, what is trained, what is exported."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from merganser.errors import InputError
from merganser.models.base import Lengths
from merganser.models.export import export_model
from merganser.models.loading import load_backbone
from merganser.models.options import ModelOptions
from merganser.streams.answers import AnswerSpec
from merganser.streams.images.picture import Picture
from merganser.streams.task import Example
from tests.tiny import tiny_bert, tiny_clip, tiny_vit

SPEC = AnswerSpec(labels=("light", "dark"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vision")
    return {"vit": tiny_vit(root / "vit"), "clip": tiny_clip(root / "clip"), "bert": tiny_bert(root / "bert")}


def picture(value: int, index: int = 0, size: int = 8) -> Picture:
    """A grey square with a little noise."""
    pixels = np.random.default_rng([value, index]).integers(0, 40, (size, size)) + value
    return Picture(f"{value}-{index}", data=b"P5\n%d %d\n255\n" % (size, size) + pixels.astype(np.uint8).tobytes())


def examples(number: int = 6) -> list[Example]:
    return [
        Example(f"{label}{i}", label, image=picture(value, i))
        for i in range(number)
        for label, value in (("light", 200), ("dark", 10))
    ]


def load(folder: Path, **changes: Any) -> Any:
    values = {"name": str(folder), "kind": "matcher", "precision": "fp32", **changes}
    return load_backbone(ModelOptions.model_validate(values), Lengths(16, 8), 0)


def test_prototypes_are_the_mean_directions_of_the_pretrained_encoder(folders: dict[str, Path]) -> None:
    backbone = load(folders["vit"])
    backbone.prepare_labels(examples(), SPEC)
    dark = [example.image for example in examples() if example.output == "dark"]
    with torch.no_grad():
        hidden = backbone.pretrained_from.load()(
            pixel_values=backbone.tokenizer.pixel_values(dark)
        ).last_hidden_state.mean(1)
    unit = hidden / hidden.norm(dim=1, keepdim=True)
    mean = unit.mean(0)
    torch.testing.assert_close(backbone.label_vectors(SPEC)[1], mean / mean.norm())
    # Frozen: the weights move, what was met stays, also when it is met again.
    before = backbone.label_vectors(SPEC).clone()
    with torch.no_grad():
        for parameter in backbone.trainable().values():
            parameter.add_(0.1)
    backbone.prepare_labels(examples(3), SPEC)
    assert torch.equal(backbone.label_vectors(SPEC), before)
    again = load(folders["vit"])
    again.load_prototypes(backbone.prototypes(["light", "dark"]))
    assert torch.equal(again.label_vectors(SPEC), before)
    # Of labels that are no longer known, as after an undo, nothing is left: they are met again.
    backbone.load_prototypes({})
    backbone.prepare_labels(examples(3), SPEC)
    assert not torch.equal(backbone.label_vectors(SPEC), before)


def test_all_weights_training_makes_prototypes_with_the_pretrained_ones(folders: dict[str, Path]) -> None:
    backbone, lora = load(folders["vit"], lora=None), load(folders["vit"])
    with torch.no_grad():
        for parameter in backbone.trainable().values():
            parameter.mul_(2.0)
    backbone.prepare_labels(examples(), SPEC)
    lora.prepare_labels(examples(), SPEC)
    assert torch.equal(backbone.label_vectors(SPEC), lora.label_vectors(SPEC))
    assert not any("pooler" in name for name in backbone.trainable())


def test_a_clip_reads_labels_with_its_frozen_text_encoder(folders: dict[str, Path]) -> None:
    backbone = load(folders["clip"], label_prompt="a photo of a {label}", lora=None)
    clip = backbone.pretrained_from.load()
    ids = backbone.tokenizer.tokenizer("a photo of a dark", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        wanted = torch.nn.functional.normalize(clip.get_text_features(input_ids=ids).pooler_output, dim=-1)[0]
    torch.testing.assert_close(backbone.label_vectors(SPEC)[1], wanted)
    assert backbone.prototypes(["light", "dark"]) == {}
    trained = {name.split(".")[1] for name in backbone.trainable()}
    assert trained == {"vision_model", "visual_projection"}
    adapted = load(folders["clip"])
    assert adapted.trainable()
    assert all(".vision_model." in name for name in adapted.trainable())


def test_classes_that_cannot_be_told_apart(folders: dict[str, Path]) -> None:
    """Of the same images, in another order; or cut to the same text."""
    backbone = load(folders["vit"])
    images = [picture(90, index) for index in range(5)]
    twins = [Example("", "grey", image=image) for image in images]
    twins += [Example("", "ash", image=image) for image in images[::-1]]
    spec = AnswerSpec(("light", "grey", "dark", "ash"))
    backbone.check_labels(spec, "Task 't'")  # known once the prototypes are
    backbone.prepare_labels([*examples(), *twins], spec)
    with pytest.raises(
        InputError, match="the labels 'grey' and 'ash': the encoder gives them the same vector"
    ) as caught:
        backbone.check_labels(spec, "Task 't'")
    assert "Their images are the same" in caught.value.remedy
    backbone.check_labels(SPEC, "Task 't'")
    long = "a photo of a very very good play that was great and strong and good "
    cut = AnswerSpec(("light", long * 3 + "one", long * 3 + "two"))
    with pytest.raises(InputError, match=r"strong and good one' and .*: only 32 of their tokens are used,"):
        load(folders["clip"]).check_labels(cut, "Task 't'")


@pytest.mark.parametrize("kind", ["vit", "clip"])
def test_a_batch_has_the_models_pixels_and_mixes_label_sets(folders: dict[str, Path], kind: str) -> None:
    backbone = load(folders[kind])
    other = AnswerSpec(labels=("light", "dark", "bright"))
    many = [*examples(2), Example("b", "bright", image=picture(100, size=12))]
    backbone.prepare_labels(many, other)
    batch = backbone.collate(backbone.features(examples(2), SPEC) + backbone.features(many, other))
    channels = 1 if kind == "vit" else 3
    assert batch["pixel_values"].shape == (9, channels, 8, 8)
    assert batch["candidates"].shape == (9, 3)
    assert bool((batch["candidates"][:4, 2] == -100).all())
    loss = backbone.module(**batch)["loss"]
    loss.backward()
    assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in backbone.trainable().values())


def test_a_path_and_the_image_get_the_same_answer(folders: dict[str, Path], tmp_path: Path) -> None:
    backbone = load(folders["vit"])
    backbone.prepare_labels(examples(), SPEC)
    images = [picture(200, 9), picture(10, 9)]
    paths = []
    for i, image in enumerate(images):
        image.decode("L").save(tmp_path / f"{i}.png")
        paths.append(str(tmp_path / f"{i}.png"))
    answers = backbone.answer(images, SPEC)
    assert [answer.text for answer in answers] == ["light", "dark"]
    assert backbone.answer(paths, SPEC) == answers
    with pytest.raises(InputError, match=r"absent\.png: there is no such file"):
        backbone.answer([str(tmp_path / "absent.png")], SPEC)


def test_what_does_not_fit_is_refused(folders: dict[str, Path]) -> None:
    vit, bert = load(folders["vit"]), load(folders["bert"])
    with pytest.raises(InputError, match="reads images, but the task has texts"):
        vit.check_examples([Example("a text", "dark")], SPEC)
    with pytest.raises(InputError, match="reads text, but the task has images"):
        bert.check_examples(examples(1), SPEC)
    with pytest.raises(InputError, match="'faint' has no training image"):
        vit.check_examples(examples(1), AnswerSpec(labels=("light", "dark", "faint")))
    load(folders["clip"]).check_examples(examples(1), AnswerSpec(labels=("light", "dark", "faint")))
    with pytest.raises(InputError, match="needs a label set"):
        vit.check_examples(examples(1), AnswerSpec())
    with pytest.raises(InputError, match="has no prototype"):
        vit.answer([picture(3)], SPEC)
    with pytest.raises(InputError, match="pooling 'last'"):
        load(folders["vit"], pooling="last")
    with pytest.raises(InputError, match="pooling 'cls'"):
        load(folders["clip"], pooling="cls")
    with pytest.raises(InputError, match="no text encoder"):
        load(folders["vit"], label_prompt="a {label}")
    with pytest.raises(InputError, match="does not fit kind 'causal'"):
        load(folders["vit"], kind="causal")


@pytest.mark.parametrize("kind", ["vit", "clip"])
@pytest.mark.parametrize("merged", [False, True])
def test_the_card_of_an_export_gives_the_same_answers(
    folders: dict[str, Path], tmp_path: Path, kind: str, merged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load(folders[kind])
    with torch.no_grad():
        for name, parameter in backbone.trainable().items():
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    backbone.prepare_labels(examples(), SPEC)
    export_model(backbone, tmp_path / "out", {"tone": SPEC}, merged)
    images = [picture(value, 3) for value in (5, 60, 120, 230)]
    for name, image in zip(("an-image.png", "another.png"), (images[0], images[-1]), strict=True):
        image.decode("L").save(tmp_path / "out" / name)
    code = re.search(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.DOTALL)
    assert code is not None
    monkeypatch.chdir(tmp_path / "out")
    if not merged:  # where the card asks for the pretrained model
        Path("base").mkdir()
        Path("base", folders[kind].name).symlink_to(folders[kind])
    found: dict[str, Any] = {}
    exec(code[1], found)
    answers = backbone.answer([images[0], images[-1]], SPEC)
    assert found["answers"] == [answer.text for answer in answers]
    scores = torch.tensor([answer.score for answer in answers])
    torch.testing.assert_close(found["probability"].max(1).values, scores, atol=1e-4, rtol=0)


def test_an_image_may_be_a_broken_file(tmp_path: Path) -> None:
    (tmp_path / "no.png").write_bytes(b"text")
    broken = Picture("no.png", path=tmp_path / "no.png")
    with pytest.raises(InputError, match=r"no\.png is not an image that can be read"):
        broken.decode("RGB")
    Image.new("RGB", (4, 4)).save(tmp_path / "yes.png")
    assert Picture("yes.png", path=tmp_path / "yes.png").decode("L").mode == "L"
