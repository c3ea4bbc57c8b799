from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from merganser.errors import InputError
from merganser.learner import Learner
from tests.learner.toys import copy_of_trained, model_folder


def last_value(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = max(tensors, key=lambda name: tensors[name].numel())
    tensors[name].view(-1)[-1] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def other_norm(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 0.1}))


def two_files(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    half = len(tensors) // 2
    placed = {}
    for number, names in enumerate([list(tensors)[:half], list(tensors)[half:]], start=1):
        shard = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names}, folder / shard, {"format": "pt"})
        placed |= dict.fromkeys(names, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))


@pytest.mark.parametrize(("change", "same"), [(last_value, False), (other_norm, False), (two_files, True)])
def test_a_run_recognises_its_pretrained_model(change: Callable[[Path], None], same: bool, tmp_path: Path) -> None:
    run = copy_of_trained(tmp_path / "trained")
    base = Path(shutil.copytree(model_folder(), tmp_path / "base"))
    change(base)
    if same:
        with Learner.open(run, read_only=True, model_path=str(base)) as learner:
            assert learner.learned == ["mood", "topic"]
        return
    with pytest.raises(InputError, match="is not the one that"):
        Learner.open(run, read_only=True, model_path=str(base))
