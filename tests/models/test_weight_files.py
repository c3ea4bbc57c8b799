from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from merganser.errors import InputError
from merganser.models.base import Backbone
from merganser.models.options import LoraOptions
from tests.models.conftest import LORA, Loader, disturb

KINDS = ["seq2seq", "causal", "matcher"]


def weights(backbone: Backbone) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in backbone.trainable().items()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lora", [LORA, None])
def test_weights_come_back_bit_for_bit(load: Loader, tmp_path: Path, kind: str, lora: LoraOptions | None) -> None:
    backbone = load(kind, lora=lora)
    disturb(backbone)
    before = weights(backbone)
    backbone.save_weights(tmp_path / "w")
    held = backbone.trainable()
    disturb(backbone, seed=2)
    assert not same(weights(backbone), before)
    backbone.load_weights(tmp_path / "w")
    assert same(weights(backbone), before)
    assert all(held[name] is parameter for name, parameter in backbone.trainable().items())  # in place
    other = load(kind, lora=lora, seed=9)
    other.load_weights(tmp_path / "w")
    assert same(weights(other), before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lora", [LORA, None])
def test_reset_is_a_fresh_load(load: Loader, kind: str, lora: LoraOptions | None) -> None:
    backbone = load(kind, lora=lora, seed=0)
    disturb(backbone)
    backbone.reset(5)
    assert same(weights(backbone), weights(load(kind, lora=lora, seed=5)))


def test_equal_adapters_are_equal_files(load: Loader, tmp_path: Path) -> None:
    """Whatever order PEFT's sets have, and whether a number was written with a point."""
    backbone = load("matcher", lora=LORA)
    backbone.save_weights(tmp_path / "one")
    config = backbone.model.peft_config["default"]  # type: ignore[union-attr]
    config.target_modules, config.lora_alpha = ["value", "query"], float(config.lora_alpha)
    config.target_modules = set(config.target_modules)
    backbone.save_weights(tmp_path / "other")
    one, other = ((tmp_path / name / "adapter_config.json").read_bytes() for name in ("one", "other"))
    assert one == other
    assert json.loads(one)["target_modules"] == ["query", "value"]


def test_an_adapter_has_pefts_files(load: Loader, tmp_path: Path) -> None:
    backbone = load("matcher")
    backbone.save_weights(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], sorted(config["target_modules"])) == (8, 32, ["query", "value"])
    assert config["base_model_name_or_path"] == backbone.options.name
    assert len(load_file(tmp_path / "adapter_model.safetensors")) == len(backbone.trainable())


def _tamper_shape(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    name = sorted(tensors)[-1]
    tensors[name] = torch.zeros(3, 3)
    save_file(tensors, folder / "adapter_model.safetensors")


def _tamper_name(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors["other.lora_A.weight"] = tensors.pop(sorted(tensors)[-1])
    save_file(tensors, folder / "adapter_model.safetensors")


def _tamper_alpha(folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 64}))


def _tamper_bytes(folder: Path) -> None:
    data = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(data[: len(data) // 2])


def _tamper_json(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{")


def _remove(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (_tamper_shape, r"shape \(3, 3\), and the model expects"),
        (_tamper_name, "2 names differ"),
        (_tamper_alpha, "lora_alpha = 64"),
        (_tamper_bytes, "damaged"),
        (_tamper_json, "damaged"),
        (_remove, r"has no adapter_model\.safetensors"),
    ],
)
def test_an_adapter_that_does_not_fit_changes_nothing(load: Loader, tmp_path: Path, tamper, said: str) -> None:
    load("matcher", seed=3).save_weights(tmp_path)
    tamper(tmp_path)
    backbone = load("matcher")
    disturb(backbone)
    before = weights(backbone)
    with pytest.raises(InputError, match=said):
        backbone.load_weights(tmp_path)
    assert same(weights(backbone), before)


def test_another_rank_is_refused(load: Loader, tmp_path: Path) -> None:
    load("causal", lora=LoraOptions(r=4)).save_weights(tmp_path)
    with pytest.raises(InputError, match="r = 4, the model has r = 8"):
        load("causal").load_weights(tmp_path)


def test_a_model_that_does_not_fit_changes_nothing(load: Loader, tmp_path: Path, folders: dict[str, Path]) -> None:
    backbone = load("matcher", lora=None)
    disturb(backbone)
    before = weights(backbone)
    with pytest.raises(InputError, match=r"no config\.json"):
        backbone.load_weights(tmp_path)
    bad = tmp_path / "bad"
    shutil.copytree(folders["matcher"], bad)
    tensors = load_file(bad / "model.safetensors")
    last = "encoder.layer.1.output.dense.weight"
    save_file({n: t for n, t in tensors.items() if n != last}, bad / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="do not fit: 1 names differ"):
        backbone.load_weights(bad)
    save_file(tensors | {last: torch.zeros(2, 2)}, bad / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="do not load into this model"):
        backbone.load_weights(bad)
    save_file(tensors, bad / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((bad / "config.json").read_text())
    (bad / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    with pytest.raises(InputError, match="do not fit"):
        backbone.load_weights(bad)
    assert same(weights(backbone), before)
