from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest
import torch

from merganser.errors import InputError
from merganser.models import precision
from merganser.models.base import Lengths
from merganser.models.loading import load_backbone
from merganser.models.options import ModelOptions
from merganser.models.padding import pad
from merganser.streams.answers import AnswerSpec
from tests.models.conftest import Loader

LENGTHS = Lengths(32, 8)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("./not/here", "does not exist"),
        ("/nowhere/at/all", "does not exist"),
        ("nobody/no-such-model-of-merganser", "neither a folder here nor"),
        ("missing.gguf", "does not exist"),
    ],
)
def test_a_model_that_is_not_there(name: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=said) as error:
        load_backbone(ModelOptions(name=name, kind="causal"), LENGTHS, 0)
    assert name in error.value.cause
    assert error.value.remedy


def test_a_folder_without_a_model(tmp_path: Path, folders: dict[str, Path]) -> None:
    options = ModelOptions(name=str(tmp_path), kind="causal")
    with pytest.raises(InputError, match=r"no config\.json"):
        load_backbone(options, LENGTHS, 0)
    shutil.copy(folders["causal"] / "config.json", tmp_path)
    with pytest.raises(InputError, match="no weights"):
        load_backbone(options, LENGTHS, 0)


def test_weights_in_pickle_files_are_refused(tmp_path: Path, folders: dict[str, Path]) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(folders["matcher"], folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="pickle") as error:
        load_backbone(ModelOptions(name=str(folder), kind="matcher"), LENGTHS, 0)
    assert "safetensors" in error.value.remedy


def test_damaged_weights(tmp_path: Path, folders: dict[str, Path]) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(folders["matcher"], folder)
    (folder / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(InputError, match="could not be read"):
        load_backbone(ModelOptions(name=str(folder), kind="matcher"), LENGTHS, 0)


@pytest.mark.parametrize(
    ("which", "kind", "better"),
    [
        ("matcher", "causal", "matcher"),
        ("matcher", "seq2seq", "matcher"),
        ("seq2seq", "causal", "seq2seq"),
        ("seq2seq", "matcher", "seq2seq"),
        ("causal", "seq2seq", "causal"),
    ],
)
def test_a_kind_that_does_not_fit(folders: dict[str, Path], which: str, kind: str, better: str) -> None:
    options = ModelOptions.model_validate({"name": str(folders[which]), "kind": kind})
    with pytest.raises(InputError, match=f"does not fit kind '{kind}'.*Use kind '{better}'"):
        load_backbone(options, LENGTHS, 0)


def test_a_decoder_can_match_too(folders: dict[str, Path]) -> None:
    options = ModelOptions(name=str(folders["causal"]), kind="matcher", pooling="last", precision="fp32")
    answers = load_backbone(options, LENGTHS, 0).answer(["the team won"], AnswerSpec(("sport", "business")))
    assert answers[0].text in ("sport", "business")
    assert 0.5 <= answers[0].score <= 1


def test_a_checkpoint_without_the_head_it_needs(tmp_path: Path, folders: dict[str, Path]) -> None:
    from transformers import AutoModel, AutoTokenizer

    AutoModel.from_pretrained(folders["causal"]).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folders["causal"]).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"lack 1 tensors.*lm_head\.weight"):
        load_backbone(ModelOptions(name=str(tmp_path), kind="causal"), LENGTHS, 0)


def test_lengths_must_fit_the_positions(load: Loader) -> None:
    with pytest.raises(InputError, match=r"128 positions.*at most 128"):
        load("matcher", lengths=Lengths(129, 8))
    with pytest.raises(InputError, match=r"512 positions.*at most 500"):
        load("causal", lengths=Lengths(505, 12))
    load("seq2seq", lengths=Lengths(4096, 12))  # relative positions have no end
    with pytest.raises(InputError, match="input length is 1"):
        Lengths(1, 8)


def test_chat_template_must_exist(load: Loader) -> None:
    with pytest.raises(InputError, match="no chat template"):
        load("causal", chat_template=True)


def test_a_revision_is_for_the_hub(load: Loader) -> None:
    with pytest.raises(InputError, match="revision was given for the folder"):
        load("causal", revision="main")


def test_a_folder_without_tokenizer(tmp_path: Path, folders: dict[str, Path]) -> None:
    folder = tmp_path / "mute"
    shutil.copytree(folders["matcher"], folder, ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(InputError, match=r"tokenizer of .* could not be read"):
        load_backbone(ModelOptions(name=str(folder), kind="matcher"), LENGTHS, 0)


def test_loading_is_quiet_and_puts_noise_back(load: Loader, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    logging.set_verbosity_info()
    logging.enable_progress_bar()
    try:
        with warnings.catch_warnings(record=True) as caught:
            load("matcher")
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity_warning()
    assert capfd.readouterr() == ("", "")
    assert caught == []


def test_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    assert precision.resolve_precision("fp32") == "fp32"
    assert precision.resolve_precision("bf16") == "bf16"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for capabilities, expected in (
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True}, "bf16"),
        ({"avx2": True}, "fp32"),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found, raising=False)
        assert precision.resolve_precision("auto") == expected


def test_precision_from_cpuinfo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(precision, "CPUINFO", tmp_path / "cpuinfo")
    assert precision.resolve_precision() == "fp32"
    (tmp_path / "cpuinfo").write_text("processor : 0\nflags : fpu sse avx512_bf16\n")
    assert precision.resolve_precision() == "bf16"
    (tmp_path / "cpuinfo").write_text("processor : 0\nflags : fpu sse avx512_bf16x\n")
    assert precision.resolve_precision() == "fp32"


@pytest.mark.parametrize("which", ["seq2seq", "causal", "matcher"])
def test_mixed_precision_trains_and_answers(load: Loader, which: str) -> None:
    from merganser.streams.task import Example

    backbone = load(which, precision="bf16")
    spec = AnswerSpec(("positive", "negative"), mode="rank")
    batch = backbone.collate(backbone.features([Example("the film was good", "positive")], spec))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = backbone.module(**batch)["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in backbone.trainable().values())
    assert all(p.dtype == torch.float32 for p in backbone.module.parameters())
    assert backbone.answer(["the film was good"], spec)[0].text in ("positive", "negative")


def test_pad() -> None:
    assert pad([[1, 2, 3], [4]], 0).tolist() == [[1, 2, 3], [4, 0, 0]]
    assert pad([[1, 2, 3], [4]], 9, left=True).tolist() == [[1, 2, 3], [9, 9, 4]]


def test_the_models_own_dropout_can_be_set(folders: dict[str, Path]) -> None:
    for kind in ("matcher", "seq2seq"):
        shares: dict[float | None, set[float]] = {}
        for dropout in (None, 0.0, 0.25):
            options = ModelOptions.model_validate(
                {"name": str(folders[kind]), "kind": kind, "lora": None, "dropout": dropout}
            )
            backbone = load_backbone(options, LENGTHS, 0)
            shares[dropout] = {part.p for part in backbone.module.modules() if isinstance(part, torch.nn.Dropout)}
        assert shares[0.0] == {0.0}
        assert shares[0.25] == {0.25}
        assert shares[None] == {0.1}  # as both architectures have it


def test_attention_can_be_chosen(folders: dict[str, Path]) -> None:
    for attention in ("eager", "sdpa"):
        options = ModelOptions.model_validate(
            {"name": str(folders["matcher"]), "kind": "matcher", "lora": None, "attention": attention}
        )
        backbone = load_backbone(options, LENGTHS, 0)
        assert backbone.module.encoder.config._attn_implementation == attention
    with pytest.raises(InputError, match="flash_attention_2 cannot be used here"):
        load_backbone(options.model_copy(update={"attention": "flash_attention_2"}), LENGTHS, 0)
